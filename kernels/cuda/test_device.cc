// Tests run on the first CUDA device.
#include "kernels/common/test_device.h"

#include <cstdio>
#include <cstdlib>
#include <string>

#include "kernels/cuda/cuda_device.h"

namespace palimpsest {
namespace {

std::unique_ptr<Device> OpenOrExit(const DeviceOptions& options) {
  absl::StatusOr<std::unique_ptr<Device>> device = OpenCudaDevice(options);
  if (device.ok()) return *std::move(device);
  std::fprintf(stderr, "%s\n", std::string(device.status().message()).c_str());
  std::exit(1);
}

}  // namespace

Device* TestDevice() {
  static Device* const device = OpenOrExit({.blocking = true}).release();  // outlives every test
  return device;
}

std::shared_ptr<Device> OpenTestDevice() { return OpenOrExit({}); }

}  // namespace palimpsest
