#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "base/check.h"
#include "kernels/common/device.h"
#include "kernels/common/grain.h"
#include "kernels/sampling/logits_scan.h"
#include "kernels/sampling/philox.h"
#include "kernels/sampling/sampling.h"

namespace palimpsest {
namespace {

// Kept by each thread between calls; bounded by the vocabulary.
struct Scratch {
  std::vector<float> adjusted;      // logits after bias and penalties
  std::vector<int32_t> recent;      // penalty window, sorted
  std::vector<float> maxima;        // of CollectTop
  std::vector<float> weights;       // by id: softmax weight relative to the most probable token's
  std::vector<double> block_sums;   // of the weights
  std::vector<RankKey> keys;        // candidates
  std::vector<RankKey> border;      // candidates of which some are kept
  std::vector<double> bucket_sums;  // of the weights of candidates with like logits
  std::vector<float> shares;        // weights of the candidates that are kept, else 0
};

float ClampToFloat(double value) {
  constexpr double kMax = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value, -kMax, kMax));
}

// The logits after bias and penalties: `logits` itself where nothing changes them.
std::span<const float> Adjust(std::span<const float> logits, const SamplingSettings& s, std::span<const int32_t> recent,
                              Scratch& scratch) {
  const bool penalize = !recent.empty() && s.penalises();
  if (s.logit_bias.empty() && !penalize) return logits;
  const auto vocabulary = static_cast<int32_t>(logits.size());
  scratch.adjusted.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : s.logit_bias) {
    PALIMPSEST_CHECK(id >= 0 && id < vocabulary);
    scratch.adjusted[id] = ClampToFloat(double{scratch.adjusted[id]} + bias);
  }
  if (!penalize) return scratch.adjusted;
  scratch.recent.assign(recent.begin(), recent.end());
  std::sort(scratch.recent.begin(), scratch.recent.end());
  for (auto it = scratch.recent.begin(); it != scratch.recent.end();) {
    const int32_t id = *it;
    const auto next = std::upper_bound(it, scratch.recent.end(), id);
    const auto times_seen = static_cast<double>(next - it);
    it = next;
    if (id < 0 || id >= vocabulary) continue;
    double x = scratch.adjusted[id];
    x = x > 0.0 ? x / s.repetition_penalty : x * s.repetition_penalty;
    x -= double{s.presence_penalty} + double{s.frequency_penalty} * times_seen;
    scratch.adjusted[id] = ClampToFloat(x);
  }
  return scratch.adjusted;
}

// Softmax at a temperature.
struct Softmax {
  std::span<const float> logits;
  float max;
  float scale;  // 1 / temperature
};

// Where the running sum of `weights` passes `point`. Rounding may keep the sum from doing so: then it is the last token
// that has any weight.
template <typename Weights>
int64_t IndexAtSum(const Weights& weights, double point) {
  double sum = 0.0;
  int64_t last = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(weights.size()); ++i) {
    if (!(weights[i] > 0)) continue;
    last = i;
    sum += weights[i];
    if (sum > point) break;
  }
  return last;
}

// Draws from the whole vocabulary, less what min-p drops.
int32_t DrawFromAll(const Softmax& softmax, float min_p, double uniform, Scratch& scratch) {
  const int64_t n = softmax.logits.size();
  scratch.weights.resize(n);
  scratch.block_sums.resize((n + kExpBlock - 1) / kExpBlock);
  const double total =
      ExpSum(softmax.logits, softmax.max, softmax.scale, min_p, scratch.weights.data(), scratch.block_sums.data());
  const double point = uniform * total;
  const int64_t block = IndexAtSum(scratch.block_sums, point);
  double before = 0.0;
  for (int64_t b = 0; b < block; ++b) before += scratch.block_sums[b];
  const int64_t begin = block * kExpBlock;
  const std::span<const float> weights(scratch.weights.data() + begin, std::min(kExpBlock, n - begin));
  return static_cast<int32_t>(begin + IndexAtSum(weights, point - before));
}

// Fills scratch.keys with the top_k most probable tokens, and in their weights. Returns the sum of those.
double CollectTopK(const Softmax& softmax, int32_t top_k, Scratch& scratch) {
  CollectTop(softmax.logits, top_k, scratch.maxima, scratch.keys);
  scratch.weights.resize(softmax.logits.size());
  double total = 0.0;
  for (const RankKey key : scratch.keys) {
    const int32_t id = IndexOf(key);
    scratch.weights[id] = static_cast<float>(std::exp((double{softmax.logits[id]} - softmax.max) * softmax.scale));
    total += scratch.weights[id];
  }
  return total;
}

// Fills scratch.keys with a set that holds the nucleus, and in all weights. Returns the sum of those, also of tokens
// left out: each of them has less than 1/(2 n) of the (1 - top_p) that the nucleus may lack, so all of them together
// do.
double CollectNucleusCandidates(const Softmax& softmax, float top_p, Scratch& scratch) {
  scratch.weights.resize(softmax.logits.size());
  const double total =
      ExpSum(softmax.logits, softmax.max, softmax.scale, 0.0f, scratch.weights.data(), /*block_sums=*/nullptr);
  const double least = (1.0 - top_p) * total / (2.0 * static_cast<double>(softmax.logits.size()));
  CollectAtLeast(softmax.logits, ClampToFloat(softmax.max + std::log(least) / softmax.scale), scratch.keys);
  return total;
}

// Cuts scratch.keys to the fewest, first in rank first, whose weights sum to at least `goal`. A nucleus can be most of
// the vocabulary, so it is not sorted: buckets of like logits are summed from the greatest down, and only the one where
// the sum passes the goal is.
void CutToNucleus(double goal, Scratch& scratch) {
  constexpr int kBucketBits = 12;
  const auto bucket_of = [](RankKey key) { return static_cast<int64_t>(key >> (64 - kBucketBits)); };
  scratch.bucket_sums.assign(1 << kBucketBits, 0.0);
  for (const RankKey key : scratch.keys) scratch.bucket_sums[bucket_of(key)] += scratch.weights[IndexOf(key)];
  double sum = 0.0;
  int64_t bucket = (1 << kBucketBits) - 1;
  while (bucket > 0 && sum + scratch.bucket_sums[bucket] < goal) sum += scratch.bucket_sums[bucket--];

  // Without branches, which would be a coin's toss each.
  scratch.border.resize(scratch.keys.size());
  size_t kept = 0;
  size_t at_border = 0;
  for (const RankKey key : scratch.keys) {
    scratch.keys[kept] = key;
    scratch.border[at_border] = key;
    kept += bucket_of(key) > bucket ? 1 : 0;
    at_border += bucket_of(key) == bucket ? 1 : 0;
  }
  scratch.keys.resize(kept);
  scratch.border.resize(at_border);
  std::sort(scratch.border.begin(), scratch.border.end(), std::greater<>());
  for (const RankKey key : scratch.border) {
    if (sum >= goal && !scratch.keys.empty()) break;
    scratch.keys.push_back(key);
    sum += scratch.weights[IndexOf(key)];
  }
}

// Each step takes the probabilities that the step before left, renormalised.
int32_t DrawFromSome(const Softmax& softmax, const SamplingSettings& s, double uniform, Scratch& scratch) {
  const bool has_top_k = s.top_k > 0 && s.top_k < static_cast<int64_t>(softmax.logits.size());
  const double collected =
      has_top_k ? CollectTopK(softmax, s.top_k, scratch) : CollectNucleusCandidates(softmax, s.top_p, scratch);
  if (s.top_p < 1.0f) CutToNucleus(s.top_p * collected, scratch);
  double total = 0.0;
  scratch.shares.clear();
  for (const RankKey key : scratch.keys) {
    const float weight = scratch.weights[IndexOf(key)];
    scratch.shares.push_back(weight >= s.min_p ? weight : 0.0f);
    total += scratch.shares.back();
  }
  return IndexOf(scratch.keys[IndexAtSum(scratch.shares, uniform * total)]);
}

int32_t Draw(std::span<const float> logits, const SamplingSettings& s, double uniform, Scratch& scratch) {
  const int32_t best = IndexOfMax(logits);
  if (s.temperature == 0.0f) return best;
  const float scale = ClampToFloat(1.0 / double{s.temperature});
  const Softmax softmax{logits, logits[best], scale};
  const bool take_all = s.top_p >= 1.0f && (s.top_k <= 0 || s.top_k >= static_cast<int64_t>(logits.size()));
  return take_all ? DrawFromAll(softmax, s.min_p, uniform, scratch) : DrawFromSome(softmax, s, uniform, scratch);
}

// What the row asks to know of the model's own probabilities.
void Report(std::span<const float> logits, SampleRow& row, Scratch& scratch) {
  const bool wants_token = row.token >= 0 && (row.want_logprob || row.settings == nullptr);
  if (!wants_token && row.top_logprobs <= 0) return;
  const float max = logits[IndexOfMax(logits)];
  const double log_total = std::log(ExpSum(logits, max, 1.0f, 0.0f, nullptr, nullptr));
  const auto logprob = [&](int32_t id) { return ClampToFloat(double{logits[id]} - max - log_total); };
  if (wants_token) row.logprob = logprob(row.token);
  if (row.top_logprobs <= 0) return;
  const int64_t count = std::min<int64_t>(row.top_logprobs, logits.size());
  CollectTop(logits, count, scratch.maxima, scratch.keys);
  std::sort(scratch.keys.begin(), scratch.keys.end(), std::greater<>());
  for (const RankKey key : scratch.keys) row.top.push_back({IndexOf(key), logprob(IndexOf(key))});
}

void SampleOne(SampleRow& row, int32_t vocabulary, Scratch& scratch) {
  const std::span<const float> logits(row.logits, vocabulary);
  row.top.clear();
  row.finite = AllFinite(logits);
  if (!row.finite) return;
  if (row.settings == nullptr) {
    PALIMPSEST_CHECK(row.target < vocabulary);
    row.token = row.target;
  } else {
    const SamplingSettings& settings = *row.settings;
    const double uniform = UniformAt(settings.seed, row.position);
    row.token = Draw(Adjust(logits, settings, row.recent, scratch), settings, uniform, scratch);
  }
  Report(logits, row, scratch);
}

}  // namespace

double UniformAt(uint64_t seed, int64_t position) {
  return static_cast<double>(UniformBits(seed, position) >> 11) * 0x1p-53;
}

void Sample(const ExecContext& ctx, std::span<SampleRow> rows, int32_t vocabulary) {
  BeginSample(ctx, rows, vocabulary);
  FinishSample(ctx, rows, vocabulary);
}

void BeginSample(const ExecContext& ctx, std::span<const SampleRow> rows, int32_t vocabulary) {
  PALIMPSEST_CHECK(vocabulary >= 1);
  if (ctx.device != nullptr) ctx.device->BeginSample(rows, vocabulary);
}

void FinishSample(const ExecContext& ctx, std::span<SampleRow> rows, int32_t vocabulary) {
  if (ctx.device != nullptr) return ctx.device->FinishSample(rows);
  // A row is passed over several times.
  ctx.pool->ParallelFor(rows.size(), RowsPerTask(int64_t{4} * vocabulary), [&](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    for (int64_t r = begin; r < end; ++r) SampleOne(rows[r], vocabulary, scratch);
  });
}

}  // namespace palimpsest
