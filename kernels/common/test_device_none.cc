// Ops under test run on the processor.
#include "kernels/common/op_testing.h"

namespace palimpsest {

Device* TestDevice() { return nullptr; }

}  // namespace palimpsest
