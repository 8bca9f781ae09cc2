// Inside fast_weight: a chunk row by row on the processor, with the state in cache: for decays by channel. Values lie
// across the lanes, so that no sum crosses them. Compiled once per SIMD target.
#if defined(PALIMPSEST_KERNELS_FAST_WEIGHT_SCAN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PALIMPSEST_KERNELS_FAST_WEIGHT_SCAN_INL_H_
#undef PALIMPSEST_KERNELS_FAST_WEIGHT_SCAN_INL_H_
#else
#define PALIMPSEST_KERNELS_FAST_WEIGHT_SCAN_INL_H_
#endif

#include <algorithm>
#include <cstdint>
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
  float* decay;    // [kChunk, K]     a_i
  float* look;     // [kChunk, K]     what is read of S: a_i k_i, or what is removed
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

// The rows one after the other, for `width` <= kVectors * kLanes value channels from v on.
template <UpdateRule kRule, typename T, int kVectors>
void ScanBlock(const HeadRows& head, int64_t n, int32_t v, int32_t width, const ScanScratch& scratch) {
  const int32_t K = head.key_dim;
  T* const state = head.state_as<T>() + int64_t{v} * K;
  LoadTransposed(state, K, width, scratch.by_rows, scratch.state);
  float* HWY_RESTRICT S = scratch.state;
  for (int64_t i = 0; i < n; ++i) {
    const float* const k = head.k + i * head.ldk;
    const float* const q = head.q + i * head.ldq;
    const float* const decay = scratch.decay + i * K;
    const float* const look = scratch.look + i * K;
    V read[kVectors], u[kVectors], out[kVectors];
    if constexpr (kRule != UpdateRule::kChannelGatedSum) {
      SumOverChannels(
          K,
          [&](V(&chain)[kVectors], int32_t c) HWY_ATTR {
            const V with = hn::Set(d, look[c]);
            for (int m = 0; m < kVectors; ++m) {
              chain[m] = hn::MulAdd(with, hn::Load(d, S + c * kBlock + m * kLanes), chain[m]);
            }
          },
          read);
    }
    for (int m = 0; m < kVectors; ++m) {
      u[m] = LoadPart(head.v + i * head.ldv + v + m * kLanes, width - m * kLanes);
      if constexpr (Corrects(kRule)) u[m] = hn::Mul(hn::Set(d, head.beta[i * head.ldgate]), hn::Sub(u[m], read[m]));
    }
    SumOverChannels(
        K,
        [&](V(&chain)[kVectors], int32_t c) HWY_ATTR {
          const V keep = hn::Set(d, decay[c]), key = hn::Set(d, k[c]), query = hn::Set(d, q[c]);
          for (int m = 0; m < kVectors; ++m) {
            float* const at = S + c * kBlock + m * kLanes;
            V written = hn::Mul(keep, hn::Load(d, at));
            if constexpr (kRule == UpdateRule::kLowRank) {
              written = hn::MulAdd(read[m], hn::Set(d, head.insert[i * head.ldchannels + c]), written);
            }
            written = hn::MulAdd(u[m], key, written);
            hn::Store(written, d, at);
            chain[m] = hn::MulAdd(query, written, chain[m]);
          }
        },
        out);
    for (int m = 0; m < kVectors; ++m) {
      StorePart(out[m], head.out + i * head.ldout + v + m * kLanes, width - m * kLanes);
    }
  }
  StoreTransposed(scratch.state, K, width, scratch.by_rows, state);
}

// The first n rows of `head`, 2 <= n <= kChunk.
template <UpdateRule kRule, typename T>
void Scan(const HeadRows& head, int64_t n, float* floats) {
  const ScanScratch scratch(floats, head.key_dim);
  const int32_t K = head.key_dim;
  for (int64_t i = 0; i < n; ++i) {
    Exponentiate(head.log_decay + i * head.ldchannels, K, scratch.decay + i * K);
    if constexpr (kRule == UpdateRule::kChannelGatedSum) continue;
    for (int32_t c = 0; c < K; ++c) {
      scratch.look[i * K + c] = kRule == UpdateRule::kLowRank ? head.remove[i * head.ldchannels + c]
                                                              : scratch.decay[i * K + c] * head.k[i * head.ldk + c];
    }
  }
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
