// Inside fast_weight: a chunk row by row on the processor, with the state in cache. Values lie across the lanes, so
// that no sum crosses them; and one pass over the state does all that touches it: a write, the reading after it, and
// what the next write looks at first. Compiled once per SIMD target.
#if defined(PALIMPSEST_KERNELS_FAST_WEIGHT_SCAN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PALIMPSEST_KERNELS_FAST_WEIGHT_SCAN_INL_H_
#undef PALIMPSEST_KERNELS_FAST_WEIGHT_SCAN_INL_H_
#else
#define PALIMPSEST_KERNELS_FAST_WEIGHT_SCAN_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "hwy/highway.h"
#include "kernels/fast_weight/fast_weight_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {
namespace {

// Vectors of values that a block has: with more of them, sums leave the registers of AVX2, and states of 256 channels
// the first-level cache. How many changes no bit.
constexpr int kMostVectors = 2;
// Chains of each sum over the channels, to hide the latency of multiply-adds.
constexpr int kChains = 2;

// Values in so many vectors.
constexpr int64_t ValuesOf(int vectors) { return static_cast<int64_t>(vectors) * kLanes; }

// What the rows of a chunk need beside their inputs; c is a key channel, v a value channel.
struct ScanScratch {
  float* state;    // [K, values of a block]   S[v][c] at (c, v - first v)
  float* by_rows;  // [values of a block, K]   for LoadTransposed and StoreTransposed
  float* decay;    // [kChunk, K]              a_i; of a head's decay, the first alone
  float* look;     // [kChunk, K]              what is read of S, with decays by channel: a_i k_i, or what is removed

  static int64_t Floats(int32_t key_dim) { return 2 * (ValuesOf(kMostVectors) + kChunk) * key_dim; }

  ScanScratch(float* at, int32_t key_dim) {
    const auto take = [&at, key_dim](int64_t rows) { return std::exchange(at, at + rows * key_dim); };
    state = take(ValuesOf(kMostVectors));
    by_rows = take(ValuesOf(kMostVectors));
    decay = take(kChunk);
    look = take(kChunk);
  }
};

// Calls term(chain, c) for all channels, in kChains chains.
template <typename Term>
HWY_INLINE void ForChannels(int32_t K, const Term& term) {
  int32_t c = 0;
  for (; c + kChains <= K; c += kChains) {
    for (int i = 0; i < kChains; ++i) term(i, c + i);
  }
  for (; c < K; ++c) term(0, c);
}

template <int kVectors>
using Chains = V[kChains][kVectors];

template <int kVectors>
HWY_INLINE void SetZero(Chains<kVectors>& chains) {
  for (auto& chain : chains) {
    for (V& value : chain) value = hn::Zero(d);
  }
}

template <int kVectors>
HWY_INLINE V Joined(const Chains<kVectors>& chains, int m) {
  V sum = chains[0][m];
  for (int i = 1; i < kChains; ++i) sum = hn::Add(sum, chains[i][m]);
  return sum;
}

// One write, as the rule has it. Which of it is used depends on the rule.
struct ScanWrite {
  const float* k;       // [K]
  const float* look;    // [K]
  const float* insert;  // [K]
  const float* decay;   // [K], or of a head
  float beta;
  const float* values;  // v
  const float* q;       // [K], of the last write to a row
  float* out;
};

// The writes of a chunk's rows to kVectors * kLanes value channels, `width` of them real.
template <UpdateRule kRule, int kVectors>
class ScanWrites {
 public:
  static constexpr bool kLooks = Corrects(kRule) || kRule == UpdateRule::kLowRank;

  ScanWrites(int32_t key_dim, int32_t width, float* state) : K_(key_dim), width_(width), S_(state) {}

  // What S says before the first write.
  HWY_INLINE void Begin(const ScanWrite& first) {
    SetZero<kVectors>(read_);
    if constexpr (!kLooks) return;
    ForChannels(K_, [&](int i, int32_t c) HWY_ATTR {
      const V look = hn::Set(d, first.look[c]);
      for (int m = 0; m < kVectors; ++m) read_[i][m] = hn::MulAdd(look, hn::Load(d, At(c, m)), read_[i][m]);
    });
  }

  // A write by kWrite, which is the rule or that without its decay. On the way it reads what S says after it of
  // `next_look`, and of q, if it is the last write to a row.
  template <UpdateRule kWrite, bool kQuery>
  HWY_INLINE void Put(const ScanWrite& write, const float* next_look) {
    V u[kVectors], removed[kVectors];
    for (int m = 0; m < kVectors; ++m) {
      u[m] = LoadPart(write.values + ValuesOf(m), width_ - m * kLanes);
      if constexpr (!kLooks) continue;
      removed[m] = Joined<kVectors>(read_, m);
      if constexpr (DecaysHeads(kWrite)) removed[m] = hn::Mul(hn::Set(d, write.decay[0]), removed[m]);
      if constexpr (Corrects(kWrite)) u[m] = hn::Mul(hn::Set(d, write.beta), hn::Sub(u[m], removed[m]));
    }
    const V keep_head = hn::Set(d, DecaysHeads(kWrite) ? write.decay[0] : 1.0f);
    Chains<kVectors> out, read;
    SetZero<kVectors>(out);
    SetZero<kVectors>(read);
    const float* HWY_RESTRICT key = write.k;
    const float* HWY_RESTRICT query = write.q;
    const float* HWY_RESTRICT decay = write.decay;
    const float* HWY_RESTRICT insert = write.insert;
    ForChannels(K_, [&](int i, int32_t c) HWY_ATTR {
      const V k = hn::Set(d, key[c]);
      const V q = kQuery ? hn::Set(d, query[c]) : k;
      const V look = kLooks ? hn::Set(d, next_look[c]) : k;
      const V keep = DecaysChannels(kWrite) ? hn::Set(d, decay[c]) : keep_head;
      const V put = kWrite == UpdateRule::kLowRank ? hn::Set(d, insert[c]) : k;
      for (int m = 0; m < kVectors; ++m) {
        V written = hn::Load(d, At(c, m));
        if constexpr (Decays(kWrite)) written = hn::Mul(keep, written);
        if constexpr (kWrite == UpdateRule::kLowRank) written = hn::MulAdd(removed[m], put, written);
        written = hn::MulAdd(u[m], k, written);
        hn::Store(written, d, At(c, m));
        if constexpr (kQuery) out[i][m] = hn::MulAdd(q, written, out[i][m]);
        if constexpr (kLooks) read[i][m] = hn::MulAdd(look, written, read[i][m]);
      }
    });
    for (int m = 0; m < kVectors; ++m) {
      for (int i = 0; i < kChains; ++i) read_[i][m] = read[i][m];
      if constexpr (kQuery) StorePart(Joined<kVectors>(out, m), write.out + ValuesOf(m), width_ - m * kLanes);
    }
  }

 private:
  float* At(int32_t c, int m) const { return S_ + ValuesOf(c * kVectors + m); }

  int32_t K_, width_;
  float* HWY_RESTRICT S_;
  Chains<kVectors> read_;
};

// Write number j of row i, for value channels from v on.
template <UpdateRule kRule>
HWY_INLINE ScanWrite WriteOf(const HeadRows& head, int64_t i, int32_t j, int32_t v, const ScanScratch& scratch) {
  ScanWrite write = {};
  write.k = write.look = head.k + i * head.ldk + j * head.next_k;
  write.values = head.v + i * head.ldv + j * head.next_v + v;
  if constexpr (Corrects(kRule)) write.beta = head.beta[i * head.ldbeta + j * head.next_beta];
  write.decay = scratch.decay + i * head.key_dim;
  if (DecaysChannels(kRule) && j == 0) write.look = scratch.look + i * head.key_dim;
  if constexpr (kRule == UpdateRule::kLowRank) write.insert = head.insert + i * head.ldchannels;
  write.q = head.q + i * head.ldq;
  write.out = head.out + i * head.ldout + v;
  return write;
}

// The rows one after the other, for `width` <= kVectors * kLanes value channels from v on, with their state in
// `scratch`.
template <UpdateRule kRule, int kVectors>
HWY_NOINLINE void ScanRows(const HeadRows& head, int64_t n, int32_t v, int32_t width, const ScanScratch& scratch) {
  const int32_t last = head.sub_steps - 1;
  ScanWrites<kRule, kVectors> writes(head.key_dim, width, scratch.state);
  ScanWrite write = WriteOf<kRule>(head, 0, 0, v, scratch);
  writes.Begin(write);
  for (int64_t i = 0; i < n; ++i) {
    // After the last row it looks at what that row looked at, which nobody asks for.
    const ScanWrite next_row = i + 1 < n ? WriteOf<kRule>(head, i + 1, 0, v, scratch) : write;
    if (last == 0) {
      writes.template Put<kRule, true>(write, next_row.look);
    } else if constexpr (HasSubSteps(kRule)) {
      constexpr UpdateRule kAgain = WithoutDecay(kRule);
      ScanWrite next = WriteOf<kRule>(head, i, 1, v, scratch);
      writes.template Put<kRule, false>(write, next.look);
      for (int32_t j = 1; j < last; ++j) {
        write = next;
        next = WriteOf<kRule>(head, i, j + 1, v, scratch);
        writes.template Put<kAgain, false>(write, next.look);
      }
      writes.template Put<kAgain, true>(next, next_row.look);
    }
    write = next_row;
  }
}

// What the rows of a chunk share among their value channels.
template <UpdateRule kRule>
void PrepareScan(const HeadRows& head, int64_t n, const ScanScratch& scratch) {
  const int32_t K = head.key_dim;
  for (int64_t i = 0; i < n; ++i) {
    float* const decay = scratch.decay + i * K;
    if constexpr (DecaysHeads(kRule)) Exponentiate(head.log_decay + i * head.ldgate, 1, decay);
    if constexpr (!DecaysChannels(kRule)) continue;
    Exponentiate(head.log_decay + i * head.ldchannels, K, decay);
    if constexpr (kRule == UpdateRule::kChannelGatedSum) continue;
    for (int32_t c = 0; c < K; ++c) {
      scratch.look[i * K + c] =
          kRule == UpdateRule::kLowRank ? head.remove[i * head.ldchannels + c] : decay[c] * head.k[i * head.ldk + c];
    }
  }
}

// `width` <= kVectors * kLanes value channels from v on: the only reading and writing of their state.
template <UpdateRule kRule, typename T, int kVectors>
void ScanBlock(const HeadRows& head, int64_t n, int32_t v, int32_t width, const ScanScratch& scratch) {
  constexpr int32_t kBlock = kVectors * kLanes;
  T* const state = head.state_as<T>() + int64_t{v} * head.key_dim;
  LoadTransposed(state, head.key_dim, width, kBlock, scratch.by_rows, scratch.state);
  ScanRows<kRule, kVectors>(head, n, v, width, scratch);
  StoreTransposed(scratch.state, head.key_dim, width, kBlock, scratch.by_rows, state);
}

// The first n rows of `head`, 2 <= n <= kChunk.
template <UpdateRule kRule, typename T>
void Scan(const HeadRows& head, int64_t n, float* floats) {
  constexpr int32_t kBlock = kMostVectors * kLanes;
  const ScanScratch scratch(floats, head.key_dim);
  PrepareScan<kRule>(head, n, scratch);
  for (int32_t v = 0; v < head.value_dim; v += kBlock) {
    const int32_t width = std::min(kBlock, head.value_dim - v);
    if (width > kLanes) {
      ScanBlock<kRule, T, kMostVectors>(head, n, v, width, scratch);
    } else {
      ScanBlock<kRule, T, 1>(head, n, v, width, scratch);
    }
  }
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#endif
