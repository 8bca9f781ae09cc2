#include "server/models/backend.h"

#include <string>
#include <utility>

#include "base/log.h"

namespace palimpsest {

absl::StatusOr<std::shared_ptr<Device>> OpenBackend(const BackendOptions& options) {
  if (options.kind == BackendOptions::Kind::kCpu) return nullptr;
  const bool wanted = options.kind == BackendOptions::Kind::kCuda;
  if (options.open == nullptr) {
    if (!wanted) return nullptr;
    return absl::FailedPreconditionError(
        "this server was built without CUDA; build it with -DPALIMPSEST_CUDA=ON, or use --backend=cpu");
  }
  absl::StatusOr<std::unique_ptr<Device>> device = options.open({.index = options.device});
  if (device.ok()) return std::shared_ptr<Device>(*std::move(device));
  if (wanted) return device.status();
  LogEvent("no device, so the processor", {{"reason", std::string(device.status().message())}});
  return nullptr;
}

}  // namespace palimpsest
