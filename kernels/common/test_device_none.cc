// Tests run on the processor.
#include "kernels/common/test_device.h"

namespace palimpsest {

Device* TestDevice() { return nullptr; }
std::shared_ptr<Device> OpenTestDevice() { return nullptr; }

}  // namespace palimpsest
