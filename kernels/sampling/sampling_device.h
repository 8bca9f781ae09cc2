// Inside sampling: its CUDA home. Ids and the log-probabilities that were asked for come back, logits do not.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/common/aligned_buffer.h"
#include "kernels/common/device.h"
#include "kernels/common/pinned_bytes.h"
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

// Of a row that several blocks sample (sampling.cu).
enum class SamplePhase : uint8_t { kScan, kCount, kListFirst, kListSecond, kSum, kAnswer };

inline constexpr int32_t kMostSampleParts = 32;

// How many blocks sample a row. One does without going through memory and new launches from phase to phase; several
// are for rows that would leave most of the device idle for long. No answer depends on it.
constexpr int32_t SamplePartsOf(int64_t rows, int32_t vocabulary) {
  constexpr int64_t kLeastIds = 8192, kBlocks = 264, kLeastParts = 4;
  int64_t parts = vocabulary / kLeastIds;
  if (rows > 0 && parts > kBlocks / rows) parts = kBlocks / rows;
  if (parts > kMostSampleParts) parts = kMostSampleParts;
  return parts < kLeastParts ? 1 : static_cast<int32_t>(parts);
}

struct SampleLaunch {
  const SampleTask* tasks;
  const SampleBias* biases;
  const int32_t* recent;
  SampleAnswer* answers;
  TokenLogprobValue* tops;
  int32_t rows;
  int32_t vocabulary;
  int32_t parts;    // SamplePartsOf
  uint32_t phases;  // a bit for each that some row needs; all need the first and the last
  void* scratch;    // [SampleScratchBytes]
};

int64_t SampleScratchBytes(int32_t rows, int32_t parts);
cudaError_t RunSample(const SampleLaunch& launch, const Target& target);

// Packs rows, has them sampled and unpacks the answers. Keeps its memory, which grows to the largest batch.
class DeviceSampler {
 public:
  explicit DeviceSampler(Device& device) : device_(device) {}
  // In this order, with a Synchronize of the device before Unpack. All but that return at once.
  bool Pack(std::span<const SampleRow> rows, int32_t vocabulary);  // false: there is too little memory
  cudaError_t Launch(const Target& target) { return RunSample(launch_, target); }
  void CopyAnswers();
  void Unpack(std::span<SampleRow> rows) const;

 private:
  Device& device_;
  SampleLaunch launch_{};
  // Tasks, biases, recent tokens, and from here on answers and tops: on the device, and in pinned memory.
  int64_t answers_at_ = 0;
  int64_t tops_at_ = 0;
  int64_t bytes_ = 0;
  AlignedBytes memory_;
  PinnedBytes pinned_;
  AlignedBytes scratch_;
  AlignedArray<float> adjusted_;  // [rows with bias or penalties, vocabulary], on the device
  std::vector<SampleTask> tasks_;
};

}  // namespace palimpsest::cuda
