#include "bench/device_peak.h"

namespace palimpsest::cuda {

std::unique_ptr<Peak> MakePeakProduct(PeakProduct, int64_t, const void*, const void*, float*) { return nullptr; }

}  // namespace palimpsest::cuda
