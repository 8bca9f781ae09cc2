#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "kernels/common/check.h"
#include "kernels/common/grain.h"
#include "kernels/sampling/logits_scan.h"
#include "kernels/sampling/philox.h"
#include "kernels/sampling/sampling.h"

namespace palimpsest {
namespace {

// Kept by each thread between calls; bounded by the vocabulary.
struct Scratch {
  std::vector<float> adjusted;  // logits after bias and penalties
  std::vector<int32_t> recent;  // penalty window, sorted
  std::vector<float> maxima;    // of CollectTop
  std::vector<RankKey> keys;    // candidates
  std::vector<double> shares;   // weights of the candidates
  std::vector<float> weights;   // of the whole vocabulary
  std::vector<double> block_sums;
};

float ClampToFloat(double value) {
  constexpr double kMax = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value, -kMax, kMax));
}

bool HasPenalties(const SamplingSettings& s) {
  return s.repetition_penalty != 1.0f || s.presence_penalty != 0.0f || s.frequency_penalty != 0.0f;
}

// The logits after bias and penalties: `logits` itself where nothing changes them.
std::span<const float> Adjust(std::span<const float> logits, const SamplingSettings& s, std::span<const int32_t> recent,
                              Scratch& scratch) {
  const bool penalize = !recent.empty() && HasPenalties(s);
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

// Softmax weights at a temperature, relative to the most probable token's.
struct Softmax {
  std::span<const float> logits;
  float max;
  float scale;  // 1 / temperature

  double WeightOf(RankKey key) const { return std::exp((double{logits[IndexOf(key)]} - max) * scale); }
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

// Fills scratch.keys with a set that holds the nucleus, and returns the sum of all weights, also of those left out.
// Each token left out has less than 1/(2 n) of the (1 - top_p) that the nucleus may lack, so all of them together lack
// less.
double CollectNucleusCandidates(const Softmax& softmax, float top_p, Scratch& scratch) {
  const double total = ExpSum(softmax.logits, softmax.max, softmax.scale, 0.0f, nullptr, nullptr);
  const double least = (1.0 - top_p) * total / (2.0 * static_cast<double>(softmax.logits.size()));
  CollectAtLeast(softmax.logits, ClampToFloat(softmax.max + std::log(least) / softmax.scale), scratch.keys);
  return total;
}

// Cuts `keys` to the fewest, first in rank first, whose weights sum to at least `goal`. Sorts only as far as it must.
void CutToNucleus(const Softmax& softmax, double goal, std::vector<RankKey>& keys) {
  double sum = 0.0;
  size_t sorted = 0;
  for (size_t step = 64; sorted < keys.size(); step *= 4) {
    const size_t end = std::min(keys.size(), sorted + step);
    if (end < keys.size()) {
      std::nth_element(keys.begin() + sorted, keys.begin() + end, keys.end(), std::greater<>());
    }
    std::sort(keys.begin() + sorted, keys.begin() + end, std::greater<>());
    while (sorted < end) {
      sum += softmax.WeightOf(keys[sorted++]);
      if (sum >= goal) return keys.resize(sorted);
    }
  }
}

// Each step takes the probabilities that the step before left, renormalised.
int32_t DrawFromSome(const Softmax& softmax, const SamplingSettings& s, double uniform, Scratch& scratch) {
  double total = 0.0;
  if (s.top_k > 0 && s.top_k < static_cast<int64_t>(softmax.logits.size())) {
    CollectTop(softmax.logits, s.top_k, scratch.maxima, scratch.keys);
    if (s.top_p < 1.0f) {
      for (const RankKey key : scratch.keys) total += softmax.WeightOf(key);
    }
  } else {
    total = CollectNucleusCandidates(softmax, s.top_p, scratch);
  }
  if (s.top_p < 1.0f) CutToNucleus(softmax, s.top_p * total, scratch.keys);

  total = 0.0;
  scratch.shares.clear();
  for (const RankKey key : scratch.keys) {
    const double weight = softmax.WeightOf(key);
    scratch.shares.push_back(weight >= s.min_p ? weight : 0.0);
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
  const auto counter = static_cast<uint64_t>(position);
  const auto bits = Philox4x32({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0},
                               {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return static_cast<double>(uint64_t{bits[0]} << 21 | bits[1] >> 11) * 0x1p-53;
}

void Sample(const ExecContext& ctx, std::span<SampleRow> rows, int32_t vocabulary) {
  PALIMPSEST_CHECK(vocabulary >= 1);
  // A row is passed over several times.
  ctx.pool->ParallelFor(rows.size(), RowsPerTask(int64_t{4} * vocabulary), [&](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    for (int64_t r = begin; r < end; ++r) SampleOne(rows[r], vocabulary, scratch);
  });
}

}  // namespace palimpsest
