// Ops under test run on the first CUDA device.
#include <cstdio>
#include <cstdlib>

#include "kernels/common/op_testing.h"
#include "kernels/cuda/cuda_device.h"

namespace palimpsest {

Device* TestDevice() {
  static Device* const device = [] {
    absl::StatusOr<std::unique_ptr<Device>> opened = OpenCudaDevice({.blocking = true});
    if (!opened.ok()) {
      std::fprintf(stderr, "%s\n", std::string(opened.status().message()).c_str());
      std::exit(1);
    }
    return opened->release();  // outlives every test
  }();
  return device;
}

}  // namespace palimpsest
