// Inside fast_weight: a chunk in the parallel form on the processor (README.md). Compiled once per SIMD target.
#if defined(PALIMPSEST_KERNELS_FAST_WEIGHT_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PALIMPSEST_KERNELS_FAST_WEIGHT_CHUNK_INL_H_
#undef PALIMPSEST_KERNELS_FAST_WEIGHT_CHUNK_INL_H_
#else
#define PALIMPSEST_KERNELS_FAST_WEIGHT_CHUNK_INL_H_
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

constexpr int kTileRows = kLanes == 16 ? 8 : kLanes == 8 ? 4 : 2;

template <int kRows, int kVectors>
using Sums = V[kRows][kVectors];

// sums[r][.] += sum_j a[r * row_stride + j * stride] b[j * ldb + .], each element one chain over j in ascending order.
template <int kRows, int kVectors>
HWY_INLINE void MultiplyAdd(Sums<kRows, kVectors>& sums, const float* HWY_RESTRICT a, int64_t row_stride,
                            int64_t stride, const float* HWY_RESTRICT b, int64_t ldb, int64_t count) {
  for (int64_t j = 0; j < count; ++j, a += stride, b += ldb) {
    V b_j[kVectors];
    for (int n = 0; n < kVectors; ++n) b_j[n] = hn::Load(d, b + n * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const V a_r = hn::Set(d, a[r * row_stride]);
      for (int n = 0; n < kVectors; ++n) sums[r][n] = hn::MulAdd(a_r, b_j[n], sums[r][n]);
    }
  }
}

template <int kRows, int kVectors>
HWY_INLINE void SetZero(Sums<kRows, kVectors>& sums) {
  for (auto& of_row : sums) {
    for (V& sum : of_row) sum = hn::Zero(d);
  }
}

template <int kRows>
using Rows = std::integral_constant<int, kRows>;

template <int kRows, typename Tile>
HWY_INLINE void LastTile(int64_t begin, int64_t end, const Tile& tile) {
  if (end - begin == kRows) return tile(Rows<kRows>(), begin);
  if constexpr (kRows > 1) LastTile<kRows - 1>(begin, end, tile);
}

// Calls tile(Rows<n>(), i) for [begin, end) cut into tiles of kTileRows rows and one smaller one.
template <typename Tile>
HWY_INLINE void ForTiles(int64_t begin, int64_t end, const Tile& tile) {
  for (; begin + kTileRows <= end; begin += kTileRows) tile(Rows<kTileRows>(), begin);
  LastTile<kTileRows - 1>(begin, end, tile);
}

int64_t PaddedKeyDim(int32_t key_dim) { return (int64_t{key_dim} + kBlock - 1) / kBlock * kBlock; }

// What a chunk needs beside its inputs. Rows i and j are of the chunk, c is a key channel, v a value channel.
struct ChunkScratch {
  float* key_by_channel;  // [K, kChunk]             k_j[c] at (c, j)
  float* decayed_key;     // [kChunk, padded K]      e^(G_last - G_j) k_j[c], zero in the padding
  float* decay;           // [kChunk, kChunk]        e^(G_i - G_j) for j <= i
  float* solve;           // [kChunk, kChunk]        -beta_i e^(G_i - G_j) k_i.k_j for j < i
  float* score;           // [kChunk, kChunk]        e^(G_i - G_j) q_i.k_j for j <= i
  float* state;           // [K, kBlock]             S[v][c] at (c, v - first v)
  float* value;           // [kChunk, kBlock]        first the right sides, then the corrected values u_j[v]
  float* from_start;      // [kChunk]                e^(G_i)
  float* to_end;          // [kChunk]                e^(G_last - G_i)
  float* by_rows;         // [kBlock, K]             for LoadTransposed

  static int64_t Floats(int32_t key_dim) {
    return int64_t{key_dim} * (kChunk + 2 * kBlock) + kChunk * PaddedKeyDim(key_dim) + 3 * kChunk * kChunk +
           kChunk * kBlock + 2 * kChunk;
  }

  ChunkScratch(float* at, int32_t key_dim) {
    const auto take = [&at](int64_t floats) { return std::exchange(at, at + floats); };
    state = take(int64_t{key_dim} * kBlock);
    value = take(kChunk * kBlock);
    key_by_channel = take(int64_t{key_dim} * kChunk);
    decayed_key = take(kChunk * PaddedKeyDim(key_dim));
    decay = take(kChunk * kChunk);
    solve = take(kChunk * kChunk);
    score = take(kChunk * kChunk);
    from_start = take(kChunk);
    to_end = take(kChunk);
    by_rows = take(int64_t{key_dim} * kBlock);
  }
};

// The decays between the rows of a chunk. Logarithms are summed in double and subtracted before they are exponentiated:
// every factor is at most one, and a strong decay early in the chunk costs the later ones no digits.
void ChunkDecays(const HeadRows& head, int64_t n, const ChunkScratch& scratch) {
  if (head.rule != UpdateRule::kGatedDelta) {
    std::fill_n(scratch.from_start, n, 1.0f);
    std::fill_n(scratch.to_end, n, 1.0f);
    return;
  }
  double G[kChunk];
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) G[i] = sum += BoundedLog(head.log_decay[i * head.ldgate]);
  alignas(64) float logs[kChunk] = {};
  const auto exponentiate = [&logs](float* to, int64_t count) HWY_ATTR {
    for (int64_t j = 0; j < count; j += kLanes) hn::Store(ExpOf(hn::Load(d, logs + j)), d, to + j);
  };
  for (int64_t i = 0; i < n; ++i) logs[i] = static_cast<float>(G[i]);
  exponentiate(scratch.from_start, n);
  for (int64_t i = 0; i < n; ++i) logs[i] = static_cast<float>(G[n - 1] - G[i]);
  exponentiate(scratch.to_end, n);
  std::fill_n(logs, kChunk, 0.0f);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) logs[j] = static_cast<float>(G[i] - G[j]);
    exponentiate(scratch.decay + i * kChunk, i + 1);
  }
}

// to[i][j] = a_i.k_j e^(G_i - G_j) (times -beta_i for the solve), for the blocks of columns that reach below the
// diagonal. What lies above it within them is never read.
template <bool kForSolve, int kVectors>
void ScoreBlock(const HeadRows& head, const float* a, int64_t lda, int64_t n, int64_t j, const ChunkScratch& scratch,
                float* to) {
  const bool gated = head.rule == UpdateRule::kGatedDelta;
  ForTiles(j, n, [&](auto rows, int64_t i) HWY_ATTR {
    constexpr int kRows = decltype(rows)::value;
    Sums<kRows, kVectors> sums;
    SetZero(sums);
    MultiplyAdd(sums, a + i * lda, lda, 1, scratch.key_by_channel + j, kChunk, head.key_dim);
    for (int r = 0; r < kRows; ++r) {
      const V factor = hn::Set(d, kForSolve ? -head.beta[(i + r) * head.ldbeta] : 1.0f);
      for (int m = 0; m < kVectors; ++m) {
        const int64_t at = (i + r) * kChunk + j + m * kLanes;
        V score = sums[r][m];
        if (gated) score = hn::Mul(score, hn::Load(d, scratch.decay + at));
        hn::Store(kForSolve ? hn::Mul(factor, score) : score, d, to + at);
      }
    }
  });
}

template <bool kForSolve>
void Scores(const HeadRows& head, const float* a, int64_t lda, int64_t n, const ChunkScratch& scratch, float* to) {
  for (int64_t j = 0; j < n; j += kBlock) {
    if (n - j > kLanes) {
      ScoreBlock<kForSolve, 2>(head, a, lda, n, j, scratch, to);
    } else {
      ScoreBlock<kForSolve, 1>(head, a, lda, n, j, scratch, to);
    }
  }
}

// S[v][.] = e^(G_last) S[v][.] + sum_j u_j[v] e^(G_last - G_j) k_j, for `width` value channels from v on.
template <typename T, int kVectors>
void UpdateColumns(const HeadRows& head, int64_t n, int32_t v, int32_t width, int64_t c, const ChunkScratch& scratch) {
  const int64_t K = head.key_dim;
  const V keep = hn::Set(d, scratch.from_start[n - 1]);
  ForTiles(0, width, [&](auto rows, int64_t i) HWY_ATTR {
    constexpr int kRows = decltype(rows)::value;
    Sums<kRows, kVectors> sums;
    T* const S = head.state_as<T>() + (v + i) * K + c;
    for (int r = 0; r < kRows; ++r) {
      for (int m = 0; m < kVectors; ++m) {
        sums[r][m] = hn::Mul(keep, LoadPart(S + r * K + m * kLanes, K - c - m * kLanes));
      }
    }
    MultiplyAdd(sums, scratch.value + i, 1, kBlock, scratch.decayed_key + c, PaddedKeyDim(head.key_dim), n);
    for (int r = 0; r < kRows; ++r) {
      for (int m = 0; m < kVectors; ++m) StorePart(sums[r][m], S + r * K + m * kLanes, K - c - m * kLanes);
    }
  });
}

// One chunk for `width` <= kVectors * kLanes value channels from v on: the only reading and writing of their state.
template <typename T, int kVectors>
void ChunkBlock(const HeadRows& head, int64_t n, int32_t v, int32_t width, const ChunkScratch& scratch) {
  const int32_t K = head.key_dim;
  LoadTransposed(head.state_as<T>() + int64_t{v} * K, K, width, scratch.by_rows, scratch.state);

  // Right sides, r_i = beta_i (v_i - e^(G_i) S k_i), then forward substitution, u_i = r_i - sum_{j<i} L_ij u_j. For the
  // sum rule u = v.
  ForTiles(0, n, [&](auto rows, int64_t i) HWY_ATTR {
    constexpr int kRows = decltype(rows)::value;
    Sums<kRows, kVectors> sums;
    SetZero(sums);
    if (head.rule != UpdateRule::kSum) MultiplyAdd(sums, head.k + i * head.ldk, head.ldk, 1, scratch.state, kBlock, K);
    for (int r = 0; r < kRows; ++r) {
      for (int m = 0; m < kVectors; ++m) {
        V value = LoadPart(head.v + (i + r) * head.ldv + v + m * kLanes, width - m * kLanes);
        if (head.rule != UpdateRule::kSum) {
          value = hn::NegMulAdd(hn::Set(d, scratch.from_start[i + r]), sums[r][m], value);
          value = hn::Mul(hn::Set(d, head.beta[(i + r) * head.ldbeta]), value);
        }
        sums[r][m] = value;
      }
    }
    if (head.rule != UpdateRule::kSum) {
      const float* const solve = scratch.solve + i * kChunk;
      MultiplyAdd(sums, solve, kChunk, 1, scratch.value, kBlock, i);
      for (int j = 0; j < kRows; ++j) {
        for (int r = j + 1; r < kRows; ++r) {
          const V factor = hn::Set(d, solve[r * kChunk + i + j]);
          for (int m = 0; m < kVectors; ++m) sums[r][m] = hn::MulAdd(factor, sums[j][m], sums[r][m]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int m = 0; m < kVectors; ++m) hn::Store(sums[r][m], d, scratch.value + (i + r) * kBlock + m * kLanes);
    }
  });

  // Outputs, o_i = e^(G_i) S q_i + sum_{j<=i} score_ij u_j. A row reads nothing of the rows after it, not even times
  // zero: a NaN later in the chunk does not reach it.
  ForTiles(0, n, [&](auto rows, int64_t i) HWY_ATTR {
    constexpr int kRows = decltype(rows)::value;
    Sums<kRows, kVectors> sums;
    SetZero(sums);
    MultiplyAdd(sums, head.q + i * head.ldq, head.ldq, 1, scratch.state, kBlock, K);
    for (int r = 0; r < kRows; ++r) {
      for (int m = 0; m < kVectors; ++m) sums[r][m] = hn::Mul(hn::Set(d, scratch.from_start[i + r]), sums[r][m]);
    }
    const float* const score = scratch.score + i * kChunk;
    MultiplyAdd(sums, score, kChunk, 1, scratch.value, kBlock, i);
    for (int j = 0; j < kRows; ++j) {
      for (int m = 0; m < kVectors; ++m) {
        const V value = hn::Load(d, scratch.value + (i + j) * kBlock + m * kLanes);
        for (int r = j; r < kRows; ++r) {
          sums[r][m] = hn::MulAdd(hn::Set(d, score[r * kChunk + i + j]), value, sums[r][m]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int m = 0; m < kVectors; ++m) {
        StorePart(sums[r][m], head.out + (i + r) * head.ldout + v + m * kLanes, width - m * kLanes);
      }
    }
  });

  for (int64_t c = 0; c < K; c += kBlock) {
    if (K - c > kLanes) {
      UpdateColumns<T, 2>(head, n, v, width, c, scratch);
    } else {
      UpdateColumns<T, 1>(head, n, v, width, c, scratch);
    }
  }
}

// The first n rows of `head` as one chunk, 2 <= n <= kChunk.
template <typename T>
void Chunk(const HeadRows& head, int64_t n, float* floats) {
  const ChunkScratch scratch(floats, head.key_dim);
  const int64_t K = head.key_dim;
  ChunkDecays(head, n, scratch);
  Transpose(head.k, head.ldk, n, K, scratch.key_by_channel, kChunk);
  if (head.rule != UpdateRule::kSum) Scores<true>(head, head.k, head.ldk, n, scratch, scratch.solve);
  Scores<false>(head, head.q, head.ldq, n, scratch, scratch.score);
  for (int64_t j = 0; j < n; ++j) {
    const V decay = hn::Set(d, scratch.to_end[j]);
    float* const to = scratch.decayed_key + j * PaddedKeyDim(head.key_dim);
    for (int64_t c = 0; c < PaddedKeyDim(head.key_dim); c += kLanes) {
      hn::Store(hn::Mul(decay, LoadPart(head.k + j * head.ldk + c, K - c)), d, to + c);
    }
  }
  for (int32_t v = 0; v < head.value_dim; v += kBlock) {
    const int32_t width = std::min(kBlock, head.value_dim - v);
    if (width > kLanes) {
      ChunkBlock<T, 2>(head, n, v, width, scratch);
    } else {
      ChunkBlock<T, 1>(head, n, v, width, scratch);
    }
  }
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#endif
