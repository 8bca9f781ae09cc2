// A block samples one row.
//   1. are all logits finite                                         4. the kept ones' total weight, and the draw
//   2. bias and penalties, onto a copy                               5. log-probabilities that were asked for
//   3. what top-k and top-p keep, as the last rank that is kept
// Weights are integers, 2^40 for the most probable token: their sums are exact, so that no order of threads shows.
// Ranks (logits from the greatest down, equal ones by id) are unique 64-bit keys; the last one kept is found byte by
// byte, from histograms of the keys that agree so far.
#include "kernels/cuda/group.h"
#include "kernels/cuda/math.h"
#include "kernels/sampling/logits_scan.h"
#include "kernels/sampling/sampling_device.h"

namespace palimpsest::cuda {
namespace {

// Threads of a row: many for a large vocabulary; for a small one they would wait for each other most of the time.
constexpr int kMany = 512, kFew = 64;
constexpr int32_t kSmallVocabulary = 4096;

using Word = unsigned long long;  // what 64-bit atomics take

struct SampleShared {
  Word words[kMany / kWarp];  // of sums and maxima
  Word bins[256];
  Word found;
};

__device__ __forceinline__ float ClampToFloat(double value) {
  constexpr double kMax = 3.4028234663852886e38;
  return static_cast<float>(value > kMax ? kMax : value < -kMax ? -kMax : value);
}

template <int kThreads>
__device__ __forceinline__ Word BlockSum(Word value, SampleShared& shared) {
  return JoinGroup<kThreads>(
      value, [](Word a, Word b) { return a + b; }, shared.words);
}
template <int kThreads>
__device__ __forceinline__ Word BlockMax(Word value, SampleShared& shared) {
  return JoinGroup<kThreads>(
      value, [](Word a, Word b) { return a > b ? a : b; }, shared.words);
}

// The greatest key below `limit`.
template <int kThreads>
__device__ __forceinline__ Word GreatestKey(const float* logits, int32_t n, Word limit, SampleShared& shared) {
  Word best = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < n; i += kThreads) {
    const Word key = RankKeyOf(logits[i], i);
    if (key < limit && key > best) best = key;
  }
  return BlockMax<kThreads>(best, shared);
}

// Which tokens a draw is made from, and with what weight.
struct Distribution {
  const float* logits;
  float max;
  float scale;
  float min_p;
  Word last;  // keys from here on are kept

  // Before min-p.
  __device__ __forceinline__ Word WeightOf(float logit) const {
    return static_cast<Word>(static_cast<double>(expf((logit - max) * scale)) * 0x1p40 + 0.5);
  }
  __device__ __forceinline__ Word ShareOf(int32_t i) const {
    if (RankKeyOf(logits[i], i) < last) return 0;
    const float weight = expf((logits[i] - max) * scale);
    return weight >= min_p ? WeightOf(logits[i]) : 0;
  }
};

// The greatest key such that `measure` of it and all greater ones sums to `goal` >= 1 or more; 0 if all do not.
template <int kThreads, typename Measure>
__device__ Word LastKeyFor(const float* logits, int32_t n, Word goal, Measure measure, SampleShared& shared) {
  Word prefix = 0, above = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    __syncthreads();
    for (int bin = static_cast<int>(threadIdx.x); bin < 256; bin += kThreads) shared.bins[bin] = 0;
    __syncthreads();
    const Word known = shift == 56 ? 0 : ~Word{0} << (shift + 8);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < n; i += kThreads) {
      const Word key = RankKeyOf(logits[i], i);
      if ((key & known) != prefix) continue;
      const Word amount = measure(key, logits[i]);
      if (amount > 0) atomicAdd(&shared.bins[key >> shift & 255], amount);
    }
    __syncthreads();
    // Every thread walks down the same bins.
    int bin = 255;
    while (bin > 0 && above + shared.bins[bin] < goal) above += shared.bins[bin--];
    prefix |= static_cast<Word>(bin) << shift;
  }
  return prefix;
}

// Where the running sum of shares, by id, passes `point`, which is below their total. Each warp has a stretch of ids.
template <int kThreads>
__device__ int32_t IndexAt(const Distribution& distribution, int32_t n, Word point, SampleShared& shared) {
  constexpr int kWarps = kThreads / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int32_t stretch = (n + kWarps - 1) / kWarps;
  const int32_t begin = warp * stretch, end = begin + stretch < n ? begin + stretch : n;
  Word sum = 0;
  for (int32_t i = begin + lane; i < end; i += kWarp) sum += distribution.ShareOf(i);
  sum = JoinGroup<kWarp>(
      sum, [](Word a, Word b) { return a + b; }, static_cast<Word*>(nullptr));
  __syncthreads();
  if (lane == 0) shared.words[warp] = sum;
  if (threadIdx.x == 0) shared.found = 0;
  __syncthreads();
  Word before = 0;
  for (int w = 0; w < warp; ++w) before += shared.words[w];
  if (before <= point && point < before + sum) {
    for (int32_t tile = begin; tile < end; tile += kWarp) {
      const Word share = tile + lane < end ? distribution.ShareOf(tile + lane) : 0;
      Word up_to = share;
      for (int delta = 1; delta < kWarp; delta *= 2) {
        const Word other = __shfl_up_sync(kAllLanes, up_to, static_cast<unsigned>(delta));
        if (lane >= delta) up_to += other;
      }
      if (share > 0 && before + up_to - share <= point && point < before + up_to) {
        shared.found = static_cast<Word>(tile + lane);
      }
      before += __shfl_sync(kAllLanes, up_to, kWarp - 1);
      if (before > point) break;
    }
  }
  __syncthreads();
  return static_cast<int32_t>(shared.found);
}

// Bias and penalties, as kernels/sampling/sampling_cpu.cc has them.
template <int kThreads>
__device__ void Adjust(const SampleLaunch& launch, const SampleTask& task) {
  const int thread = static_cast<int>(threadIdx.x);
  float* const adjusted = task.adjusted;
  for (int32_t i = thread; i < launch.vocabulary; i += kThreads) adjusted[i] = task.logits[i];
  __syncthreads();
  // Entries of one id follow each other: the thread of the first does them all.
  for (int32_t b = task.bias_begin + thread; b < task.bias_end; b += kThreads) {
    const int32_t id = launch.biases[b].id;
    if (b > task.bias_begin && launch.biases[b - 1].id == id) continue;
    for (int32_t c = b; c < task.bias_end && launch.biases[c].id == id; ++c) {
      adjusted[id] = ClampToFloat(double{adjusted[id]} + launch.biases[c].bias);
    }
  }
  __syncthreads();
  for (int32_t b = task.recent_begin + thread; b < task.recent_end; b += kThreads) {
    const int32_t id = launch.recent[b];
    if (id < 0 || id >= launch.vocabulary) continue;
    int times_seen = 0;
    bool first = true;
    for (int32_t c = task.recent_begin; c < task.recent_end; ++c) {
      if (launch.recent[c] != id) continue;
      ++times_seen;
      first = first && c >= b;
    }
    if (!first) continue;
    double x = adjusted[id];
    x = x > 0.0 ? x / double{task.repetition_penalty} : x * double{task.repetition_penalty};
    x -= double{task.presence_penalty} + double{task.frequency_penalty} * times_seen;
    adjusted[id] = ClampToFloat(x);
  }
  __syncthreads();
}

template <int kThreads>
__device__ int32_t Draw(const float* logits, int32_t n, const SampleTask& task, SampleShared& shared) {
  const int32_t best = IndexOf(GreatestKey<kThreads>(logits, n, ~Word{0}, shared));
  if (task.scale == 0.0f) return best;
  Distribution distribution{.logits = logits, .max = logits[best], .scale = task.scale, .min_p = task.min_p, .last = 0};
  if (task.top_k > 0) {
    distribution.last = LastKeyFor<kThreads>(
        logits, n, static_cast<Word>(task.top_k), [](Word, float) { return Word{1}; }, shared);
  }
  if (task.top_p < 1.0f) {
    const auto weight_of = [&](Word key, float logit) {
      return key >= distribution.last ? distribution.WeightOf(logit) : 0;
    };
    Word collected = 0;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < n; i += kThreads) {
      collected += weight_of(RankKeyOf(logits[i], i), logits[i]);
    }
    collected = BlockSum<kThreads>(collected, shared);
    const auto goal = static_cast<Word>(static_cast<double>(collected) * double{task.top_p});
    const Word last = LastKeyFor<kThreads>(logits, n, goal > 0 ? goal : 1, weight_of, shared);
    distribution.last = last > distribution.last ? last : distribution.last;
  }
  Word total = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < n; i += kThreads) total += distribution.ShareOf(i);
  total = BlockSum<kThreads>(total, shared);
  return IndexAt<kThreads>(distribution, n, __umul64hi(total, task.uniform), shared);
}

// What the row asks to know of the model's own probabilities.
template <int kThreads>
__device__ void Report(const SampleLaunch& launch, const SampleTask& task, int32_t token, SampleAnswer& answer,
                       SampleShared& shared) {
  const bool wants_token = token >= 0 && task.want_logprob != 0;
  if (!wants_token && task.top_begin == task.top_end) return;
  const float* const logits = task.logits;
  const int32_t n = launch.vocabulary;
  const float max = logits[IndexOf(GreatestKey<kThreads>(logits, n, ~Word{0}, shared))];
  double sum = 0.0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < n; i += kThreads) sum += double{expf(logits[i] - max)};
  sum = JoinGroup<kThreads>(
      sum, [](double a, double b) { return a + b; }, reinterpret_cast<double*>(shared.words));
  const double log_total = log(sum);
  const auto logprob = [&](int32_t id) { return ClampToFloat(double{logits[id]} - max - log_total); };
  if (wants_token && threadIdx.x == 0) answer.logprob = logprob(token);
  Word limit = ~Word{0};
  for (int32_t i = task.top_begin; i < task.top_end; ++i) {
    limit = GreatestKey<kThreads>(logits, n, limit, shared);
    if (threadIdx.x == 0) launch.tops[i] = {IndexOf(limit), logprob(IndexOf(limit))};
  }
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) SampleKernel(SampleLaunch launch) {
  SampleShared& shared = *Shared<SampleShared>();
  const SampleTask task = launch.tasks[blockIdx.x];
  SampleAnswer& answer = launch.answers[blockIdx.x];
  Word wrong = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < launch.vocabulary; i += kThreads) {
    wrong += IsFinite(task.logits[i]) ? 0 : 1;
  }
  const bool finite = BlockSum<kThreads>(wrong, shared) == 0;
  if (threadIdx.x == 0) answer = {.token = -1, .finite = finite ? 1 : 0, .logprob = 0.0f};
  if (!finite) return;
  int32_t token = task.token;
  if (task.draws != 0) {
    if (task.adjusted != nullptr) Adjust<kThreads>(launch, task);
    token = Draw<kThreads>(task.adjusted != nullptr ? task.adjusted : task.logits, launch.vocabulary, task, shared);
  }
  if (threadIdx.x == 0) answer.token = token;
  Report<kThreads>(launch, task, token, answer, shared);
}

}  // namespace

cudaError_t RunSample(const SampleLaunch& launch, const Target& target) {
  const bool small = launch.vocabulary <= kSmallVocabulary;
  return Launch(small ? SampleKernel<kFew> : SampleKernel<kMany>,
                {.grid = dim3(static_cast<unsigned>(launch.rows)),
                 .block = dim3(small ? kFew : kMany),
                 .shared_bytes = sizeof(SampleShared)},
                target, launch);
}

}  // namespace palimpsest::cuda
