// What the parts of device_bench share.
#pragma once

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "bench/device_peak.h"
#include "bench/device_timer.h"
#include "kernels/common/thread_pool.h"
#include "kernels/cuda/blas.h"
#include "kernels/linear/linear_device.h"

namespace palimpsest {

#ifdef PALIMPSEST_CUDA_EMULATED
inline constexpr bool kDeviceIsEmulated = true;
#else
inline constexpr bool kDeviceIsEmulated = false;
#endif

// What a launch cannot do without.
struct Work {
  double bytes = 0.0;  // read or written
  double flops = 0.0;
  bool bf16 = false;  // by the matrix units' bf16; else their tf32
};

class DeviceBench {
 public:
  // Measures what `only` finds, all if it is empty, and begins nothing after so many seconds. The ceilings are those of
  // `ceilings_file` if there is such a file; else they are measured, and written there if it has a name.
  DeviceBench(DeviceTimer& timer, bool emulated, const std::string& only, int seconds,
              const std::string& ceilings_file);

  // Each measures one group of ops and prints a line for each measurement, and one for each result that is wrong.
  void FastWeights();  // device_bench_fast_weight.cc
  void Mixers();       // device_bench_mixer.cc
  void Projections();  // device_bench_layer.cc, as the rest
  void Layer();
  void Convolutions();
  void Sampling();
  void Graphs();

  // Whether all results were right.
  bool ok() const { return ok_; }

 private:
  struct Ceilings {
    double copy_bytes = 0.0;
    double bf16_flops = 0.0;
    double tf32_flops = 0.0;
  };
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

  // Null where times mean nothing.
  nlohmann::json Measured(double value) const;
  bool Wants(const std::string& name);
  void Expect(const std::string& name, std::span<const Difference> differences);
  void Add(const std::string& name, nlohmann::json labels, const Work& work, const Timing& timing);
  cuda::LinearResources linear_resources() {
    return {.blas = blas_.get(), .scratch = workspace_.data() + kWorkspaceBytes, .scratch_bytes = kWorkspaceBytes};
  }
  Device& device() { return timer_.device(); }
  template <typename T>
  Mirrored<T> Put(std::vector<T> values) {
    return Mirrored<T>(device(), std::move(values));
  }

  DeviceTimer& timer_;
  const bool emulated_;
  const std::string only_;
  const std::chrono::steady_clock::time_point end_;
  ThreadPool pool_;
  AlignedBytes workspace_;  // of the library, then of what linear rounds
  std::unique_ptr<cuda::Blas> blas_;
  Ceilings ceilings_;
  bool ok_ = true, out_of_time_ = false;
};

}  // namespace palimpsest
