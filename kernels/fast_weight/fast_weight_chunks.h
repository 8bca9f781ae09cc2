// Inside fast_weight: chunks in the parallel (WY) form on tensor cores; README.md has the equations.
//
// A block has kV rows of one head's state of one sequence and takes the sequence's chunks one after the other. Values
// never meet, so blocks of one head share nothing; each forms the scores of q and k anew, and how many values a block
// has changes no bit. The state stays in registers; what products take of it, k and q lies in shared memory.
//
// Four warps have 16 rows of k each, four 16 rows of q, and both do the same with them. For each chunk:
//   1. k, q, v to shared memory, rows past its end as zeros; beta; sums G of log-decays
//   2. scores   X_ij = -beta_i e^{G_i - G_j} k_i k_j  (j < i)    or    e^{G_i - G_j} q_i k_j  (j <= i)
//   3. Y_i = beta_i (v_i - e^{G_i} S k_i)    or    e^{G_i} S q_i
//   4. U = Y + X U by blocks of 16 rows: those of k share their Y_b; every warp solves (I - X_bb) U_b = Y_b for eight
//      values, with the inverse at hand; then the rows of k after them, and those of q, add X U_b to their Y
//   5. what rows of q have is the output
//   6. S <- e^{G_n} S + U^T (e^{G_n - G_j} k_j), rounded as it is stored
// Scores and Y never leave the registers: two columns of an accumulator, 2t and 2t + 1, serve as columns t and t + 4 of
// the left factor, as long as the right one's rows are taken in the same order.
// A NaN of one row may reach the rows of its chunk that come before it: a product with zero keeps it.
#pragma once

#include "kernels/cuda/math.h"
#include "kernels/cuda/mma.h"
#include "kernels/fast_weight/fast_weight_config.h"

namespace palimpsest::cuda {

struct FastWeightChunksParams {
  FastWeightParams p;
  int32_t blocks_per_head = 0;
  bool aligned = false;  // q, k and v may be read 16 bytes at a time, out be written 8 bytes at a time
};

__device__ __forceinline__ float2 LoadPair(const float* at) { return *reinterpret_cast<const float2*>(at); }
__device__ __forceinline__ float2 LoadPair(const BF16* at) {
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(at);
  return make_float2(FloatFromBF16(static_cast<BF16>(pair)), FloatFromBF16(static_cast<BF16>(pair >> 16)));
}

__device__ __forceinline__ void StorePair(float x, float y, float* at) {
  *reinterpret_cast<float2*>(at) = make_float2(x, y);
}
__device__ __forceinline__ void StorePair(float x, float y, BF16* at) {
  *reinterpret_cast<uint32_t*>(at) = PackBF16(x, y);
}

// kRows rows of kColumns values on their way to shared memory, four values a thread in turn; zeros where there are no
// more. All of a thread's loads are under way before the first is waited for. Rows begin at 16 bytes.
template <int kRows, int kColumns>
struct HeldTile {
  static constexpr int kFours = kColumns / 4;
  static constexpr int kHeld = kRows * kFours / FastWeightChunkLayout::kThreads;
  static constexpr int kRowsApart = FastWeightChunkLayout::kThreads / kFours;
  static_assert(kRows * kFours % FastWeightChunkLayout::kThreads == 0 && FastWeightChunkLayout::kThreads % kFours == 0);
  float4 held[kHeld];

  // `columns` is a multiple of 4.
  __device__ __forceinline__ void Load(const float* from, int64_t ld, int rows, int columns = kColumns) {
    if (Column() >= columns) rows = 0;
    from += Row() * ld + Column();
#pragma unroll
    for (int n = 0; n < kHeld; ++n) {
      held[n] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (Row() + n * kRowsApart < rows) held[n] = *reinterpret_cast<const float4*>(from);
      from += kRowsApart * ld;
    }
  }

  template <typename Convert>
  __device__ __forceinline__ void Store(float* to, int stride, Convert convert) const {
    to += Row() * stride + Column();
#pragma unroll
    for (int n = 0; n < kHeld; ++n) {
      const float4& four = held[n];
      *reinterpret_cast<float4*>(to + n * kRowsApart * stride) =
          make_float4(convert(four.x), convert(four.y), convert(four.z), convert(four.w));
    }
  }

 private:
  __device__ __forceinline__ static int Row() { return static_cast<int>(threadIdx.x) / kFours; }
  __device__ __forceinline__ static int Column() { return static_cast<int>(threadIdx.x) % kFours * 4; }
};

// The same for rows that begin anywhere, one value after the other.
template <int kRows, int kColumns, typename Convert>
__device__ __forceinline__ void CopyTile(const float* from, int64_t ld, int rows, int columns, float* to, int stride,
                                         Convert convert) {
#pragma unroll 1  // registers are for what comes often
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kColumns; i += FastWeightChunkLayout::kThreads) {
    const int r = i / kColumns, c = i % kColumns;
    to[r * stride + c] = r < rows && c < columns ? convert(from[r * ld + c]) : 0.0f;
  }
}

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
template <int kK, int kV>
struct ChunkMemory {
  using Layout = FastWeightChunkLayout;
  static constexpr Layout kLayout = ChunkLayoutOf(kK, kV);
  static constexpr int kKeys = kLayout.key_stride, kValues = kLayout.value_stride;
  static constexpr int kU = Layout::kRowStride, kInverse = Layout::kInverseStride;
  float* const k = Shared<float>() + kLayout.k;                    // [kChunk][kKeys]
  float* const q = Shared<float>() + kLayout.q;                    // [kChunk][kKeys]
  float* const state = Shared<float>() + kLayout.state;            // [kV][kKeys]
  float* const v = Shared<float>() + kLayout.v;                    // [kChunk][kValues]
  float* const u = Shared<float>() + kLayout.u;                    // [kV][kU], by values
  float* const inverse = Shared<float>() + kLayout.inverse;        // [kChunk][kInverse]
  float* const beta = Shared<float>() + kLayout.beta;              // [kChunk]
  float* const from_start = Shared<float>() + kLayout.from_start;  // [kChunk] e^{G_i}
  float* const to_end = Shared<float>() + kLayout.to_end;          // [kChunk] e^{G_n - G_i}
  float2* const decay =
      reinterpret_cast<float2*>(Shared<float>() + kLayout.sum);  // [kChunk] G, to base 2, in two parts
};

// The inverse of I - X for the 16 x 16 block below whose diagonal X lies at `block`, which it replaces. By
// substitution, a column a lane. A column is what one row's value adds to the later ones' corrections; for keys of
// length one and beta up to two no element is larger than that, so nothing grows that a solve would have kept small.
__device__ __forceinline__ void InvertBlock(float* block, int stride) {
  const int column = static_cast<int>(threadIdx.x) % kWarp;
  float x[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) x[i] = i == column ? 1.0f : 0.0f;
#pragma unroll
  for (int i = 1; i < 16; ++i) {
#pragma unroll
    for (int j = 0; j < i; j += 4) {
      const float4 four = *reinterpret_cast<const float4*>(block + i * stride + j);
      x[i] = fmaf(four.x, x[j], x[i]);
      if (j + 1 < i) x[i] = fmaf(four.y, x[j + 1], x[i]);
      if (j + 2 < i) x[i] = fmaf(four.z, x[j + 2], x[i]);
      if (j + 3 < i) x[i] = fmaf(four.w, x[j + 3], x[i]);
    }
  }
  __syncwarp();
  if (column < 16) {
#pragma unroll
    for (int i = 0; i < 16; ++i) block[i * stride + column] = x[i];
  }
  __syncwarp();
}

template <int kK, int kV, UpdateRule kRule, typename Stored, Tf32 kMath>
__global__ void __launch_bounds__(FastWeightChunkLayout::kThreads, 1)
    FastWeightChunksKernel(FastWeightChunksParams params) {
  AfterPrevious();
  using Memory = ChunkMemory<kK, kV>;
  constexpr int kC = FastWeightChunkLayout::kChunk, kKeys = Memory::kKeys, kU = Memory::kU;
  constexpr int kTiles = kV / 8;  // of a row's values
  constexpr bool kGated = kRule == UpdateRule::kGatedDelta, kCorrects = kRule != UpdateRule::kSum;
  const FastWeightParams& p = params.p;
  const int32_t slot = p.rows.slot[blockIdx.x];
  const int64_t begin = p.rows.row_begin[blockIdx.x];
  int length = p.rows.row_begin[blockIdx.x + 1] - static_cast<int>(begin);
  if (length % kC == 1) --length;  // a step, which another kernel takes
  if (slot < 0 || length == 0) return;

  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int g = lane / 4, t = lane % 4;
  const int value_head = static_cast<int>(blockIdx.y) / params.blocks_per_head;
  const int first_of_block = static_cast<int>(blockIdx.y) % params.blocks_per_head * kV;
  const int values = p.shape.value_dim - first_of_block < kV ? p.shape.value_dim - first_of_block : kV;
  const int64_t head = int64_t{value_head} * p.shape.heads / p.shape.value_heads;
  const int64_t value_column = int64_t{value_head} * p.shape.value_dim + first_of_block;
  const Memory m;
  const auto as_factor = [](float x) { return AsFactor<kMath>(x); };

  // A thread's elements of the state: a warp has half the values and a quarter of the keys.
  constexpr int kStateRows = kV / 32, kStateTiles = kK / 32;
  const int first_value = warp % 2 * (kV / 2), first_key = warp / 2 * (kK / 4);
  float state[kStateRows][kStateTiles][4];
  const auto for_state_pairs = [&](auto give) {
#pragma unroll
    for (int r = 0; r < kStateRows; ++r) {
#pragma unroll
      for (int n = 0; n < kStateTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          give(first_value + 16 * r + 4 * i + g, first_key + 8 * n + 2 * t, state[r][n][i], state[r][n][i + 1]);
        }
      }
    }
  };
  Stored* const kept = p.state.At<Stored>(slot) + value_column * kK;
  for_state_pairs([&](int value, int key, float& x, float& y) {
    const float2 pair = value < values ? LoadPair(kept + value * kK + key) : make_float2(0.0f, 0.0f);
    x = pair.x;
    y = pair.y;
  });
  const auto share_state = [&] {
    for_state_pairs([&](int value, int key, float x, float y) {
      StorePair(as_factor(x), as_factor(y), m.state + value * kKeys + key);
    });
  };
  share_state();

  // The next chunk's inputs, loaded while the one before it is in work, unless they are too many for the registers.
  // After the last there are none: zeros, and not what was held before, which would then be held all the time.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  constexpr bool kAhead = false;  // the same registers, of which the compiler would spill some here
#else
  constexpr bool kAhead = kK <= 128 && kCorrects;
#endif
  constexpr int kDecayWarp = 0, kBetaWarp = 1;  // have two rows' gates a lane
  HeldTile<kC, kK> k, q;
  HeldTile<kC, kV> v;
  float gates[2];
  const float* const k_begin = p.k + begin * p.ldk + head * kK;
  const float* const q_begin = p.q + begin * p.ldq + head * kK;
  const float* const v_begin = p.v + begin * p.ldv + value_column;
  const auto rows_of = [&](int chunk) { return length - chunk < kC ? length - chunk : kC; };
  const auto load_ahead = [&](int chunk) {
    const int n = rows_of(chunk);
    const float* const from = warp == kDecayWarp ? p.log_decay : p.beta;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = 2 * lane + i;
      gates[i] = 0.0f;
      if (r < n && ((kGated && warp == kDecayWarp) || (kCorrects && warp == kBetaWarp))) {
        gates[i] = from[(begin + chunk + r) * p.shape.value_heads + value_head];
      }
    }
    if constexpr (kAhead) {
      const int held = params.aligned ? n : 0;
      k.Load(k_begin + chunk * p.ldk, p.ldk, held);
      q.Load(q_begin + chunk * p.ldq, p.ldq, held);
      v.Load(v_begin + chunk * p.ldv, p.ldv, held, values);
    }
  };
  load_ahead(0);

  const bool queries = warp >= 4;
  const int block = warp % 4, top = 16 * block;  // the warp's rows
  for (int chunk = 0; chunk < length; chunk += kC) {
    const int n = rows_of(chunk);
    // 1.
    __syncthreads();
    const auto as_is = [](float x) { return x; };
    if (!params.aligned) {
      CopyTile<kC, kK>(k_begin + chunk * p.ldk, p.ldk, n, kK, m.k, kKeys, as_factor);
      CopyTile<kC, kK>(q_begin + chunk * p.ldq, p.ldq, n, kK, m.q, kKeys, as_factor);
      CopyTile<kC, kV>(v_begin + chunk * p.ldv, p.ldv, n, values, m.v, Memory::kValues, as_is);
    } else if constexpr (kAhead) {
      k.Store(m.k, kKeys, as_factor);
      q.Store(m.q, kKeys, as_factor);
      v.Store(m.v, Memory::kValues, as_is);
    } else {
#pragma unroll 1
      for (int first = 0; first < kC; first += kC / 2) {
        HeldTile<kC / 2, kK> half;
        half.Load(k_begin + (chunk + first) * p.ldk, p.ldk, n - first);
        half.Store(m.k + first * kKeys, kKeys, as_factor);
        half.Load(q_begin + (chunk + first) * p.ldq, p.ldq, n - first);
        half.Store(m.q + first * kKeys, kKeys, as_factor);
      }
      v.Load(v_begin + chunk * p.ldv, p.ldv, n, values);
      v.Store(m.v, Memory::kValues, as_is);
    }
    if (kGated && warp == kDecayWarp) {
      constexpr double kLog2OfE = 1.4426950408889634;  // a power of two is one instruction
      double sums[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) sums[i] = (gates[i] < -1e4f ? -1e4 : double{gates[i]}) * kLog2OfE;
      sums[1] += sums[0];
      const double through = SumUpToLane(sums[1]);
      const double before = __shfl_up_sync(kAllLanes, through, 1), last = __shfl_sync(kAllLanes, through, kWarp - 1);
      if (lane > 0) sums[0] += before;
      sums[1] = through;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float large = static_cast<float>(sums[i]);
        m.decay[2 * lane + i] = make_float2(large, static_cast<float>(sums[i] - large));
        m.from_start[2 * lane + i] = exp2f(large);
        m.to_end[2 * lane + i] = exp2f(static_cast<float>(last - sums[i]));
      }
    }
    if (kCorrects && warp == kBetaWarp) StorePair(gates[0], gates[1], m.beta + 2 * lane);
    __syncthreads();

    const float* const rows = (queries ? m.q : m.k) + top * kKeys;
    float scores[kC / 8][4] = {}, y[kTiles][4];
    float beta[2] = {1.0f, 1.0f}, from_start[2] = {1.0f, 1.0f};  // of rows g and g + 8
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (kCorrects && !queries) beta[i] = m.beta[top + g + 8 * i];
      if (kGated) from_start[i] = m.from_start[top + g + 8 * i];
    }
    const auto read_state = [&] {
      MultiplyRows<kMath, kTiles, kK>(rows, kKeys, m.state, kKeys, y);
#pragma unroll
      for (auto& tile : y) {
#pragma unroll
        for (int i = 0; i < 4; ++i) tile[i] *= from_start[i / 2];
      }
    };
    if (kCorrects || queries) {
      // 3. comes first for the rows of q, so that some warps read and multiply while others decay and invert.
      if (queries) read_state();
      // 2. What lies above the diagonal is left as it comes: nobody reads it.
      if (block < 2) {
        MultiplyRows<kMath, kC / 16, kK>(rows, kKeys, m.k, kKeys, scores);
      } else {
        MultiplyRows<kMath, kC / 8, kK>(rows, kKeys, m.k, kKeys, scores);
      }
      float* const inverse = m.inverse + top * Memory::kInverse;
#pragma unroll
      for (int tile = 0; tile < kC / 8; ++tile) {
        if (tile / 2 > block) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& x = scores[tile][i];
          if constexpr (kGated) {
            // Subtracted first.
            const float2 to = m.decay[top + g + i / 2 * 8], from = m.decay[8 * tile + 2 * t + i % 2];
            x *= exp2f((to.x - from.x) + (to.y - from.y));
          }
          if (!queries) x *= -beta[i / 2];
        }
        if (tile / 2 == block) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int r = g + i / 2 * 8, j = tile % 2 * 8 + 2 * t + i % 2;
            float& x = scores[tile][i];
            if (queries ? j > r : j >= r) x = 0.0f;
            if (!queries) inverse[r * Memory::kInverse + j] = x;
          }
        }
#pragma unroll
        for (float& x : scores[tile]) x = as_factor(x);
      }
      if (!queries) {
        __syncwarp();
        InvertBlock(inverse, Memory::kInverse);
      }
      if (!queries) read_state();
    }
    if (!queries) {  // 3.
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const float2 pair = LoadPair(m.v + (top + g + 4 * i) * Memory::kValues + 8 * tile + 2 * t);
          y[tile][i] = kCorrects ? beta[i / 2] * (pair.x - y[tile][i]) : pair.x;
          y[tile][i + 1] = kCorrects ? beta[i / 2] * (pair.y - y[tile][i + 1]) : pair.y;
        }
      }
    }
    // 4. A pair is of rows 2t and 2t + 1 of eight, of value g of eight.
    const auto u_pair = [&](int tile, int first_row) {
      return LoadPair(m.u + (8 * tile + g) * kU + first_row + 2 * t);
    };
    const auto share_tile = [&](int tile, int first_row, const float(&elements)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        m.u[(8 * tile + 2 * t + i % 2) * kU + first_row + g + i / 2 * 8] = elements[i];
      }
    };
#pragma unroll
    for (int b = 0; b < kC / 16; ++b) {
      if (!queries && (!kCorrects ? b == 0 : block == b)) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) share_tile(tile, top, y[tile]);
      }
      if (kCorrects || b == 0) __syncthreads();
      if constexpr (kCorrects) {
        // A warp solves for eight values.
        if (warp < kTiles) {
          constexpr Tf32 kExact = Tf32::kThrice;
          const float* const inverse = m.inverse + (16 * b + g) * Memory::kInverse + 2 * t;
          TileSums<kExact, 1> sums;
#pragma unroll
          for (int j = 0; j < 16; j += 8) {
            const float2 lower = LoadPair(inverse + j), upper = LoadPair(inverse + 8 * Memory::kInverse + j);
            const float2 pair = u_pair(warp, 16 * b + j);
            sums.Add(0,
                     Factors<kExact, 4>({__float_as_uint(lower.x), __float_as_uint(upper.x), __float_as_uint(lower.y),
                                         __float_as_uint(upper.y)}),
                     Factors<kExact, 2>({__float_as_uint(pair.x), __float_as_uint(pair.y)}));
          }
          __syncwarp();
          const float solved[4] = {sums.At(0, 0), sums.At(0, 1), sums.At(0, 2), sums.At(0, 3)};
          share_tile(warp, 16 * b, solved);
        }
        __syncthreads();
      }
      if (queries ? block >= b : kCorrects && block > b) {
        constexpr int kSome = kMath == Tf32::kOnce ? kTiles : kTiles / 2;
#pragma unroll
        for (int first = 0; first < kTiles; first += kSome) {
          TileSums<kMath, kSome> sums;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float(&x)[4] = scores[2 * b + half];
            const Factors<kMath, 4> left(
                {__float_as_uint(x[0]), __float_as_uint(x[2]), __float_as_uint(x[1]), __float_as_uint(x[3])});
#pragma unroll
            for (int tile = 0; tile < kSome; ++tile) {
              const float2 pair = u_pair(first + tile, 16 * b + 8 * half);
              sums.Add(tile, left,
                       Factors<kMath, 2>({__float_as_uint(as_factor(pair.x)), __float_as_uint(as_factor(pair.y))}));
            }
          }
#pragma unroll
          for (int tile = 0; tile < kSome; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) y[first + tile][i] += sums.At(tile, i);
          }
        }
      }
    }
    // 5.
    if (queries) {
      float* const out = p.out + (begin + chunk + top + g) * p.ldout + value_column + 2 * t;
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        if (top + g + 4 * i >= n) continue;
        float* const of_row = out + (i == 0 ? 0 : 8 * p.ldout);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const int there = values - 8 * tile - 2 * t;
          if (params.aligned) {
            if (there > 0) StorePair(y[tile][i], y[tile][i + 1], of_row + 8 * tile);
          } else {
            if (there > 0) of_row[8 * tile] = y[tile][i];
            if (there > 1) of_row[8 * tile + 1] = y[tile][i + 1];
          }
        }
      }
    }
    load_ahead(chunk + kC);
    // 6.
    const float total = kGated ? m.from_start[kC - 1] : 1.0f;
    constexpr int kTogether = kMath == Tf32::kOnce ? kStateRows : 1;  // of what registers have room for
#pragma unroll
    for (int first = 0; first < kStateRows; first += kTogether) {
      TileSums<kMath, kStateTiles> written[kTogether];
#pragma unroll(kMath == Tf32::kOnce ? 2 : 1)
      for (int j = 0; j < kC; j += 8) {
        const float2 to_end = kGated ? LoadPair(m.to_end + j + 2 * t) : make_float2(1.0f, 1.0f);
        uint32_t right[kStateTiles][2];
#pragma unroll
        for (int tile = 0; tile < kStateTiles; ++tile) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            right[tile][i] = __float_as_uint(m.k[(j + 2 * t + i) * kKeys + first_key + 8 * tile + g]);
          }
        }
#pragma unroll
        for (int r = 0; r < kTogether; ++r) {
          const float* const u = m.u + (first_value + 16 * (first + r) + g) * kU + j + 2 * t;
          const float2 lower = LoadPair(u), upper = LoadPair(u + 8 * kU);
          const Factors<kMath, 4> left(
              {__float_as_uint(as_factor(lower.x * to_end.x)), __float_as_uint(as_factor(upper.x * to_end.x)),
               __float_as_uint(as_factor(lower.y * to_end.y)), __float_as_uint(as_factor(upper.y * to_end.y))});
#pragma unroll
          for (int tile = 0; tile < kStateTiles; ++tile) written[r].Add(tile, left, Factors<kMath, 2>(right[tile]));
        }
      }
#pragma unroll
      for (int r = 0; r < kTogether; ++r) {
#pragma unroll
        for (int tile = 0; tile < kStateTiles; ++tile) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            // Not by the unit, which drops digits at each addition: a large state would shrink from chunk to chunk.
            float& s = state[first + r][tile][i];
            s = RoundedTo<Stored>(fmaf(total, s, written[r].At(tile, i)));
          }
        }
      }
    }
    share_state();
  }
  for_state_pairs([&](int value, int key, float x, float y) {
    if (value < values) StorePair(x, y, kept + value * kK + key);
  });
}

}  // namespace palimpsest::cuda
