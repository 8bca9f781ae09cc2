// From logits to a token: bias, penalties, temperature, top-k, top-p, min-p, and a draw that depends on (seed,
// position) alone.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/common/thread_pool.h"

namespace palimpsest {

// Ranges are the caller's to check; the meaning of each is in proto/palimpsest/v1/generation.proto.
struct SamplingSettings {
  std::vector<std::pair<int32_t, float>> logit_bias = {};  // by id, ascending
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  float temperature = 1.0f;  // 0: the most probable token, lowest id on ties
  int32_t top_k = 0;         // 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
  uint64_t seed = 0;

  bool penalises() const { return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f; }
};

struct TokenLogprobValue {
  int32_t id = 0;
  float logprob = 0.0f;
};

// One row's request and its answer.
struct SampleRow {
  const float* logits = nullptr;               // [vocabulary]; not changed
  const SamplingSettings* settings = nullptr;  // null: draw nothing, only report
  std::span<const int32_t> recent;             // penalty window, any order; ids outside the vocabulary are passed over
  int64_t position = 0;                        // counter of the draw: position the sampled token will have
  int32_t target = -1;                         // with null settings: the id whose log-probability is wanted
  int32_t top_logprobs = 0;                    // how many alternatives to report
  bool want_logprob = false;

  bool finite = true;                  // false: some logit is NaN or infinite; nothing else is set then
  int32_t token = -1;                  // drawn, or `target`
  float logprob = 0.0f;                // of `token`, before bias, penalties, temperature and truncation
  std::vector<TokenLogprobValue> top;  // most probable first, lower id first on ties
};

// Fills in the answers. Rows are independent; they are spread over the pool's threads.
void Sample(const ExecContext& ctx, std::span<SampleRow> rows, int32_t vocabulary);

// The same in two calls: a device has begun after the first, the answers are there after the second. The rows, and what
// they point to, must stay between the two, and no other rows may begin.
void BeginSample(const ExecContext& ctx, std::span<const SampleRow> rows, int32_t vocabulary);
void FinishSample(const ExecContext& ctx, std::span<SampleRow> rows, int32_t vocabulary);

// The truth, in double precision with a full sort: probabilities after all steps, [vocabulary]. What `Sample` draws
// from.
std::vector<double> SamplingDistributionReference(std::span<const float> logits, const SamplingSettings& settings,
                                                  std::span<const int32_t> recent);

// The uniform variate in [0, 1) of (seed, position): Philox 4x32-10 (Salmon et al., SC11), 24 bits or more used.
double UniformAt(uint64_t seed, int64_t position);

}  // namespace palimpsest
