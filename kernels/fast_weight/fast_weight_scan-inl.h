// Inside fast_weight: a chunk row by row on the processor, with the state in cache: for decays by channel, and for
// several writes to a row. Values lie across the lanes, so that no sum crosses them. Compiled once per SIMD target.
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

// What the rows of a chunk need beside their inputs; c is a key channel, v a value channel.
struct ScanScratch {
  float* state;    // [K, kBlock]     S[v][c] at (c, v - first v)
  float* decay;    // [kChunk, K]     a_i; of a head's decay, the first alone
  float* look;     // [kChunk, K]     what is read of S, with decays by channel: a_i k_i, or what is removed
  float* by_rows;  // [kBlock, K]     for LoadTransposed and StoreTransposed

  static int64_t Floats(int32_t key_dim) { return 2 * (kBlock + kChunk) * int64_t{key_dim}; }

  ScanScratch(float* at, int32_t key_dim) {
    const auto take = [&at, key_dim](int64_t rows) { return std::exchange(at, at + rows * key_dim); };
    state = take(kBlock);
    decay = take(kChunk);
    look = take(kChunk);
    by_rows = take(kBlock);
  }
};

// Chains of sums that a product has at once, to hide the latency of multiply-adds.
constexpr int kChains = 4;

// Calls term(chain, c) for all channels, and joins the chains.
template <int kVectors, typename Term>
HWY_INLINE void SumOverChannels(int32_t K, const Term& term, V (&sum)[kVectors]) {
  V chains[kChains][kVectors];
  for (auto& chain : chains) {
    for (V& value : chain) value = hn::Zero(d);
  }
  int32_t c = 0;
  for (; c + kChains <= K; c += kChains) {
    for (int i = 0; i < kChains; ++i) term(chains[i], c + i);
  }
  for (; c < K; ++c) term(chains[0], c);
  for (int m = 0; m < kVectors; ++m) {
    sum[m] = hn::Add(hn::Add(chains[0][m], chains[1][m]), hn::Add(chains[2][m], chains[3][m]));
  }
}

// One write, as the rule has it. Which of it is used depends on the rule.
struct ScanWrite {
  const float* k;       // [K]
  const float* look;    // [K]
  const float* insert;  // [K]
  const float* decay;   // [K], or of a head
  float beta;
};

// `u` comes as v and goes as what was written under k.
template <UpdateRule kRule, int kVectors>
HWY_INLINE void CorrectValues(const ScanWrite& write, int32_t K, const float* S, V (&u)[kVectors],
                              V (&read)[kVectors]) {
  if constexpr (!Corrects(kRule) && kRule != UpdateRule::kLowRank) return;
  SumOverChannels(
      K,
      [&](V(&chain)[kVectors], int32_t c) HWY_ATTR {
        const V with = hn::Set(d, write.look[c]);
        for (int m = 0; m < kVectors; ++m) {
          chain[m] = hn::MulAdd(with, hn::Load(d, S + c * kBlock + m * kLanes), chain[m]);
        }
      },
      read);
  if constexpr (!Corrects(kRule)) return;
  for (int m = 0; m < kVectors; ++m) {
    if constexpr (DecaysHeads(kRule)) read[m] = hn::Mul(hn::Set(d, write.decay[0]), read[m]);
    u[m] = hn::Mul(hn::Set(d, write.beta), hn::Sub(u[m], read[m]));
  }
}

// A write with values u, for kVectors * kLanes value channels; and, unless q is null, `out` = S q after it.
template <UpdateRule kRule, int kVectors>
HWY_INLINE void WriteValues(const ScanWrite& write, int32_t K, const V (&u)[kVectors], const V (&removed)[kVectors],
                            float* HWY_RESTRICT S, const float* q, V (&out)[kVectors]) {
  const V keep_head = hn::Set(d, DecaysHeads(kRule) ? write.decay[0] : 1.0f);
  const auto put = [&](int32_t c, V(&written)[kVectors]) HWY_ATTR {
    const V key = hn::Set(d, write.k[c]);
    for (int m = 0; m < kVectors; ++m) {
      float* const at = S + c * kBlock + m * kLanes;
      written[m] = hn::Load(d, at);
      if constexpr (Decays(kRule)) {
        written[m] = hn::Mul(DecaysChannels(kRule) ? hn::Set(d, write.decay[c]) : keep_head, written[m]);
      }
      if constexpr (kRule == UpdateRule::kLowRank) {
        written[m] = hn::MulAdd(removed[m], hn::Set(d, write.insert[c]), written[m]);
      }
      written[m] = hn::MulAdd(u[m], key, written[m]);
      hn::Store(written[m], d, at);
    }
  };
  V written[kVectors];
  if (q == nullptr) {
    for (int32_t c = 0; c < K; ++c) put(c, written);
    return;
  }
  SumOverChannels(
      K,
      [&](V(&chain)[kVectors], int32_t c) HWY_ATTR {
        put(c, written);
        const V query = hn::Set(d, q[c]);
        for (int m = 0; m < kVectors; ++m) chain[m] = hn::MulAdd(query, written[m], chain[m]);
      },
      out);
}

// The writes of row i in `head`, of which the first has `first`, and its output.
template <UpdateRule kRule, int kVectors>
HWY_INLINE void ScanRow(const HeadRows& head, int64_t i, int32_t v, int32_t width, const ScanWrite& first, float* S) {
  const int32_t K = head.key_dim;
  const float* const q = head.q + i * head.ldq;
  V u[kVectors], read[kVectors], out[kVectors];
  for (V& value : out) value = hn::Zero(d);
  const auto take = [&](auto rule, const ScanWrite& write, int32_t j) HWY_ATTR {
    const float* const values = head.v + i * head.ldv + j * head.next_v + v;
    for (int m = 0; m < kVectors; ++m) u[m] = LoadPart(values + m * kLanes, width - m * kLanes);
    CorrectValues<decltype(rule)::value>(write, K, S, u, read);
    WriteValues<decltype(rule)::value>(write, K, u, read, S, j + 1 == head.sub_steps ? q : nullptr, out);
  };
  take(std::integral_constant<UpdateRule, kRule>(), first, 0);
  for (int32_t j = 1; j < head.sub_steps; ++j) {
    ScanWrite write = {};
    write.k = write.look = head.k + i * head.ldk + j * head.next_k;
    if constexpr (Corrects(kRule)) write.beta = head.beta[i * head.ldbeta + j * head.next_beta];
    take(std::integral_constant<UpdateRule, WithoutDecay(kRule)>(), write, j);
  }
  for (int m = 0; m < kVectors; ++m) {
    StorePart(out[m], head.out + i * head.ldout + v + m * kLanes, width - m * kLanes);
  }
}

// The rows one after the other, for `width` <= kVectors * kLanes value channels from v on.
template <UpdateRule kRule, typename T, int kVectors>
void ScanBlock(const HeadRows& head, int64_t n, int32_t v, int32_t width, const ScanScratch& scratch) {
  const int32_t K = head.key_dim;
  T* const state = head.state_as<T>() + int64_t{v} * K;
  LoadTransposed(state, K, width, scratch.by_rows, scratch.state);
  for (int64_t i = 0; i < n; ++i) {
    ScanWrite first = {};
    first.k = first.look = head.k + i * head.ldk;
    first.decay = scratch.decay + i * K;
    if constexpr (DecaysChannels(kRule)) first.look = scratch.look + i * K;
    if constexpr (Corrects(kRule)) first.beta = head.beta[i * head.ldbeta];
    if constexpr (kRule == UpdateRule::kLowRank) first.insert = head.insert + i * head.ldchannels;
    ScanRow<kRule, kVectors>(head, i, v, width, first, scratch.state);
  }
  StoreTransposed(scratch.state, K, width, scratch.by_rows, state);
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

// The first n rows of `head`, 2 <= n <= kChunk.
template <UpdateRule kRule, typename T>
void Scan(const HeadRows& head, int64_t n, float* floats) {
  const ScanScratch scratch(floats, head.key_dim);
  PrepareScan<kRule>(head, n, scratch);
  for (int32_t v = 0; v < head.value_dim; v += kBlock) {
    const int32_t width = std::min(kBlock, head.value_dim - v);
    if (width > kLanes) {
      ScanBlock<kRule, T, 2>(head, n, v, width, scratch);
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
