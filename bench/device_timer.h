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
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/common/device.h"
#include "kernels/cuda/cuda.h"

namespace palimpsest {

// A line of the results, which is there even if the next moment ends the process.
inline void PrintRow(const nlohmann::json& row) {
  std::printf("%s\n", row.dump().c_str());
  std::fflush(stdout);
}

// After an error of the device there is nothing left to measure in this process.
[[noreturn]] inline void EndWith(const std::string& what, const std::string& error) {
  PrintRow({{"failed", what}, {"error", error}});
  std::exit(1);
}

inline void CheckCuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) EndWith(what, cudaGetErrorString(error));
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
    target_.overlaps = cuda::KernelsOverlap();
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
    if (const absl::Status status = device_.Synchronize(); !status.ok()) {
      EndWith("work of the device", std::string(status.message()));
    }
  }

  // The same of eight launches without a graph, for what is long.
  double TimeCalls(const std::function<cudaError_t(int i)>& launch) {
    constexpr int kCalls = 8;
    std::vector<double> seconds;
    for (int run = 0; run < 5; ++run) {
      seconds.push_back(Between([&] {
                          for (int i = 0; i < kCalls; ++i) CheckCuda(launch(i), "a launch");
                        }) /
                        kCalls);
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  }

  // launch(i) puts the i-th launch on target().stream. A run has a multiple of `round` launches: as many as do
  // everything once that is not done at each.
  Timing Time(const std::function<cudaError_t(int i)>& launch, int round = 1) {
    constexpr double kRunSeconds = 5e-3;
    constexpr int kRuns = 25, kMostLaunches = 4000;
    const auto launch_all = [&](int n) {
      for (int i = 0; i < n; ++i) CheckCuda(launch(i), "a launch");
    };
    launch_all(2);  // loads the kernel, makes the library choose
    const double once = Between([&] { launch_all(4); }) / 4;
    Timing timing;
    timing.launches = tiny_ ? 3 : static_cast<int>(std::clamp(kRunSeconds / once, 4.0, double{kMostLaunches}));
    timing.launches = (timing.launches + round - 1) / round * round;

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

// Fills an array of the device by repeating what its first `filled` bytes hold, which are multiplied there.
inline void RepeatOnDevice(std::byte* array, int64_t filled, int64_t bytes) {
  if (filled >= bytes) return;
  cudaStream_t stream = nullptr;
  CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  for (; filled < bytes; filled *= 2) {
    const auto more = static_cast<size_t>(std::min(filled, bytes - filled));
    CheckCuda(cudaMemcpyAsync(array + filled, array, more, cudaMemcpyDeviceToDevice, stream), "a copy");
  }
  CheckCuda(cudaStreamSynchronize(stream), "a copy");
  cudaStreamDestroy(stream);
}

// An array of the device and, while it is not too large for that, its values on the host.
template <typename T>
class Mirrored {
 public:
  Mirrored() = default;
  Mirrored(Device& device, std::vector<T> values) : Mirrored(device, std::move(values), 0) { host_size_ = size_; }
  // `size` elements, at least those given, which repeat themselves; the host has none.
  Mirrored(Device& device, std::vector<T> values, int64_t size)
      : host_(std::move(values)),
        size_(std::max(size, static_cast<int64_t>(host_.size()))),
        device_(&device),
        on_device_(size_ * int64_t{sizeof(T)}, &device) {
    const auto bytes = static_cast<int64_t>(host_.size() * sizeof(T));
    PALIMPSEST_CHECK(size_ == 0 || on_device_.data() != nullptr);
    device.CopyToDevice(on_device_.data(), host_.data(), bytes);
    PALIMPSEST_CHECK(device.Synchronize().ok());
    if (bytes > 0) RepeatOnDevice(on_device_.data(), bytes, size_ * int64_t{sizeof(T)});
  }
  T* host() {
    PALIMPSEST_CHECK(host_size_ == size_);
    return host_.data();
  }
  T* device() { return reinterpret_cast<T*>(on_device_.data()); }
  int64_t size() const { return size_; }
  // What the device has now.
  std::vector<T> Read() {
    std::vector<T> values(size_);
    device_->CopyToHost(values.data(), on_device_.data(), static_cast<int64_t>(values.size() * sizeof(T)));
    PALIMPSEST_CHECK(device_->Synchronize().ok());
    return values;
  }

 private:
  std::vector<T> host_;
  int64_t host_size_ = 0, size_ = 0;
  Device* device_ = nullptr;
  AlignedBytes on_device_;
};

// Normal values on the device, many of them repeated, and on the host as well if `mirrored`.
inline Mirrored<float> NormalOnDevice(Device& device, int64_t n, uint32_t seed, float deviation, bool mirrored) {
  constexpr int64_t kDrawn = 1 << 20;
  if (mirrored || n <= kDrawn) return {device, SomeNormal(n, seed, deviation)};
  return {device, SomeNormal(kDrawn, seed, deviation), n};
}

// By how much values differ from those expected: by the norm of the difference over that of what is expected.
struct Difference {
  const char* what;
  double error;
  double allowed;
  bool near() const { return error <= allowed; }  // NaN is not
};

inline Difference Compare(const char* what, std::span<const float> values, std::span<const float> expected,
                          double allowed) {
  PALIMPSEST_CHECK(values.size() == expected.size());
  double difference = 0.0, size = 0.0;
  for (size_t i = 0; i < values.size(); ++i) {
    difference += (double{values[i]} - expected[i]) * (double{values[i]} - expected[i]);
    size += double{expected[i]} * expected[i];
  }
  return {what, std::sqrt(difference / size), allowed};
}

}  // namespace palimpsest
