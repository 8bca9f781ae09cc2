// A row is sampled by one block, or, where the vocabulary is large and rows are few, by several, each with a part of
// the ids. Its phases, between which what a block found goes to memory that all of them see, are then launches of their
// own:
//   kScan         are all logits finite; bias and penalties, onto a copy; the greatest logit
//   kCount        a histogram of the logits over their distance from the greatest
//   kListFirst    candidates for the last rank that top-k keeps, or top-p where there is no top-k
//   kListSecond   for the last rank that top-p keeps of those
//   kSum          the kept ones' total weight
//   kAnswer       the draw, and log-probabilities that were asked for
// Weights are integers, 2^40 for the most probable token: their sums are exact, so that neither the order of threads
// nor the number of blocks shows. Ranks (logits from the greatest down, equal ones by id) are unique 64-bit keys. The
// histogram tells in which bin the last one kept is; what else is there is listed and ranked. Where that is too much,
// the key is found digit by digit, from histograms of the keys that agree so far.
#include "kernels/cuda/group.h"
#include "kernels/cuda/math.h"
#include "kernels/sampling/logits_scan.h"
#include "kernels/sampling/sampling_device.h"

namespace palimpsest::cuda {
namespace {

// Threads of a row: many for a large vocabulary, but so few that what each of them keeps stays in registers; for a
// small one they would wait for each other most of the time.
constexpr int kMany = 512, kFew = 64;
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

// What a cut counts: every key as one, or keys from `least` on by their weight.
struct Measure {
  bool by_weight;
  Word least;

  __device__ __forceinline__ Word Of(Word key, Word weight) const { return !by_weight ? 1 : key >= least ? weight : 0; }
};

// Keeps the greatest key such that it and all greater ones come to `goal` or more, and those.
struct Cut {
  Measure measure;
  Word goal;
  Crossing crossing;
};

// What the blocks of a row tell each other.
struct SampleFindings {
  Word own_best[kMostSampleParts];  // greatest keys; ~0: not finite, which no finite logit has
  Word best[kMostSampleParts];      // of what is drawn from
  Word share[kMostSampleParts];
  Word own_weight[kMostSampleParts];
  Cut cuts[2];
  unsigned listed[2];
  Word last;
};

// Of a row that several blocks sample.
struct SampleScratch {
  SampleFindings findings;
  unsigned counts[kBins];
  Word weights[kBins];
  Word keys[2][kListed];
};

struct SampleShared {
  SampleFindings findings;    // of a row that one block samples
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
  constexpr int kAhead = 8;  // loads in flight
  const auto misaligned = static_cast<int32_t>(reinterpret_cast<uintptr_t>(logits + begin) / sizeof(float) % 4);
  const int32_t to_aligned = (4 - misaligned) % 4, size = end > begin ? end - begin : 0;
  const int32_t head = to_aligned < size ? to_aligned : size, fours = (size - head) / 4;
  if (thread < head) take(begin + thread, logits[begin + thread]);
  const int32_t body = begin + head;
  const auto* const from = Global(reinterpret_cast<const float4*>(logits + body));
  for (int32_t i = thread; i < fours; i += kAhead * kThreads) {
    float4 four[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      // The last one again behind the end: a load under a condition would wait for those before it.
      four[n] = from[i + n * kThreads < fours ? i + n * kThreads : fours - 1];
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

// Some of a row's logits, as all threads of a block see them.
struct Ids {
  const float* logits;
  int32_t begin;
  int32_t end;

  template <int kThreads, typename Take>
  __device__ __forceinline__ void ForEach(Take take) const {
    ForEachLogit<kThreads>(logits, begin, end, static_cast<int>(threadIdx.x), take);
  }
};

// Of a key, with 0 for -0.
__device__ __forceinline__ float LogitOf(Word key) {
  const auto ascending = static_cast<uint32_t>(key >> 32);
  return __uint_as_float((ascending & 0x80000000u) != 0 ? ascending & 0x7FFFFFFFu : ~ascending);
}

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
__device__ __forceinline__ void FillBins(const Ids& ids, Add add, SampleShared& shared) {
  __syncthreads();
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) {
    shared.counts[bin] = shared.low[bin] = shared.high[bin] = 0;
  }
  __syncthreads();
  Tally tally(shared);
  ids.ForEach<kThreads>([&](int32_t id, float logit) { add(tally, id, logit); });
  tally.Flush();
  __syncthreads();
}

// Bins of the distance from the greatest logit.
template <int kThreads>
__device__ __forceinline__ void FillBinsByDistance(const Ids& ids, const Distribution& distribution, bool weights,
                                                   SampleShared& shared) {
  FillBins<kThreads>(
      ids,
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

// The last key that a cut keeps, whatever the keys are. The bins are lost.
template <int kThreads>
__device__ Word LastKeyByDigits(const Ids& all, const Distribution& distribution, const Cut& cut,
                                SampleShared& shared) {
  Word prefix = 0, goal = cut.goal;
  for (int known = 0; known < 64; known += kDigitBits) {
    const int shift = 64 - known < kDigitBits ? 0 : 64 - known - kDigitBits;
    const Word mask = known == 0 ? 0 : ~Word{0} << (64 - known);
    FillBins<kThreads>(
        all,
        [&](Tally& tally, int32_t id, float logit) {
          const Word key = RankKeyOf(logit, id);
          if ((key & mask) != prefix) return;
          const Word weight = cut.measure.by_weight ? cut.measure.Of(key, distribution.WeightOf(logit)) : 0;
          tally.Add(kBins - 1 - static_cast<int>((key & ~mask) >> shift), weight);
        },
        shared);
    const Crossing crossing = FindCrossing<kThreads>(goal, cut.measure.by_weight, shared);
    goal -= crossing.before;
    prefix |= static_cast<Word>(kBins - 1 - crossing.bin) << shift;
  }
  return prefix;
}

// Lists the keys of a bin; `listed` says how many there are, which may be more than kListed.
template <int kThreads>
__device__ __forceinline__ void List(const Ids& ids, const Distribution& distribution, int bin, Word* keys,
                                     unsigned* listed) {
  ids.ForEach<kThreads>([&](int32_t id, float logit) {
    if (distribution.BinOf(logit) != bin) return;
    const unsigned i = atomicAdd(listed, 1u);
    if (i < kListed) keys[i] = RankKeyOf(logit, id);
  });
}

// The last key that a cut keeps, which is among the first `listed` of shared.keys.
template <int kThreads>
__device__ __forceinline__ Word LastListed(const Distribution& distribution, const Cut& cut, unsigned listed,
                                           SampleShared& shared) {
  __syncthreads();
  for (unsigned i = threadIdx.x; i < listed; i += kThreads) {
    const Word key = shared.keys[i];
    shared.weights[i] = cut.measure.by_weight ? cut.measure.Of(key, distribution.WeightOf(LogitOf(key))) : 1;
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < listed; i += kThreads) {
    const Word key = shared.keys[i];
    Word sum = cut.crossing.before;
    for (unsigned j = 0; j < listed; ++j) {
      if (shared.keys[j] >= key) sum += shared.weights[j];
    }
    if (sum >= cut.goal && sum - shared.weights[i] < cut.goal) shared.found = key;
  }
  __syncthreads();
  return shared.found;
}

// Where the running sum of shares, by id, passes `point`; `before` is that of the ids before. Each warp has a stretch
// of ids; the one where that is, all threads share out once more. `point_of` gives the point, from the sum of all
// shares.
template <int kThreads, typename PointOf>
__device__ int32_t IndexAt(const Ids& ids, const Distribution& distribution, Word before, PointOf point_of,
                           SampleShared& shared) {
  constexpr int kWarps = kThreads / kWarp;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int32_t stretch = (ids.end - ids.begin + kWarps - 1) / kWarps;
  const auto end_of = [&](int32_t begin, int32_t size) { return begin + size < ids.end ? begin + size : ids.end; };
  const int32_t mine = ids.begin + warp * stretch;
  Word sum = 0;
  ForEachLogit<kWarp>(ids.logits, mine, end_of(mine, stretch), lane,
                      [&](int32_t id, float logit) { sum += distribution.ShareOf(id, logit); });
  sum = JoinGroup<kWarp>(
      sum, [](Word a, Word b) { return a + b; }, static_cast<Word*>(nullptr));
  __syncthreads();
  if (lane == 0) shared.words[warp] = sum;
  __syncthreads();
  Word total = 0;
  for (int w = 0; w < kWarps; ++w) total += shared.words[w];
  const Word point = point_of(total);
  int chosen = 0;
  for (; chosen < kWarps - 1 && before + shared.words[chosen] <= point; ++chosen) before += shared.words[chosen];

  const int32_t each = (stretch + kThreads - 1) / kThreads, first = ids.begin + chosen * stretch;
  const int32_t begin = first + thread * each, stretch_end = end_of(first, stretch);
  const int32_t end = begin + each < stretch_end ? begin + each : stretch_end;
  sum = 0;
  for (int32_t i = begin; i < end; ++i) sum += distribution.ShareOf(i, ids.logits[i]);
  before += BlockSumBefore<kThreads>(sum, shared);
  if (before <= point && point < before + sum) {
    int32_t i = begin;
    for (;; ++i) {
      before += distribution.ShareOf(i, ids.logits[i]);
      if (before > point) break;
    }
    shared.found = static_cast<Word>(i);
  }
  __syncthreads();
  return static_cast<int32_t>(shared.found);
}

// Bias and penalties, as kernels/sampling/sampling_cpu.cc has them, on a copy of the logits; of these ids only.
template <int kThreads>
__device__ void Adjust(const SampleLaunch& launch, const SampleTask& task, int32_t first_id, int32_t end_id) {
  const int thread = static_cast<int>(threadIdx.x);
  float* const adjusted = task.adjusted;
  __syncthreads();
  // Entries of one id follow each other: the thread of the first does them all.
  for (int32_t b = task.bias_begin + thread; b < task.bias_end; b += kThreads) {
    const int32_t id = launch.biases[b].id;
    if (id < first_id || id >= end_id || (b > task.bias_begin && launch.biases[b - 1].id == id)) continue;
    for (int32_t c = b; c < task.bias_end && launch.biases[c].id == id; ++c) {
      adjusted[id] = ClampToFloat(double{adjusted[id]} + launch.biases[c].bias);
    }
  }
  __syncthreads();
  for (int32_t b = task.recent_begin + thread; b < task.recent_end; b += kThreads) {
    const int32_t id = launch.recent[b];
    if (id < first_id || id >= end_id) continue;
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

// What a block does of its row.
template <int kThreads>
class RowSampler {
 public:
  __device__ __forceinline__ RowSampler(const SampleLaunch& launch, SampleShared& shared)
      : launch_(launch),
        task_(launch.tasks[blockIdx.x]),
        shared_(shared),
        scratch_(launch.parts == 1 ? nullptr : static_cast<SampleScratch*>(launch.scratch) + blockIdx.x),
        findings_(launch.parts == 1 ? shared.findings : scratch_->findings),
        adjusts_(task_.draws != 0 && task_.adjusted != nullptr),
        part_(static_cast<int>(blockIdx.y)) {
    const int32_t each = ((launch.vocabulary + launch.parts - 1) / launch.parts + 3) / 4 * 4, begin = part_ * each;
    begin_ = begin < launch.vocabulary ? begin : launch.vocabulary;
    end_ = launch.vocabulary - begin_ < each ? launch.vocabulary : begin_ + each;
  }

  __device__ __forceinline__ void Scan() {
    const auto thread = static_cast<int>(threadIdx.x);
    Word own_best = 0;
    bool finite = true;
    float* const adjusted = adjusts_ ? Global(task_.adjusted) : nullptr;
    Ids{task_.logits, begin_, end_}.ForEach<kThreads>([&](int32_t id, float logit) {
      const Word key = RankKeyOf(logit, id);
      if (key > own_best) own_best = key;
      finite = finite && IsFinite(logit);
      if (adjusted != nullptr) adjusted[id] = logit;
    });
    own_best = BlockMax<kThreads>(finite ? own_best : ~Word{0}, shared_);
    Word best = own_best;
    if (adjusts_ && own_best != ~Word{0}) {
      Adjust<kThreads>(launch_, task_, begin_, end_);
      best = 0;
      Ids{task_.adjusted, begin_, end_}.ForEach<kThreads>([&](int32_t id, float logit) {
        const Word key = RankKeyOf(logit, id);
        if (key > best) best = key;
      });
      best = BlockMax<kThreads>(best, shared_);
    }
    if (thread == 0) {
      findings_.own_best[part_] = own_best;
      findings_.best[part_] = best;
      if (part_ == 0) findings_.listed[0] = findings_.listed[1] = 0;
    }
    if (scratch_ == nullptr) return;
    for (int bin = part_ * kThreads + thread; bin < kBins; bin += launch_.parts * kThreads) {
      scratch_->counts[bin] = 0;
      scratch_->weights[bin] = 0;
    }
  }

  // After Scan and a wait for all blocks. False: the row is not finite, or, as far as this block goes, done.
  __device__ __forceinline__ bool Prepare() {
    Word own_best = 0, best = 0;
    for (int part = 0; part < launch_.parts; ++part) {
      if (findings_.own_best[part] > own_best) own_best = findings_.own_best[part];
      if (findings_.best[part] > best) best = findings_.best[part];
    }
    own_best_ = own_best;
    best_ = best;
    distribution_ = {.max = LogitOf(best), .scale = task_.scale, .min_p = task_.min_p};
    return own_best != ~Word{0};
  }

  __device__ __forceinline__ void Count() {
    if (!Cuts()) return;
    FillBinsByDistance<kThreads>(Drawn(begin_, end_), distribution_, CutsWeights(), shared_);
    if (scratch_ == nullptr) return;
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) {
      if (shared_.counts[bin] == 0) continue;
      atomicAdd(&scratch_->counts[bin], shared_.counts[bin]);
      if (CutsWeights()) atomicAdd(&scratch_->weights[bin], shared_.Amount(bin, true));
    }
  }

  __device__ __forceinline__ void ListFirst() {
    if (!Cuts()) return;
    FetchBins();
    Cut cut{
        .measure = {.by_weight = task_.top_k == 0, .least = 0}, .goal = static_cast<Word>(task_.top_k), .crossing = {}};
    if (cut.measure.by_weight) {
      Word collected = 0;
      for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads)
        collected += shared_.Amount(bin, true);
      cut.goal = NucleusGoal(BlockSum<kThreads>(collected, shared_));
    }
    ListCut(0, cut);
  }

  __device__ __forceinline__ void ListSecond() {
    if (task_.draws == 0 || task_.top_k == 0 || !CutsWeights()) return;
    const Cut first = findings_.cuts[0];
    const Word least = LastOf(0);
    const bool listed = findings_.listed[0] <= kListed;
    if (scratch_ != nullptr) {
      FetchBins();
    } else if (!listed) {
      FillBinsByDistance<kThreads>(Drawn(0, launch_.vocabulary), distribution_, true, shared_);
    }
    Word collected = 0;
    if (listed) {
      for (int bin = static_cast<int>(threadIdx.x); bin < first.crossing.bin; bin += kThreads) {
        collected += shared_.Amount(bin, true);
      }
      for (unsigned i = threadIdx.x; i < findings_.listed[0]; i += kThreads) {
        if (shared_.keys[i] >= least) collected += distribution_.WeightOf(LogitOf(shared_.keys[i]));
      }
    } else {
      Drawn(0, launch_.vocabulary).template ForEach<kThreads>([&](int32_t id, float logit) {
        if (RankKeyOf(logit, id) >= least) collected += distribution_.WeightOf(logit);
      });
    }
    collected = BlockSum<kThreads>(collected, shared_);
    ListCut(1, {.measure = {.by_weight = true, .least = least}, .goal = NucleusGoal(collected), .crossing = {}});
  }

  // Of rows that several blocks sample.
  __device__ __forceinline__ void Sum() {
    SetLast();
    Word share = 0, own_weight = 0;
    if (Draws()) {
      Drawn(begin_, end_).template ForEach<kThreads>([&](int32_t id, float logit) {
        share += distribution_.ShareOf(id, logit);
      });
      share = BlockSum<kThreads>(share, shared_);
    }
    if (Reports()) own_weight = OwnWeight(begin_, end_);
    if (threadIdx.x != 0) return;
    findings_.share[part_] = share;
    findings_.own_weight[part_] = own_weight;
    if (part_ == 0) findings_.last = distribution_.last;
  }

  // By the block that has the drawn token.
  __device__ __forceinline__ void Answer(bool finite) {
    SampleAnswer& answer = launch_.answers[blockIdx.x];
    if (!finite) {
      if (part_ == 0 && threadIdx.x == 0) answer = {.token = -1, .finite = 0, .logprob = 0.0f};
      return;
    }
    int32_t token = task_.draws != 0 ? IndexOf(best_) : task_.token;
    if (Draws() && scratch_ == nullptr) {
      SetLast();
      const auto point_of = [&](Word total) { return __umul64hi(total, task_.uniform); };
      token = IndexAt<kThreads>(Drawn(begin_, end_), distribution_, 0, point_of, shared_);
    } else if (Draws()) {
      distribution_.last = findings_.last;
      Word total = 0, before = 0;
      for (int part = 0; part < launch_.parts; ++part) total += findings_.share[part];
      for (int part = 0; part < part_; ++part) before += findings_.share[part];
      const Word point = __umul64hi(total, task_.uniform);
      if (point < before || point >= before + findings_.share[part_]) return;
      token = IndexAt<kThreads>(
          Drawn(begin_, end_), distribution_, before, [&](Word) { return point; }, shared_);
    } else if (part_ != 0) {
      return;
    }
    if (threadIdx.x == 0) answer = {.token = token, .finite = 1, .logprob = 0.0f};
    if (Reports()) Report(token, answer);
  }

 private:
  __device__ __forceinline__ bool Draws() const { return task_.draws != 0 && task_.scale != 0.0f; }
  __device__ __forceinline__ bool CutsWeights() const { return task_.top_p < 1.0f; }
  __device__ __forceinline__ bool Cuts() const { return Draws() && (task_.top_k > 0 || CutsWeights()); }
  // The model's own probabilities are asked for.
  __device__ __forceinline__ bool Reports() const {
    const bool token = task_.want_logprob != 0 && (task_.draws != 0 || task_.token >= 0);
    return token || task_.top_end > task_.top_begin;
  }

  // Of what is drawn from.
  __device__ __forceinline__ Ids Drawn(int32_t begin, int32_t end) const {
    return {adjusts_ ? task_.adjusted : task_.logits, begin, end};
  }

  __device__ __forceinline__ Word NucleusGoal(Word collected) const {
    const auto goal = static_cast<Word>(static_cast<double>(collected) * double{task_.top_p});
    return goal > 0 ? goal : 1;
  }

  // Those of all blocks.
  __device__ __forceinline__ void FetchBins() {
    if (scratch_ == nullptr) return;
    __syncthreads();
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) {
      const Word weight = scratch_->weights[bin];
      shared_.counts[bin] = scratch_->counts[bin];
      shared_.low[bin] = static_cast<unsigned>(weight);
      shared_.high[bin] = static_cast<unsigned>(weight >> 32);
    }
    __syncthreads();
  }

  __device__ __forceinline__ void ListCut(int c, Cut cut) {
    cut.crossing = FindCrossing<kThreads>(cut.goal, cut.measure.by_weight, shared_);
    if (part_ == 0 && threadIdx.x == 0) findings_.cuts[c] = cut;
    List<kThreads>(Drawn(begin_, end_), distribution_, cut.crossing.bin,
                   scratch_ == nullptr ? shared_.keys : scratch_->keys[c], &findings_.listed[c]);
    __syncthreads();
  }

  // The last key that a cut keeps whose candidates all blocks have listed.
  __device__ __forceinline__ Word LastOf(int c) {
    const Cut cut = findings_.cuts[c];
    const unsigned listed = findings_.listed[c];
    if (listed > kListed) return LastKeyByDigits<kThreads>(Drawn(0, launch_.vocabulary), distribution_, cut, shared_);
    if (scratch_ != nullptr) {
      for (unsigned i = threadIdx.x; i < listed; i += kThreads) shared_.keys[i] = scratch_->keys[c][i];
    }
    return LastListed<kThreads>(distribution_, cut, listed, shared_);
  }

  __device__ __forceinline__ void SetLast() {
    if (!Cuts()) return;
    if (task_.top_k == 0 || !CutsWeights()) {
      distribution_.last = LastOf(0);
      return;
    }
    const Word nucleus = LastOf(1), least = findings_.cuts[1].measure.least;
    distribution_.last = nucleus > least ? nucleus : least;
  }

  __device__ __forceinline__ Word OwnWeight(int32_t begin, int32_t end) {
    const Distribution own{.max = LogitOf(own_best_), .scale = 1.0f};
    Word sum = 0;
    Ids{task_.logits, begin, end}.ForEach<kThreads>([&](int32_t, float logit) { sum += own.WeightOf(logit); });
    return BlockSum<kThreads>(sum, shared_);
  }

  __device__ __forceinline__ void Report(int32_t token, SampleAnswer& answer) {
    const Ids all{task_.logits, 0, launch_.vocabulary};
    const Distribution own{.max = LogitOf(own_best_), .scale = 1.0f};
    Word weight = 0;
    if (scratch_ == nullptr) {
      weight = OwnWeight(all.begin, all.end);
    } else {
      for (int part = 0; part < launch_.parts; ++part) weight += findings_.own_weight[part];
    }
    const double log_total = log(static_cast<double>(weight) * 0x1p-40);
    const auto logprob = [&](int32_t id) { return ClampToFloat(double{task_.logits[id]} - own.max - log_total); };
    if (task_.want_logprob != 0 && token >= 0 && threadIdx.x == 0) answer.logprob = logprob(token);
    // Those of the first ranks, as many at a time as can be listed.
    const int32_t tops = task_.top_end - task_.top_begin;
    Word above = ~Word{0};
    for (int32_t first = 0; first < tops; first += static_cast<int32_t>(kListed)) {
      const int32_t left = tops - first, most = static_cast<int32_t>(kListed), size = left < most ? left : most;
      Cut cut{.measure = {.by_weight = false, .least = 0}, .goal = static_cast<Word>(first + size), .crossing = {}};
      FillBinsByDistance<kThreads>(all, own, false, shared_);
      cut.crossing = FindCrossing<kThreads>(cut.goal, false, shared_);
      if (threadIdx.x == 0) shared_.listed = 0;
      __syncthreads();
      List<kThreads>(all, own, cut.crossing.bin, shared_.keys, &shared_.listed);
      __syncthreads();
      const unsigned listed = shared_.listed;
      const Word last = listed > kListed ? LastKeyByDigits<kThreads>(all, own, cut, shared_)
                                         : LastListed<kThreads>(own, cut, listed, shared_);
      __syncthreads();
      if (threadIdx.x == 0) shared_.listed = 0;
      __syncthreads();
      all.ForEach<kThreads>([&](int32_t id, float logit) {
        const Word key = RankKeyOf(logit, id);
        if (key >= last && key < above) shared_.keys[atomicAdd(&shared_.listed, 1u)] = key;
      });
      __syncthreads();
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < size; i += kThreads) {
        const Word key = shared_.keys[i];
        int32_t rank = first;
        for (int32_t j = 0; j < size; ++j) rank += shared_.keys[j] > key ? 1 : 0;
        launch_.tops[task_.top_begin + rank] = {IndexOf(key), logprob(IndexOf(key))};
      }
      above = last;
      __syncthreads();
    }
  }

  const SampleLaunch& launch_;
  const SampleTask& task_;
  SampleShared& shared_;
  SampleScratch* const scratch_;  // null: one block samples the row
  SampleFindings& findings_;
  const bool adjusts_;
  const int part_;
  int32_t begin_, end_;
  Word own_best_ = 0, best_ = 0;
  Distribution distribution_{};
};

// A row by one block.
template <int kThreads>
__global__ void __launch_bounds__(kThreads, 1) SampleKernel(SampleLaunch launch) {
  AfterPrevious();
  RowSampler<kThreads> sampler(launch, *Shared<SampleShared>());
  sampler.Scan();
  __syncthreads();
  const bool finite = sampler.Prepare();
  if (finite) {
    sampler.Count();
    sampler.ListFirst();
    sampler.ListSecond();
  }
  sampler.Answer(finite);
}

// One phase of rows by several blocks.
template <SamplePhase kPhase>
__global__ void __launch_bounds__(kMany, 1) SamplePhaseKernel(SampleLaunch launch) {
  AfterPrevious();
  RowSampler<kMany> sampler(launch, *Shared<SampleShared>());
  if constexpr (kPhase == SamplePhase::kScan) {
    sampler.Scan();
  } else {
    const bool finite = sampler.Prepare();
    if constexpr (kPhase == SamplePhase::kAnswer) sampler.Answer(finite);
    if (!finite) return;
    if constexpr (kPhase == SamplePhase::kCount) sampler.Count();
    if constexpr (kPhase == SamplePhase::kListFirst) sampler.ListFirst();
    if constexpr (kPhase == SamplePhase::kListSecond) sampler.ListSecond();
    if constexpr (kPhase == SamplePhase::kSum) sampler.Sum();
  }
}

}  // namespace

int64_t SampleScratchBytes(int32_t rows, int32_t parts) {
  return parts == 1 ? 0 : rows * int64_t{sizeof(SampleScratch)};
}

cudaError_t RunSample(const SampleLaunch& launch, const Target& target) {
  const bool small = launch.vocabulary <= kSmallVocabulary;
  const auto rows = static_cast<unsigned>(launch.rows), parts = static_cast<unsigned>(launch.parts);
  const Shape shape{
      .grid = dim3(rows, parts), .block = dim3(small ? kFew : kMany), .shared_bytes = sizeof(SampleShared)};
  if (parts == 1) return Launch(small ? SampleKernel<kFew> : SampleKernel<kMany>, shape, target, launch);
  cudaError_t error = cudaSuccess;
  const auto run = [&]<SamplePhase kPhase>() {
    const bool always = kPhase == SamplePhase::kScan || kPhase == SamplePhase::kAnswer;
    const bool needed = always || (launch.phases >> static_cast<int>(kPhase) & 1) != 0;
    if (needed && error == cudaSuccess) error = Launch(SamplePhaseKernel<kPhase>, shape, target, launch);
  };
  run.template operator()<SamplePhase::kScan>();
  run.template operator()<SamplePhase::kCount>();
  run.template operator()<SamplePhase::kListFirst>();
  run.template operator()<SamplePhase::kListSecond>();
  run.template operator()<SamplePhase::kSum>();
  run.template operator()<SamplePhase::kAnswer>();
  return error;
}

}  // namespace palimpsest::cuda
