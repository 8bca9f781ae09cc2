// Inside sampling: its CUDA home. Ids and the log-probabilities that were asked for come back, logits do not.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/common/aligned_buffer.h"
#include "kernels/common/device.h"
#include "kernels/cuda/cuda.h"
#include "kernels/sampling/sampling.h"

namespace palimpsest::cuda {

// A SampleRow as the kernel reads it. Lists are stretches of one array for all rows.
struct SampleTask {
  const float* logits;
  float* adjusted;   // [vocabulary] scratch, if there is a bias or a penalty
  uint64_t uniform;  // of 2^64
  int32_t bias_begin, bias_end;
  int32_t recent_begin, recent_end;
  float repetition_penalty, presence_penalty, frequency_penalty;
  float scale;  // 1 / temperature; 0: the most probable
  float top_p, min_p;
  int32_t top_k;
  int32_t draws;  // else `token` is reported, if it is one
  int32_t token;
  int32_t want_logprob;
  int32_t top_begin, top_end;
};

struct SampleBias {
  int32_t id;
  float bias;
};

struct SampleAnswer {
  int32_t token;
  int32_t finite;
  float logprob;
};

struct SampleLaunch {
  const SampleTask* tasks;
  const SampleBias* biases;
  const int32_t* recent;
  SampleAnswer* answers;
  TokenLogprobValue* tops;
  int32_t rows;
  int32_t vocabulary;
};

cudaError_t RunSample(const SampleLaunch& launch, const Target& target);

// Packs rows, has them sampled and unpacks the answers. Keeps its device memory, which grows to the largest batch.
class DeviceSampler {
 public:
  explicit DeviceSampler(Device& device) : device_(device) {}
  // The error of the launch; the device keeps those of copies. False: no device memory.
  bool Pack(std::span<const SampleRow> rows, int32_t vocabulary);
  cudaError_t Launch(const Target& target) { return RunSample(launch_, target); }
  // Between the two, CopyAnswers and a Synchronize of the device.
  void CopyAnswers();
  void Unpack(std::span<SampleRow> rows) const;

 private:
  Device& device_;
  SampleLaunch launch_{};
  AlignedBytes memory_;              // all that follows, on the device
  AlignedArray<float> adjusted_;     // [rows with bias or penalties, vocabulary], on the device
  std::vector<std::byte> packed_;    // tasks, biases and recent tokens
  std::vector<std::byte> answered_;  // answers and tops
  std::vector<SampleTask> tasks_;
};

}  // namespace palimpsest::cuda
