// The device that CUDA names: kernels/common/device.h on its runtime.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/common/device.h"

namespace palimpsest {

absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(const DeviceOptions& options);

}  // namespace palimpsest
