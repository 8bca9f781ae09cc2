// Where models run.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/common/device.h"

namespace palimpsest {

struct BackendOptions {
  enum class Kind : uint8_t {
    kAuto,  // CUDA where there is a device, else the processor
    kCpu,
    kCuda,
  };
  Kind kind = Kind::kAuto;
  int32_t device = 0;                  // which, as CUDA counts them
  OpenDeviceFunction* open = nullptr;  // null: this build has none
};

// A device for one model; null: the processor. FAILED_PRECONDITION: CUDA is asked for and not in this build. Else what
// opening it said.
absl::StatusOr<std::shared_ptr<Device>> OpenBackend(const BackendOptions& options);

}  // namespace palimpsest
