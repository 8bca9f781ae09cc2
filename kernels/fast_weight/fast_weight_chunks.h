// Inside fast_weight: chunks in the parallel (WY) form on tensor cores; README.md has the equations.
//
// A block has kValues rows of one head's state of one sequence and takes the sequence's chunks one after the other.
// Values never meet, so blocks of one head share nothing; each forms the scores of q and k anew. For each chunk:
//   1. k, q to shared memory, rows past its end as zeros; beta; sums of log-decays
//   2. scores   L_ij = beta_i e^{G_i - G_j} k_i k_j  (j < i)    P_ij = e^{G_i - G_j} q_i k_j  (j <= i)
//   3. right side   U_i = beta_i (v_i - e^{G_i} S k_i), and e^{G_i} S q_i, kept in registers
//   4. (I + L) U = right side, by forward substitution: 16 rows at a time, what is before them by the tensor cores
//   5. out = e^{G} S q + P U
//   6. S <- e^{G_n} S + U^T (e^{G_n - G_j} k_j), rounded as it is stored
// A NaN of one row may reach the rows of its chunk that come before it: a product with zero keeps it.
#pragma once

#include "kernels/cuda/math.h"
#include "kernels/cuda/mma.h"
#include "kernels/fast_weight/fast_weight_config.h"

namespace palimpsest::cuda {

struct FastWeightChunksParams {
  FastWeightParams p;
  int32_t blocks_per_head = 0;
  bool aligned = false;  // q and k may be read 16 bytes at a time
};

// Four values from `at` on.
template <bool kAligned = true>
__device__ __forceinline__ float4 LoadFour(const float* at) {
  if constexpr (kAligned) return *reinterpret_cast<const float4*>(at);
  return make_float4(at[0], at[1], at[2], at[3]);
}
template <bool kAligned = true>
__device__ __forceinline__ float4 LoadFour(const BF16* at) {
  const uint2 pairs = *reinterpret_cast<const uint2*>(at);
  return make_float4(FloatFromBF16(static_cast<BF16>(pairs.x)), FloatFromBF16(static_cast<BF16>(pairs.x >> 16)),
                     FloatFromBF16(static_cast<BF16>(pairs.y)), FloatFromBF16(static_cast<BF16>(pairs.y >> 16)));
}

__device__ __forceinline__ void StoreFour(float4 four, float* at) { *reinterpret_cast<float4*>(at) = four; }
__device__ __forceinline__ void StoreFour(float4 four, BF16* at) {
  *reinterpret_cast<uint2*>(at) = make_uint2(PackBF16(four.x, four.y), PackBF16(four.z, four.w));
}

// kRows rows of kK values on their way to shared memory, where they lie kKeys apart: four values a thread in turn,
// zeros from `rows` on. All of a thread's loads are under way before the first is waited for.
template <int kK, int kRows, int kKeys>
struct HeldTile {
  static constexpr int kFours = kK / 4;
  static constexpr int kHeld = kRows * kFours / FastWeightChunkLayout::kThreads;
  static_assert(kRows * kFours % FastWeightChunkLayout::kThreads == 0);
  float4 held[kHeld];

  template <bool kAligned, typename Stored>
  __device__ __forceinline__ void Load(const Stored* from, int64_t ld, int rows) {
#pragma unroll
    for (int n = 0; n < kHeld; ++n) {
      const int r = At(n) / kFours, c = At(n) % kFours * 4;
      held[n] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (r < rows) held[n] = LoadFour<kAligned>(from + r * ld + c);
    }
  }

  __device__ __forceinline__ void Store(float* to) const {
#pragma unroll
    for (int n = 0; n < kHeld; ++n) StoreFour(held[n], to + At(n) / kFours * kKeys + At(n) % kFours * 4);
  }

 private:
  __device__ __forceinline__ static int At(int n) {
    return static_cast<int>(threadIdx.x) + n * FastWeightChunkLayout::kThreads;
  }
};

// The sum of a warp's values up to each lane's own.
__device__ __forceinline__ double SumUpToLane(double value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (unsigned apart = 1; apart < kWarp; apart *= 2) {
    const double before = __shfl_up_sync(kAllLanes, value, apart);
    if (lane >= static_cast<int>(apart)) value += before;
  }
  return value;
}

// One chunk's arrays in shared memory.
template <int kK>
struct ChunkMemory {
  static constexpr FastWeightChunkLayout kLayout = ChunkLayoutOf(kK);
  float* const k = Shared<float>() + kLayout.k;                                      // [kChunk][key_stride]
  float* const q = Shared<float>() + kLayout.q;                                      // [kChunk][key_stride]
  float* const state = Shared<float>() + kLayout.state;                              // [kValues][key_stride]
  float* const key_scores = Shared<float>() + kLayout.key_scores;                    // [kChunk][kScoreStride]
  float* const query_scores = Shared<float>() + kLayout.query_scores;                // [kChunk][kScoreStride]
  float* const u = Shared<float>() + kLayout.u;                                      // [kChunk][kValueStride]
  float* const beta = Shared<float>() + kLayout.beta;                                // [kChunk]
  double* const decay = reinterpret_cast<double*>(Shared<float>() + kLayout.decay);  // [kChunk] G

  // e^{G_i - G_j}: subtracted first, in double.
  __device__ __forceinline__ float Decay(int i, int j) const { return expf(static_cast<float>(decay[i] - decay[j])); }
};

template <int kK, UpdateRule kRule, typename Stored, Tf32 kMath>
__global__ void __launch_bounds__(FastWeightChunkLayout::kThreads, ChunkBlocksOf(kK))
    FastWeightChunksKernel(FastWeightChunksParams params) {
  using Layout = FastWeightChunkLayout;
  constexpr int kC = Layout::kChunk, kV = Layout::kValues, kS = Layout::kScoreStride, kU = Layout::kValueStride;
  constexpr int kKeys = ChunkMemory<kK>::kLayout.key_stride;
  constexpr bool kGated = kRule == UpdateRule::kGatedDelta;
  const FastWeightParams& p = params.p;
  const int32_t slot = p.rows.slot[blockIdx.x];
  const int64_t begin = p.rows.row_begin[blockIdx.x];
  int64_t length = p.rows.row_begin[blockIdx.x + 1] - begin;
  if (length % kC == 1) --length;  // a step, which another kernel takes
  if (slot < 0 || length == 0) return;

  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  const int value_head = static_cast<int>(blockIdx.y) / params.blocks_per_head;
  const int v_begin = static_cast<int>(blockIdx.y) % params.blocks_per_head * kV;
  const int values = p.shape.value_dim - v_begin < kV ? p.shape.value_dim - v_begin : kV;
  const int64_t head = int64_t{value_head} * p.shape.heads / p.shape.value_heads;
  const int64_t value_column = int64_t{value_head} * p.shape.value_dim + v_begin;
  const ChunkMemory<kK> m;
  Stored* const state = p.state.At<Stored>(slot) + value_column * kK;
  {
    HeldTile<kK, kV, kKeys> tile;
    tile.template Load<true>(state, kK, values);
    tile.Store(m.state);
  }

  for (int64_t chunk = 0; chunk < length; chunk += kC) {
    const int64_t row = begin + chunk;
    const int n = static_cast<int>(length - chunk < kC ? length - chunk : kC);
    // 1.
    {
      // Two rows' gates a lane: of the first warp the log-decays, of the second beta.
      constexpr int kGatesWarp = 0, kBetaWarp = 1;
      const int first = thread % kWarp * 2;
      const auto gates = [&](const float* of, float(&pair)[2]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          pair[i] = first + i < n ? of[(row + first + i) * p.shape.value_heads + value_head] : 0.0f;
        }
      };
      float pair[2] = {0.0f, 0.0f};
      if (kGated && warp == kGatesWarp) gates(p.log_decay, pair);
      if (kRule != UpdateRule::kSum && warp == kBetaWarp) gates(p.beta, pair);
      HeldTile<kK, kC, kKeys> k, q;
      const float* const k_from = p.k + row * p.ldk + head * kK;
      const float* const q_from = p.q + row * p.ldq + head * kK;
      if (params.aligned) {
        k.template Load<true>(k_from, p.ldk, n);
        q.template Load<true>(q_from, p.ldq, n);
      } else {
        k.template Load<false>(k_from, p.ldk, n);
        q.template Load<false>(q_from, p.ldq, n);
      }
      __syncthreads();  // nobody reads the chunk before this any more
      if (kGated && warp == kGatesWarp) {
        double sums[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) sums[i] = pair[i] < -1e4f ? -1e4 : double{pair[i]};
        sums[1] += sums[0];
        const double through = SumUpToLane(sums[1]);
        const double before = __shfl_up_sync(kAllLanes, through, 1);
        m.decay[first] = first == 0 ? sums[0] : before + sums[0];
        m.decay[first + 1] = through;
      }
      if (warp == kBetaWarp) {
        m.beta[first] = pair[0];
        m.beta[first + 1] = pair[1];
      }
      k.Store(m.k);
      q.Store(m.q);
      __syncthreads();
    }
    // 2. A warp has 16 rows and half the columns of both.
    {
      const int top = warp % 4 * 16, left = warp / 4 * 32;
      const auto k_of = [&](int c, int j) { return m.k[(left + j) * kKeys + c]; };
      float scores[4][4] = {};
      if constexpr (kRule != UpdateRule::kSum) {
        MultiplyTiles<kMath>(
            scores, kK, [&](int i, int c) { return m.k[(top + i) * kKeys + c]; }, k_of);
        ForTileElements(scores, [&](int i, int j, float score) {
          i += top;
          j += left;
          if constexpr (kGated) score *= j < i ? m.Decay(i, j) : 0.0f;
          m.key_scores[i * kS + j] = j < i ? m.beta[i] * score : 0.0f;
        });
#pragma unroll
        for (auto& tile : scores) tile[0] = tile[1] = tile[2] = tile[3] = 0.0f;
      }
      MultiplyTiles<kMath>(
          scores, kK, [&](int i, int c) { return m.q[(top + i) * kKeys + c]; }, k_of);
      ForTileElements(scores, [&](int i, int j, float score) {
        i += top;
        j += left;
        if constexpr (kGated) score *= j <= i ? m.Decay(i, j) : 0.0f;
        m.query_scores[i * kS + j] = j <= i ? score : 0.0f;
      });
    }
    // 3. A warp has 16 rows and 16 values.
    const int top = warp % 4 * 16, left = warp / 4 * 16;
    const auto state_of = [&](int c, int v) { return m.state[(left + v) * kKeys + c]; };
    const auto value_of = [&](int i, int v) {
      return i < n && v < values ? p.v[(row + i) * p.ldv + value_column + v] : 0.0f;
    };
    float read[2][4] = {};
    if constexpr (kRule != UpdateRule::kSum) {
      MultiplyTiles<kMath>(
          read, kK, [&](int i, int c) { return m.k[(top + i) * kKeys + c]; }, state_of);
    }
    ForTileElements(read, [&](int i, int v, float sum) {
      i += top;
      v += left;
      if constexpr (kRule == UpdateRule::kSum) {
        m.u[i * kU + v] = value_of(i, v);
      } else {
        if constexpr (kGated) sum *= expf(static_cast<float>(m.decay[i]));
        m.u[i * kU + v] = m.beta[i] * (value_of(i, v) - sum);
      }
    });
    float out[2][4] = {};
    MultiplyTiles<kMath>(
        out, kK, [&](int i, int c) { return m.q[(top + i) * kKeys + c]; }, state_of);
    if constexpr (kGated) {
      const int g = thread % kWarp / 4;
      const float lower = expf(static_cast<float>(m.decay[top + g]));
      const float upper = expf(static_cast<float>(m.decay[top + g + 8]));
#pragma unroll
      for (auto& tile : out) {
        tile[0] *= lower;
        tile[1] *= lower;
        tile[2] *= upper;
        tile[3] *= upper;
      }
    }
    __syncthreads();
    // 4.
    if constexpr (kRule != UpdateRule::kSum) {
      for (int first = 0; first < kC; first += 16) {
        if (first > 0) {
          if (warp < kV / 8) {  // 16 rows and 8 values each
            float before[1][4] = {};
            MultiplyTiles<kMath>(
                before, first, [&](int i, int j) { return m.key_scores[(first + i) * kS + j]; },
                [&](int j, int v) { return m.u[j * kU + 8 * warp + v]; });
            ForTileElements(before, [&](int i, int v, float sum) { m.u[(first + i) * kU + 8 * warp + v] -= sum; });
          }
          __syncthreads();
        }
        if (thread < kV) {
          float u[16];
#pragma unroll
          for (int i = 0; i < 16; ++i) {
            u[i] = m.u[(first + i) * kU + thread];
#pragma unroll
            for (int j = 0; j < i; ++j) u[i] = fmaf(-m.key_scores[(first + i) * kS + first + j], u[j], u[i]);
            m.u[(first + i) * kU + thread] = u[i];
          }
        }
        __syncthreads();
      }
    }
    // 5.
    MultiplyTiles<kMath>(
        out, kC, [&](int i, int j) { return m.query_scores[(top + i) * kS + j]; },
        [&](int j, int v) { return m.u[j * kU + left + v]; });
    ForTileElements(out, [&](int i, int v, float sum) {
      i += top;
      v += left;
      if (i < n && v < values) p.out[(row + i) * p.ldout + value_column + v] = sum;
    });
    // 6. A warp has 16 values and a quarter of the keys.
    {
      constexpr int kTiles = kK / 32;
      const int value = warp % 2 * 16, key = warp / 2 * (kK / 4);
      const float total = kGated ? expf(static_cast<float>(m.decay[kC - 1])) : 1.0f;
      float sum[kTiles][4] = {};
      MultiplyTiles<kMath>(
          sum, kC, [&](int v, int j) { return m.u[j * kU + value + v] * (kGated ? m.Decay(kC - 1, j) : 1.0f); },
          [&](int j, int c) { return m.k[j * kKeys + key + c]; });
      // Not by the unit, which drops digits at each addition: a large state would shrink from chunk to chunk.
      ForTileElements(sum, [&](int v, int c, float written) {
        float& at = m.state[(value + v) * kKeys + key + c];
        at = RoundedTo<Stored>(fmaf(total, at, written));
      });
    }
  }
  __syncthreads();
  constexpr int kFours = kK / 4;
  for (int i = thread; i < values * kFours; i += Layout::kThreads) {
    StoreFour(LoadFour(m.state + i / kFours * kKeys + i % kFours * 4), state + 4 * i);
  }
}

}  // namespace palimpsest::cuda
