// Times launches on a CUDA device.
//
// What is timed is recorded as a graph of many launches that take their buffers in turn, from more memory than any
// cache holds; the graph is run again and again between two events. A figure is the median of those runs, per launch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <span>
#include <vector>

#include "kernels/common/aligned_buffer.h"
#include "kernels/common/check.h"
#include "kernels/common/device.h"
#include "kernels/cuda/cuda.h"

namespace palimpsest {

inline void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "device_bench: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

struct Timing {
  double seconds = 0.0;  // of one launch: the median
  double spread = 0.0;   // from the first to the last decile, by the median
  int launches = 0;      // in a run
};

class DeviceTimer {
 public:
  // `tiny`: few launches, for a test that it works.
  DeviceTimer(Device& device, bool tiny) : device_(device), tiny_(tiny) {
    CheckCuda(cudaStreamCreateWithFlags(&target_.stream, cudaStreamNonBlocking), "a stream");
    CheckCuda(cudaEventCreate(&begin_), "an event");
    CheckCuda(cudaEventCreate(&end_), "an event");
    target_.shared_bytes_per_block = device.info().shared_bytes_per_block;
  }
  ~DeviceTimer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(target_.stream);
  }
  DeviceTimer(const DeviceTimer&) = delete;
  DeviceTimer& operator=(const DeviceTimer&) = delete;

  Device& device() { return device_; }
  bool tiny() const { return tiny_; }
  const cuda::Target& target() const { return target_; }

  // How many sets of buffers of so many bytes are more than caches hold.
  int Sets(double bytes) const {
    constexpr double kMoreThanCaches = 512 << 20;
    return tiny_ ? 2 : static_cast<int>(std::clamp(kMoreThanCaches / bytes, 2.0, 4096.0));
  }

  void Synchronize() {
    CheckCuda(cudaStreamSynchronize(target_.stream), "work on the stream");
    const absl::Status status = device_.Synchronize();
    if (!status.ok()) {
      std::fprintf(stderr, "device_bench: %s\n", std::string(status.message()).c_str());
      std::exit(1);
    }
  }

  // launch(i) puts the i-th launch on target().stream.
  Timing Time(const std::function<cudaError_t(int i)>& launch) {
    constexpr double kRunSeconds = 5e-3;
    constexpr int kRuns = 25, kMostLaunches = 4000;
    const auto launch_all = [&](int n) {
      for (int i = 0; i < n; ++i) CheckCuda(launch(i), "a launch");
    };
    launch_all(2);  // loads the kernel, makes the library choose
    const double once = Between([&] { launch_all(4); }) / 4;
    Timing timing;
    timing.launches = tiny_ ? 3 : static_cast<int>(std::clamp(kRunSeconds / once, 4.0, double{kMostLaunches}));

    CheckCuda(cudaStreamBeginCapture(target_.stream, cudaStreamCaptureModeThreadLocal), "recording");
    launch_all(timing.launches);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    CheckCuda(cudaStreamEndCapture(target_.stream, &graph), "recording");
    CheckCuda(cudaGraphInstantiate(&executable, graph, 0), "a graph");
    const auto run = [&] { CheckCuda(cudaGraphLaunch(executable, target_.stream), "a graph's launch"); };
    Between(run);
    std::vector<double> seconds;
    for (int i = 0; i < (tiny_ ? 2 : kRuns); ++i) seconds.push_back(Between(run) / timing.launches);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);

    std::sort(seconds.begin(), seconds.end());
    const size_t n = seconds.size();
    timing.seconds = seconds[n / 2];
    timing.spread = (seconds[n - 1 - n / 10] - seconds[n / 10]) / timing.seconds;
    return timing;
  }

 private:
  double Between(const std::function<void()>& work) {
    CheckCuda(cudaEventRecord(begin_, target_.stream), "an event");
    work();
    CheckCuda(cudaEventRecord(end_, target_.stream), "an event");
    CheckCuda(cudaStreamSynchronize(target_.stream), "work on the stream");
    float milliseconds = 0.0f;
    CheckCuda(cudaEventElapsedTime(&milliseconds, begin_, end_), "a time");
    return std::max(double{milliseconds} * 1e-3, 1e-9);
  }

  Device& device_;
  const bool tiny_;
  cuda::Target target_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// Normal values, drawn once and repeated.
inline std::vector<float> SomeNormal(int64_t n, uint32_t seed, float deviation = 1.0f) {
  constexpr int64_t kDrawn = 1 << 16;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(n);
  for (int64_t i = 0; i < n; ++i) values[i] = i < kDrawn ? normal(random) : values[i - kDrawn];
  return values;
}

// An array of the host's and one of the device's, which begins as a copy.
template <typename T>
class Mirrored {
 public:
  Mirrored() = default;
  Mirrored(Device& device, std::vector<T> values) : host_(std::move(values)), device_(&device) {
    const auto bytes = static_cast<int64_t>(host_.size() * sizeof(T));
    on_device_ = AlignedBytes(bytes, &device);
    PALIMPSEST_CHECK(bytes == 0 || on_device_.data() != nullptr);
    device.CopyToDevice(on_device_.data(), host_.data(), bytes);
    PALIMPSEST_CHECK(device.Synchronize().ok());
  }
  T* host() { return host_.data(); }
  T* device() { return reinterpret_cast<T*>(on_device_.data()); }
  int64_t size() const { return static_cast<int64_t>(host_.size()); }
  // What the device has now.
  std::vector<T> Read() {
    std::vector<T> values(host_.size());
    device_->CopyToHost(values.data(), on_device_.data(), static_cast<int64_t>(values.size() * sizeof(T)));
    PALIMPSEST_CHECK(device_->Synchronize().ok());
    return values;
  }

 private:
  std::vector<T> host_;
  Device* device_ = nullptr;
  AlignedBytes on_device_;
};

// Exits unless the values are near those expected, by the norm of their difference; NaN never is.
inline void CheckNear(const char* what, std::span<const float> values, std::span<const float> expected,
                      double tolerance) {
  PALIMPSEST_CHECK(values.size() == expected.size());
  double difference = 0.0, size = 0.0;
  for (size_t i = 0; i < values.size(); ++i) {
    difference += (double{values[i]} - expected[i]) * (double{values[i]} - expected[i]);
    size += double{expected[i]} * expected[i];
  }
  if (difference <= tolerance * tolerance * size) return;
  std::fprintf(stderr, "device_bench: %s is wrong: its error is %g of its size, %g is allowed\n", what,
               std::sqrt(difference / size), tolerance);
  std::exit(1);
}

}  // namespace palimpsest
