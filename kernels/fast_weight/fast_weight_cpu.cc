// Step and chunk in Highway, and their driver. README.md has the derivation.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/fast_weight/fast_weight_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "hwy/cache_control.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "kernels/common/device.h"
#include "kernels/fast_weight/fast_weight_head.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;
constexpr D d;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
constexpr int kBlock = 2 * kLanes;  // columns that a product takes at once
constexpr int kTileRows = kLanes == 16 ? 8 : kLanes == 8 ? 4 : 2;
constexpr int kChunk = FastWeightParams::kChunk;

// A step works on a few rows of the state at once and prefetches, in the order of memory, the rows that many groups
// ahead: several interleaved rows hide from the processor that memory is read from end to end.
constexpr int kPrefetchGroups = 2;

// The first `lanes` values at `from`, zero beyond; `lanes` may be anything.
HWY_INLINE V LoadPart(const float* from, int64_t lanes) {
  if (lanes >= kLanes) return hn::LoadU(d, from);
  if (lanes <= 0) return hn::Zero(d);
  return hn::MaskedLoad(hn::FirstN(d, lanes), d, from);
}

HWY_INLINE void StorePart(V value, float* to, int64_t lanes) {
  if (lanes >= kLanes) return hn::StoreU(value, d, to);
  if (lanes > 0) hn::BlendedStore(value, hn::FirstN(d, lanes), d, to);
}

// exp; NaN stays NaN (Highway's makes it zero).
HWY_INLINE V ExpOf(V x) { return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x)); }

// A decay below this leaves nothing of a float32; the bound keeps differences of sums of logarithms free of inf - inf.
HWY_INLINE double BoundedLog(float log_decay) { return log_decay < -1e4f ? -1e4 : log_decay; }

// ------------------------------------------------------------------------------------------------------- step

// kRows rows of the state from row v on: read, corrected, written and read out while they are in the first-level cache.
template <bool kSolve, int kRows>
HWY_INLINE void StepRows(const HeadRows& head, float beta, float decay, int32_t v) {
  const int32_t K = head.key_dim;
  const int32_t whole = K / kLanes * kLanes;
  float* HWY_RESTRICT S = head.state + int64_t{v} * K;
  for (int32_t i = 0; i < kRows * K; i += 16) hwy::Prefetch(S + kPrefetchGroups * kRows * K + i);
  V u[kRows];
  for (int r = 0; r < kRows; ++r) u[r] = hn::Set(d, head.v[v + r]);
  if constexpr (kSolve) {
    V read[kRows];
    for (V& sum : read) sum = hn::Zero(d);
    for (int32_t c = 0; c < whole; c += kLanes) {
      const V k = hn::LoadU(d, head.k + c);
      for (int r = 0; r < kRows; ++r) {
        read[r] = hn::MulAdd(hn::LoadU(d, S + r * K + c), k, read[r]);
      }
    }
    if (whole < K) {
      const V k = LoadPart(head.k + whole, K - whole);
      for (int r = 0; r < kRows; ++r) read[r] = hn::MulAdd(LoadPart(S + r * K + whole, K - whole), k, read[r]);
    }
    for (int r = 0; r < kRows; ++r) {
      const V decayed = hn::Mul(hn::Set(d, decay), hn::SumOfLanes(d, read[r]));
      u[r] = hn::Mul(hn::Set(d, beta), hn::Sub(u[r], decayed));
    }
  }
  const V keep = hn::Set(d, decay);
  V out[kRows];
  for (V& sum : out) sum = hn::Zero(d);
  for (int32_t c = 0; c < whole; c += kLanes) {
    const V k = hn::LoadU(d, head.k + c);
    const V q = hn::LoadU(d, head.q + c);
    for (int r = 0; r < kRows; ++r) {
      float* const at = S + r * K + c;
      const V written = hn::MulAdd(u[r], k, hn::Mul(keep, hn::LoadU(d, at)));
      hn::StoreU(written, d, at);
      out[r] = hn::MulAdd(written, q, out[r]);
    }
  }
  if (whole < K) {
    const int32_t lanes = K - whole;
    const V k = LoadPart(head.k + whole, lanes);
    const V q = LoadPart(head.q + whole, lanes);
    for (int r = 0; r < kRows; ++r) {
      float* const at = S + r * K + whole;
      const V written = hn::MulAdd(u[r], k, hn::Mul(keep, LoadPart(at, lanes)));
      StorePart(written, at, lanes);
      out[r] = hn::MulAdd(written, q, out[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) head.out[v + r] = hn::GetLane(hn::SumOfLanes(d, out[r]));
}

template <bool kSolve>
void StepWith(const HeadRows& head, int32_t v_begin, int32_t v_end) {
  constexpr int kRows = 4;
  const float beta = kSolve ? head.beta[0] : 1.0f;
  const float decay = head.rule == UpdateRule::kGatedDelta ? std::exp(head.log_decay[0]) : 1.0f;
  int32_t v = v_begin;
  for (; v + kRows <= v_end; v += kRows) StepRows<kSolve, kRows>(head, beta, decay, v);
  for (; v < v_end; ++v) StepRows<kSolve, 1>(head, beta, decay, v);
}

void Step(const HeadRows& head, int32_t v_begin, int32_t v_end) {
  if (head.rule == UpdateRule::kSum) return StepWith<false>(head, v_begin, v_end);
  StepWith<true>(head, v_begin, v_end);
}

// ------------------------------------------------------------------------------------------- products in registers

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

// to[c][r] = from[r][c].
void Transpose(const float* HWY_RESTRICT from, int64_t ldfrom, int64_t rows, int64_t columns, float* HWY_RESTRICT to,
               int64_t ldto) {
  int64_t r = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> d4;
  const int64_t whole = columns / 4 * 4;
  for (; r + 4 <= rows; r += 4) {
    const float* const row = from + r * ldfrom;
    for (int64_t c = 0; c < whole; c += 4) {
      const auto r0 = hn::LoadU(d4, row + c);
      const auto r1 = hn::LoadU(d4, row + ldfrom + c);
      const auto r2 = hn::LoadU(d4, row + 2 * ldfrom + c);
      const auto r3 = hn::LoadU(d4, row + 3 * ldfrom + c);
      const auto low01 = hn::InterleaveLower(d4, r0, r1);
      const auto high01 = hn::InterleaveUpper(d4, r0, r1);
      const auto low23 = hn::InterleaveLower(d4, r2, r3);
      const auto high23 = hn::InterleaveUpper(d4, r2, r3);
      float* const at = to + c * ldto + r;
      hn::StoreU(hn::ConcatLowerLower(d4, low23, low01), d4, at);
      hn::StoreU(hn::ConcatUpperUpper(d4, low23, low01), d4, at + ldto);
      hn::StoreU(hn::ConcatLowerLower(d4, high23, high01), d4, at + 2 * ldto);
      hn::StoreU(hn::ConcatUpperUpper(d4, high23, high01), d4, at + 3 * ldto);
    }
    for (int64_t c = whole; c < columns; ++c) {
      for (int64_t i = 0; i < 4; ++i) to[c * ldto + r + i] = row[i * ldfrom + c];
    }
  }
#endif
  for (; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c * ldto + r] = from[r * ldfrom + c];
  }
}

// ------------------------------------------------------------------------------------------------------ chunk

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

  static int64_t Floats(int32_t key_dim) {
    return int64_t{key_dim} * (kChunk + kBlock) + kChunk * PaddedKeyDim(key_dim) + 3 * kChunk * kChunk +
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
      const V factor = hn::Set(d, kForSolve ? -head.beta[(i + r) * head.ldgate] : 1.0f);
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
template <int kVectors>
void UpdateColumns(const HeadRows& head, int64_t n, int32_t v, int32_t width, int64_t c, const ChunkScratch& scratch) {
  const int64_t K = head.key_dim;
  const V keep = hn::Set(d, scratch.from_start[n - 1]);
  ForTiles(0, width, [&](auto rows, int64_t i) HWY_ATTR {
    constexpr int kRows = decltype(rows)::value;
    Sums<kRows, kVectors> sums;
    float* const S = head.state + (v + i) * K + c;
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
template <int kVectors>
void ChunkBlock(const HeadRows& head, int64_t n, int32_t v, int32_t width, const ChunkScratch& scratch) {
  const int32_t K = head.key_dim;
  if (width < kBlock) std::fill_n(scratch.state, int64_t{K} * kBlock, 0.0f);
  Transpose(head.state + int64_t{v} * K, K, width, K, scratch.state, kBlock);

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
          value = hn::Mul(hn::Set(d, head.beta[(i + r) * head.ldgate]), value);
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
      UpdateColumns<2>(head, n, v, width, c, scratch);
    } else {
      UpdateColumns<1>(head, n, v, width, c, scratch);
    }
  }
}

// The first n rows of `head` as one chunk, 2 <= n <= kChunk.
void Chunk(const HeadRows& head, int64_t n, const ChunkScratch& scratch) {
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
      ChunkBlock<2>(head, n, v, width, scratch);
    } else {
      ChunkBlock<1>(head, n, v, width, scratch);
    }
  }
}

void Chunks(const HeadRows& head, float* scratch) {
  const ChunkScratch pieces(scratch, head.key_dim);
  for (int64_t row = 0; row < head.rows; row += kChunk) {
    const HeadRows rest = head.From(row);
    const int64_t n = std::min<int64_t>(kChunk, rest.rows);
    if (n == 1) {
      Step(rest, 0, head.value_dim);
    } else {
      Chunk(rest, n, pieces);
    }
  }
}

FastWeightKernels Kernels() { return {&Step, &Chunks, &ChunkScratch::Floats}; }

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/common/aligned_buffer.h"
#include "kernels/common/check.h"

namespace palimpsest {
namespace {

HWY_EXPORT(Kernels);

// Elements of state below which it does not pay to wake another thread.
constexpr int64_t kMinStatePerThread = 32 << 10;
// Rows of the state are split among threads at whole cache lines of `out`.
constexpr int64_t kRowGrain = 16;
// A chunk's row costs this part of a step, whose time goes into reading and writing the state.
constexpr int64_t kChunkRowsPerStep = 4;

float* Scratch(int64_t floats) {
  thread_local AlignedArray<float> scratch;
  if (scratch.size() < floats) scratch = AlignedArray<float>(floats);
  return scratch.data();
}

HeadRows HeadOf(const FastWeightParams& params, int32_t sequence, int32_t value_head) {
  const auto [heads, value_heads, K, V] = params.shape;
  const int64_t row = params.rows.row_begin[sequence];
  const int64_t key_head = int64_t{value_head} * heads / value_heads;
  HeadRows head;
  head.rule = params.rule;
  head.key_dim = K;
  head.value_dim = V;
  head.rows = params.rows.length(sequence);
  head.q = params.q + row * params.ldq + key_head * K;
  head.ldq = params.ldq;
  head.k = params.k + row * params.ldk + key_head * K;
  head.ldk = params.ldk;
  head.v = params.v + row * params.ldv + int64_t{value_head} * V;
  head.ldv = params.ldv;
  if (params.rule != UpdateRule::kSum) head.beta = params.beta + row * value_heads + value_head;
  if (params.rule == UpdateRule::kGatedDelta) head.log_decay = params.log_decay + row * value_heads + value_head;
  head.ldgate = value_heads;
  head.out = params.out + row * params.ldout + int64_t{value_head} * V;
  head.ldout = params.ldout;
  head.state = params.state.At(params.rows.slot[sequence]) + int64_t{value_head} * V * K;
  return head;
}

// Cost of one head of a sequence, in rows of the state stepped.
int64_t CostOf(const FastWeightParams& params, int32_t sequence) {
  const int64_t steps = (params.rows.length(sequence) + kChunkRowsPerStep - 1) / kChunkRowsPerStep;
  return steps * params.shape.value_dim;
}

}  // namespace

void FastWeight(const ExecContext& ctx, const FastWeightParams& params) {
  if (ctx.device != nullptr) return ctx.device->Run(params);
  const int32_t value_heads = params.shape.value_heads;
  const int64_t K = params.shape.key_dim;
  const int64_t V = params.shape.value_dim;
  PALIMPSEST_CHECK(params.shape.heads >= 1 && value_heads % params.shape.heads == 0 && K >= 1 && V >= 1);
  const FastWeightKernels kernels = HWY_DYNAMIC_DISPATCH(Kernels)();

  // All heads of all sequences lie on a line, as long as they cost, and each thread takes its share of the line. The
  // rows of a state are independent, so a step may be cut anywhere; chunks, which share work between rows, are not cut
  // and belong to the thread that has their middle.
  int64_t total = 0;
  for (int32_t s = 0; s < params.rows.num_sequences; ++s) total += CostOf(params, s) * value_heads;
  const int64_t parts = std::clamp<int64_t>(total * K / kMinStatePerThread, 1, ctx.pool->size());
  const auto run_part = [&](int64_t part) {
    const int64_t part_begin = total * part / parts;
    const int64_t part_end = total * (part + 1) / parts;
    int64_t begin = 0;
    for (int32_t s = 0; s < params.rows.num_sequences; ++s) {
      const int64_t cost = CostOf(params, s);
      for (int32_t h = 0; h < value_heads; ++h, begin += cost) {
        if (params.rows.length(s) == 1) {
          const auto row_at = [begin, V](int64_t point) {
            return point >= begin + V ? V : std::max<int64_t>(point - begin, 0) / kRowGrain * kRowGrain;
          };
          const int64_t v_begin = row_at(part_begin);
          const int64_t v_end = row_at(part_end);
          if (v_begin < v_end) kernels.step(HeadOf(params, s, h), v_begin, v_end);
        } else if (cost > 0) {
          const int64_t middle = begin + cost / 2;
          if (middle < part_begin || middle >= part_end) continue;
          kernels.chunks(HeadOf(params, s, h), Scratch(kernels.scratch_floats(K)));
        }
      }
    }
  };
  if (parts == 1) return run_part(0);
  ctx.pool->Run([&](int part) {
    if (part < parts) run_part(part);
  });
}

}  // namespace palimpsest
#endif  // HWY_ONCE
