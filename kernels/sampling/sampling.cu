// A block samples one row.
//   1. are all logits finite, and which is the greatest              4. the kept ones' total weight, and the draw
//   2. bias and penalties, onto a copy                               5. log-probabilities that were asked for
//   3. what top-k and top-p keep, as the last rank that is kept
// Weights are integers, 2^40 for the most probable token: their sums are exact, so that no order of threads shows.
// Ranks (logits from the greatest down, equal ones by id) are unique 64-bit keys. The last one kept is looked for among
// those whose logits lie about as far below the greatest: a histogram over that distance tells how far. Where too many
// do, it is found digit by digit, from histograms of the keys that agree so far.
#include "kernels/cuda/group.h"
#include "kernels/cuda/math.h"
#include "kernels/sampling/logits_scan.h"
#include "kernels/sampling/sampling_device.h"

namespace palimpsest::cuda {
namespace {

// Threads of a row: many for a large vocabulary; for a small one they would wait for each other most of the time.
constexpr int kMany = 1024, kFew = 64;
constexpr int32_t kSmallVocabulary = 4096;

constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr unsigned kListed = 1024;  // candidates for the last rank

using Word = unsigned long long;  // what 64-bit atomics take

// The first bin up to which amounts sum to a goal, and the sum of those before it.
struct Crossing {
  int bin;
  Word before;
};

struct SampleShared {
  Word words[kMany / kWarp];  // of sums and maxima
  Word found;
  Crossing crossing;
  unsigned listed;
  // Greater keys in lower bins. Weights are kept in halves, since 64-bit atomics on shared memory are loops.
  unsigned counts[kBins], low[kBins], high[kBins];
  Word keys[kListed], weights[kListed];

  __device__ __forceinline__ Word Amount(int bin, bool by_weight) const {
    return by_weight ? static_cast<Word>(high[bin]) << 32 | low[bin] : counts[bin];
  }
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

// The sum of the values of the threads before this one.
template <int kThreads>
__device__ __forceinline__ Word BlockSumBefore(Word value, SampleShared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  Word up_to = value;
#pragma unroll
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const Word other = __shfl_up_sync(kAllLanes, up_to, static_cast<unsigned>(delta));
    if (lane >= delta) up_to += other;
  }
  __syncthreads();  // who reads the words of the sum before
  if (lane == kWarp - 1) shared.words[warp] = up_to;
  __syncthreads();
  Word before = up_to - value;
  for (int w = 0; w < warp; ++w) before += shared.words[w];
  return before;
}

// Calls take(id, logit) for ids [begin, end), 16 bytes of memory at a time, shared out among kThreads threads.
template <int kThreads, typename Take>
__device__ __forceinline__ void ForEachLogit(const float* logits, int32_t begin, int32_t end, int thread, Take take) {
  constexpr int kAhead = 4;  // loads in flight
  const auto misaligned = static_cast<int32_t>(reinterpret_cast<uintptr_t>(logits + begin) / sizeof(float) % 4);
  const int32_t to_aligned = (4 - misaligned) % 4, size = end > begin ? end - begin : 0;
  const int32_t head = to_aligned < size ? to_aligned : size, fours = (size - head) / 4;
  if (thread < head) take(begin + thread, logits[begin + thread]);
  const int32_t body = begin + head;
  const auto* const from = reinterpret_cast<const float4*>(logits + body);
  for (int32_t i = thread; i < fours; i += kAhead * kThreads) {
    float4 four[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      if (i + n * kThreads < fours) four[n] = from[i + n * kThreads];
    }
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      const int32_t id = body + 4 * (i + n * kThreads);
      if (i + n * kThreads >= fours) break;
      take(id, four[n].x);
      take(id + 1, four[n].y);
      take(id + 2, four[n].z);
      take(id + 3, four[n].w);
    }
  }
  const int32_t tail = body + 4 * fours + thread;
  if (tail < end) take(tail, logits[tail]);
}

// A row's logits, as all threads of its block see them.
struct Row {
  const float* logits;
  int32_t n;

  template <int kThreads, typename Take>
  __device__ __forceinline__ void ForEach(Take take) const {
    ForEachLogit<kThreads>(logits, 0, n, static_cast<int>(threadIdx.x), take);
  }
};

// x 2^40, rounded to nearest, for x from 0 to 1: as static_cast<Word>(double{x} * 0x1p40 + 0.5), in integers.
__device__ __forceinline__ Word FixedPoint(float x) {
  const uint32_t bits = __float_as_uint(x);
  const int shift = static_cast<int>(bits >> 23) - (127 + 23 - 40);
  const uint32_t mantissa = (bits & 0x7FFFFFu) | 0x800000u;
  if (shift >= 0) return static_cast<Word>(mantissa) << shift;
  return shift < -24 ? 0 : (mantissa + (1u << (-shift - 1))) >> -shift;
}

// Which tokens a draw is made from, and with what weight.
struct Distribution {
  float max;
  float scale;
  float min_p = 0.0f;
  Word last = 0;  // keys from here on are kept

  __device__ __forceinline__ float Relative(float logit) const { return expf((logit - max) * scale); }
  // Before min-p.
  __device__ __forceinline__ Word WeightOf(float logit) const { return FixedPoint(Relative(logit)); }
  __device__ __forceinline__ Word ShareOf(int32_t id, float logit) const {
    if (RankKeyOf(logit, id) < last) return 0;
    const float weight = Relative(logit);
    return weight >= min_p ? FixedPoint(weight) : 0;
  }
  // By the distance from the greatest logit, in steps of which a factor of e has 64 or more.
  __device__ __forceinline__ int BinOf(float logit) const {
    const float width = 64.0f * (scale > 1.0f ? 1.0f : scale < 0.25f ? 0.25f : scale);
    const float distance = (max - logit) * width;
    return distance < kBins - 1 ? static_cast<int>(distance) : kBins - 1;
  }
};

// A thread's additions to the bins. Those that follow each other in one bin are made together: where most keys are in
// one bin, threads would wait for each other.
class Tally {
 public:
  __device__ __forceinline__ explicit Tally(SampleShared& shared) : shared_(shared) {}

  __device__ __forceinline__ void Add(int bin, Word weight) {
    if (bin != bin_) {
      Flush();
      bin_ = bin;
      count_ = 0;
      weight_ = 0;
    }
    ++count_;
    weight_ += weight;
  }

  __device__ __forceinline__ void Flush() {
    if (bin_ < 0) return;
    atomicAdd(&shared_.counts[bin_], count_);
    const auto low = static_cast<unsigned>(weight_);
    auto high = static_cast<unsigned>(weight_ >> 32);
    if (low != 0 && atomicAdd(&shared_.low[bin_], low) > ~low) ++high;  // carried
    if (high != 0) atomicAdd(&shared_.high[bin_], high);
  }

 private:
  SampleShared& shared_;
  int bin_ = -1;
  unsigned count_ = 0;
  Word weight_ = 0;
};

// Fills the bins: add(tally, id, logit) says where to.
template <int kThreads, typename Add>
__device__ __forceinline__ void FillBins(const Row& row, Add add, SampleShared& shared) {
  __syncthreads();
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) {
    shared.counts[bin] = shared.low[bin] = shared.high[bin] = 0;
  }
  __syncthreads();
  Tally tally(shared);
  row.ForEach<kThreads>([&](int32_t id, float logit) { add(tally, id, logit); });
  tally.Flush();
  __syncthreads();
}

// Bins of the distance from the greatest logit.
template <int kThreads>
__device__ __forceinline__ void FillBinsByDistance(const Row& row, const Distribution& distribution, bool weights,
                                                   SampleShared& shared) {
  FillBins<kThreads>(
      row,
      [&](Tally& tally, int32_t, float logit) {
        tally.Add(distribution.BinOf(logit), weights ? distribution.WeightOf(logit) : 0);
      },
      shared);
}

// Of a goal that is 1 or more, and that all bins together reach.
template <int kThreads>
__device__ __forceinline__ Crossing FindCrossing(Word goal, bool by_weight, SampleShared& shared) {
  constexpr int kEach = kBins / kThreads;
  const int first = static_cast<int>(threadIdx.x) * kEach;
  Word sum = 0;
  for (int i = 0; i < kEach; ++i) sum += shared.Amount(first + i, by_weight);
  Word before = BlockSumBefore<kThreads>(sum, shared);
  if (before < goal && goal <= before + sum) {
    int bin = first;
    for (; before + shared.Amount(bin, by_weight) < goal; ++bin) before += shared.Amount(bin, by_weight);
    shared.crossing = {bin, before};
  }
  __syncthreads();
  return shared.crossing;
}

// What a cut counts: every key as one, or keys from `least` on by their weight.
struct Measure {
  bool by_weight;
  Word least;

  __device__ __forceinline__ Word Of(Word key, Word weight) const { return !by_weight ? 1 : key >= least ? weight : 0; }
};

// The greatest key such that it and all greater ones come to `goal` or more, whatever the keys are.
template <int kThreads>
__device__ Word LastKeyByDigits(const Row& row, const Distribution& distribution, Measure measure, Word goal,
                                SampleShared& shared) {
  Word prefix = 0;
  for (int known = 0; known < 64; known += kDigitBits) {
    const int shift = 64 - known < kDigitBits ? 0 : 64 - known - kDigitBits;
    const Word mask = known == 0 ? 0 : ~Word{0} << (64 - known);
    FillBins<kThreads>(
        row,
        [&](Tally& tally, int32_t id, float logit) {
          const Word key = RankKeyOf(logit, id);
          if ((key & mask) != prefix) return;
          const Word weight = measure.by_weight ? measure.Of(key, distribution.WeightOf(logit)) : 0;
          tally.Add(kBins - 1 - static_cast<int>((key & ~mask) >> shift), weight);
        },
        shared);
    const Crossing crossing = FindCrossing<kThreads>(goal, measure.by_weight, shared);
    goal -= crossing.before;
    prefix |= static_cast<Word>(kBins - 1 - crossing.bin) << shift;
  }
  return prefix;
}

// The same, from bins by distance, which it leaves as they are unless it returns false in `bins_left`.
template <int kThreads>
__device__ Word LastKey(const Row& row, const Distribution& distribution, Measure measure, Word goal, bool& bins_left,
                        SampleShared& shared) {
  if (threadIdx.x == 0) shared.listed = 0;
  const Crossing crossing = FindCrossing<kThreads>(goal, measure.by_weight, shared);
  row.ForEach<kThreads>([&](int32_t id, float logit) {
    if (distribution.BinOf(logit) != crossing.bin) return;
    const unsigned i = atomicAdd(&shared.listed, 1u);
    if (i >= kListed) return;
    shared.keys[i] = RankKeyOf(logit, id);
    shared.weights[i] = measure.by_weight ? distribution.WeightOf(logit) : 1;
  });
  __syncthreads();
  const unsigned listed = shared.listed;
  bins_left = listed <= kListed;
  if (!bins_left) return LastKeyByDigits<kThreads>(row, distribution, measure, goal, shared);
  for (unsigned i = threadIdx.x; i < listed; i += kThreads) {
    const Word key = shared.keys[i], mine = measure.Of(key, shared.weights[i]);
    Word sum = crossing.before;
    for (unsigned j = 0; j < listed; ++j) {
      if (shared.keys[j] >= key) sum += measure.Of(shared.keys[j], shared.weights[j]);
    }
    if (sum >= goal && sum - mine < goal) shared.found = key;
  }
  __syncthreads();
  return shared.found;
}

// The last key that top-k and top-p keep.
template <int kThreads>
__device__ Word LastKept(const Row& row, const Distribution& distribution, int32_t top_k, float top_p,
                         SampleShared& shared) {
  Word last = 0;
  bool bins_left = false;
  const bool by_weight = top_p < 1.0f;
  if (top_k > 0) {
    FillBinsByDistance<kThreads>(row, distribution, by_weight, shared);
    last = LastKey<kThreads>(row, distribution, {.by_weight = false, .least = 0}, static_cast<Word>(top_k), bins_left,
                             shared);
  }
  if (!by_weight) return last;
  if (!bins_left) FillBinsByDistance<kThreads>(row, distribution, true, shared);
  Word collected = 0;
  if (last == 0) {
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) collected += shared.Amount(bin, true);
  } else {
    row.ForEach<kThreads>([&](int32_t id, float logit) {
      if (RankKeyOf(logit, id) >= last) collected += distribution.WeightOf(logit);
    });
  }
  collected = BlockSum<kThreads>(collected, shared);
  const auto goal = static_cast<Word>(static_cast<double>(collected) * double{top_p});
  const Word nucleus =
      LastKey<kThreads>(row, distribution, {.by_weight = true, .least = last}, goal > 0 ? goal : 1, bins_left, shared);
  return nucleus > last ? nucleus : last;
}

// Draws: where the running sum of shares, by id, passes the uniform variate's part of their total. Each warp has a
// stretch of ids; the one where that is, all threads share out once more.
template <int kThreads>
__device__ int32_t Draw(const Row& row, const Distribution& distribution, Word uniform, SampleShared& shared) {
  constexpr int kWarps = kThreads / kWarp;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int32_t stretch = (row.n + kWarps - 1) / kWarps;
  const auto end_of = [&](int32_t begin, int32_t size) { return begin + size < row.n ? begin + size : row.n; };
  Word sum = 0;
  ForEachLogit<kWarp>(row.logits, warp * stretch, end_of(warp * stretch, stretch), lane,
                      [&](int32_t id, float logit) { sum += distribution.ShareOf(id, logit); });
  sum = JoinGroup<kWarp>(
      sum, [](Word a, Word b) { return a + b; }, static_cast<Word*>(nullptr));
  __syncthreads();
  if (lane == 0) shared.words[warp] = sum;
  __syncthreads();
  Word total = 0;
  for (int w = 0; w < kWarps; ++w) total += shared.words[w];
  const Word point = __umul64hi(total, uniform);
  Word before = 0;
  int chosen = 0;
  for (; before + shared.words[chosen] <= point; ++chosen) before += shared.words[chosen];

  const int32_t each = (stretch + kThreads - 1) / kThreads;
  const int32_t stretch_end = end_of(chosen * stretch, stretch), begin = chosen * stretch + thread * each;
  const int32_t end = begin + each < stretch_end ? begin + each : stretch_end;
  sum = 0;
  for (int32_t i = begin; i < end; ++i) sum += distribution.ShareOf(i, row.logits[i]);
  before += BlockSumBefore<kThreads>(sum, shared);
  if (before <= point && point < before + sum) {
    int32_t i = begin;
    for (;; ++i) {
      before += distribution.ShareOf(i, row.logits[i]);
      if (before > point) break;
    }
    shared.found = static_cast<Word>(i);
  }
  __syncthreads();
  return static_cast<int32_t>(shared.found);
}

// The greatest key of a row.
template <int kThreads>
__device__ __forceinline__ Word GreatestKey(const Row& row, SampleShared& shared) {
  Word best = 0;
  row.ForEach<kThreads>([&](int32_t id, float logit) {
    const Word key = RankKeyOf(logit, id);
    if (key > best) best = key;
  });
  return BlockMax<kThreads>(best, shared);
}

// Bias and penalties, as kernels/sampling/sampling_cpu.cc has them, on a copy of the logits.
template <int kThreads>
__device__ void Adjust(const SampleLaunch& launch, const SampleTask& task) {
  const int thread = static_cast<int>(threadIdx.x);
  float* const adjusted = task.adjusted;
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

// The token that the row asks for; `best` is the first in rank.
template <int kThreads>
__device__ int32_t TokenOf(const Row& row, const SampleTask& task, Word best, SampleShared& shared) {
  const int32_t id = IndexOf(best);
  if (task.scale == 0.0f) return id;
  Distribution distribution{.max = row.logits[id], .scale = task.scale, .min_p = task.min_p};
  if (task.top_k > 0 || task.top_p < 1.0f) {
    distribution.last = LastKept<kThreads>(row, distribution, task.top_k, task.top_p, shared);
  }
  return Draw<kThreads>(row, distribution, task.uniform, shared);
}

// What the row asks to know of the model's own probabilities.
template <int kThreads>
__device__ void Report(const SampleLaunch& launch, const SampleTask& task, Word best, int32_t token,
                       SampleAnswer& answer, SampleShared& shared) {
  const bool wants_token = token >= 0 && task.want_logprob != 0;
  const int32_t tops = task.top_end - task.top_begin;
  if (!wants_token && tops == 0) return;
  const Row row{task.logits, launch.vocabulary};
  const Distribution own{.max = row.logits[IndexOf(best)], .scale = 1.0f};
  Word sum = 0;
  row.ForEach<kThreads>([&](int32_t, float logit) { sum += own.WeightOf(logit); });
  const double log_total = log(static_cast<double>(BlockSum<kThreads>(sum, shared)) * 0x1p-40);
  const auto logprob = [&](int32_t id) { return ClampToFloat(double{row.logits[id]} - own.max - log_total); };
  if (wants_token && threadIdx.x == 0) answer.logprob = logprob(token);
  if (tops == 0) return;
  // In stretches of ranks that can be listed, one as a rule.
  for (int32_t first = 0; first < tops; first += static_cast<int32_t>(kListed)) {
    const int32_t left = tops - first;
    const int32_t end = left < static_cast<int32_t>(kListed) ? tops : first + static_cast<int32_t>(kListed);
    const Word above = best;
    FillBinsByDistance<kThreads>(row, own, false, shared);
    bool bins_left = false;
    const Word last =
        LastKey<kThreads>(row, own, {.by_weight = false, .least = 0}, static_cast<Word>(end), bins_left, shared);
    if (threadIdx.x == 0) shared.listed = 0;
    __syncthreads();
    row.ForEach<kThreads>([&](int32_t id, float logit) {
      const Word key = RankKeyOf(logit, id);
      if (key >= last && (first == 0 || key < above)) shared.keys[atomicAdd(&shared.listed, 1u)] = key;
    });
    __syncthreads();
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < end - first; i += kThreads) {
      const Word key = shared.keys[i];
      int32_t rank = first;
      for (int32_t j = 0; j < end - first; ++j) rank += shared.keys[j] > key ? 1 : 0;
      launch.tops[task.top_begin + rank] = {IndexOf(key), logprob(IndexOf(key))};
    }
    best = last;
    __syncthreads();
  }
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) SampleKernel(SampleLaunch launch) {
  SampleShared& shared = *Shared<SampleShared>();
  const SampleTask task = launch.tasks[blockIdx.x];
  SampleAnswer& answer = launch.answers[blockIdx.x];
  const Row own{task.logits, launch.vocabulary};
  const bool adjusts = task.draws != 0 && task.adjusted != nullptr;
  Word best = 0;
  bool finite = true;
  own.ForEach<kThreads>([&](int32_t id, float logit) {
    const Word key = RankKeyOf(logit, id);
    if (key > best) best = key;
    finite = finite && IsFinite(logit);
    if (adjusts) task.adjusted[id] = logit;
  });
  best = BlockMax<kThreads>(finite ? best : ~Word{0}, shared);  // no finite logit has that key
  finite = best != ~Word{0};
  if (threadIdx.x == 0) answer = {.token = -1, .finite = finite ? 1 : 0, .logprob = 0.0f};
  if (!finite) return;
  int32_t token = task.token;
  if (adjusts) {
    Adjust<kThreads>(launch, task);
    const Row adjusted{task.adjusted, launch.vocabulary};
    token = TokenOf<kThreads>(adjusted, task, GreatestKey<kThreads>(adjusted, shared), shared);
  } else if (task.draws != 0) {
    token = TokenOf<kThreads>(own, task, best, shared);
  }
  if (threadIdx.x == 0) answer.token = token;
  Report<kThreads>(launch, task, best, token, answer, shared);
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
