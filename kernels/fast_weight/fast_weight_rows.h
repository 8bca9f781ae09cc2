// Inside fast_weight: the recurrence row by row on a device, with the state in registers. A step is one row.
//
// A block has rows_per_block rows of one head's state of one sequence (fast_weight_config.h). For each row in time:
//   1. k, q (spread over the lanes of a state row), v, beta, decay
//   2. S k, summed over the lanes                     u = beta (v - a S k)
//   3. S <- a S + u k, and S q of what was written    out
// The state is read once before the first row and written once after the last: 16 bytes a lane, kRowsPerThread rows'
// loads in flight.
#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/group.h"
#include "kernels/fast_weight/fast_weight_config.h"

namespace palimpsest::cuda {

// Which rows of a sequence a launch takes.
enum class RowsTaken : uint8_t {
  kAll,
  kNone,          // the state is only made whole
  kLastOfChunks,  // the chunk of one row at the end, if there is one: a step
};

struct FastWeightRowsParams {
  FastWeightParams p;
  RowsTaken taken = RowsTaken::kAll;
  int32_t rows_per_block = 0;
  int32_t blocks_per_head = 0;
  bool aligned = false;  // q and k may be read 16 bytes at a time
};

// One block's place in the work.
struct RowsTask {
  int32_t slot;
  int32_t value_head;
  int32_t v_begin;
  int64_t row_begin;
  int64_t row_end;

  __device__ __forceinline__ explicit RowsTask(const FastWeightRowsParams& params)
      : slot(params.p.rows.slot[blockIdx.x]),
        value_head(static_cast<int32_t>(blockIdx.y) / params.blocks_per_head),
        v_begin(static_cast<int32_t>(blockIdx.y) % params.blocks_per_head * params.rows_per_block),
        row_begin(params.p.rows.row_begin[blockIdx.x]),
        row_end(params.p.rows.row_begin[blockIdx.x + 1]) {
    const bool last_is_step = (row_end - row_begin) % FastWeightParams::kChunk == 1;
    if (params.taken == RowsTaken::kLastOfChunks) row_begin = last_is_step ? row_end - 1 : row_end;
    if (slot < 0 || params.taken == RowsTaken::kNone) row_begin = row_end;
  }
};

// A log-decay below -10^4, infinity included, counts as -10^4 (README.md); NaN stays.
__device__ __forceinline__ float DecayOf(float log_decay) { return expf(log_decay < -1e4f ? -1e4f : log_decay); }

// One lane's floats of a row that is spread over lanes; `from` is the first of them.
template <int kK>
__device__ __forceinline__ void LoadSpread(const float* from, bool aligned,
                                           float (&to)[FastWeightRowsConfig::kRowFloats]) {
  constexpr int kLanes = kK / FastWeightRowsConfig::kRowFloats;
#pragma unroll
  for (int i = 0; i < FastWeightRowsConfig::kRowFloats / 4; ++i) {
    const float* const at = from + 4 * kLanes * i;
    if (aligned) {
      const float4 four = *reinterpret_cast<const float4*>(at);
      to[4 * i] = four.x;
      to[4 * i + 1] = four.y;
      to[4 * i + 2] = four.z;
      to[4 * i + 3] = four.w;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) to[4 * i + j] = at[j];
    }
  }
}

// With kReplay, what steps before have left out is added first, and a step is left out itself unless it is the
// interval-th.
template <int kK, UpdateRule kRule, bool kReplay>
__global__ void __launch_bounds__(FastWeightRowsConfig::kMostThreads,
                                  kReplay ? FastWeightRowsConfig::kReplayBlocks : FastWeightRowsConfig::kBlocks)
    FastWeightRowsKernel(FastWeightRowsParams params) {
  constexpr int kFloats = FastWeightRowsConfig::kRowFloats, kRows = FastWeightRowsConfig::kRowsPerThread;
  constexpr int kLanes = kK / kFloats;
  const FastWeightParams& p = params.p;
  const RowsTask task(params);
  const int64_t pending = kReplay && task.slot >= 0 ? *reinterpret_cast<int32_t*>(p.replay.pending.At(task.slot)) : 0;
  if (task.row_begin == task.row_end && pending == 0) return;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, V = p.shape.value_dim;
  // Neighbouring rows: one address serves them all.
  const int first = task.v_begin + static_cast<int>(threadIdx.x) / kLanes * kRows;
  const int64_t h = int64_t{task.value_head} * p.shape.heads / p.shape.value_heads;
  float* const state = p.state.At(task.slot) + (int64_t{task.value_head} * V + first) * kK + 4 * lane;

  float S[kRows][kFloats];
#pragma unroll
  for (int n = 0; n < kRows; ++n) {
    const int v = first + n;
    if (v < V) {
      LoadSpread<kK>(state + n * kK, true, S[n]);
    } else {
#pragma unroll
      for (int i = 0; i < kFloats; ++i) S[n][i] = 0.0f;
    }
  }
  bool write = true;
  float* entry = nullptr;
  if constexpr (kReplay) {
    const int64_t entry_floats = FastWeightReplay::entry_floats(p.shape);
    entry = p.replay.written.At(task.slot) + task.value_head * (p.replay.interval - 1) * entry_floats;
    for (int64_t e = 0; e < pending; ++e, entry += entry_floats) {
      float k[kFloats];
      LoadSpread<kK>(entry + 4 * lane, true, k);
      const float decay = entry[kK];
#pragma unroll
      for (int n = 0; n < kRows; ++n) {
        const float u = first + n < V ? entry[kK + 4 + first + n] : 0.0f;
#pragma unroll
        for (int i = 0; i < kFloats; ++i) {
          if constexpr (kRule == UpdateRule::kGatedDelta) S[n][i] *= decay;
          S[n][i] = fmaf(u, k[i], S[n][i]);
        }
      }
    }
    write = task.row_begin == task.row_end || pending == p.replay.interval - 1;
  }
  for (int64_t r = task.row_begin; r < task.row_end; ++r) {
    float k[kFloats], q[kFloats];
    LoadSpread<kK>(p.k + r * p.ldk + h * kK + 4 * lane, params.aligned, k);
    LoadSpread<kK>(p.q + r * p.ldq + h * kK + 4 * lane, params.aligned, q);
    const int64_t gate = r * p.shape.value_heads + task.value_head;
    const float beta = kRule == UpdateRule::kSum ? 1.0f : p.beta[gate];
    const float decay = kRule == UpdateRule::kGatedDelta ? DecayOf(p.log_decay[gate]) : 1.0f;
    if constexpr (kReplay) {
      if (!write && first == 0) {
#pragma unroll
        for (int i = 0; i < kFloats / 4; ++i) {
          *reinterpret_cast<float4*>(entry + 4 * (lane + kLanes * i)) =
              make_float4(k[4 * i], k[4 * i + 1], k[4 * i + 2], k[4 * i + 3]);
        }
        if (lane == 0) entry[kK] = decay;
      }
    }
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
      const int v = first + n;
      float u = v < V ? p.v[r * p.ldv + int64_t{task.value_head} * V + v] : 0.0f;
      if constexpr (kRule == UpdateRule::kGatedDelta) {
#pragma unroll
        for (int i = 0; i < kFloats; ++i) S[n][i] *= decay;
      }
      if constexpr (kRule != UpdateRule::kSum) {
        float read = 0.0f;
#pragma unroll
        for (int i = 0; i < kFloats; ++i) read = fmaf(S[n][i], k[i], read);
        u = beta * (u - GroupSum<kLanes>(read));
      }
      float out = 0.0f;
#pragma unroll
      for (int i = 0; i < kFloats; ++i) {
        S[n][i] = fmaf(u, k[i], S[n][i]);
        out = fmaf(S[n][i], q[i], out);
      }
      out = GroupSum<kLanes>(out);
      if (lane == 0 && v < V) {
        p.out[r * p.ldout + int64_t{task.value_head} * V + v] = out;
        if constexpr (kReplay) {
          if (!write) entry[kK + 4 + v] = u;
        }
      }
    }
  }
  if (!write) return;
#pragma unroll
  for (int n = 0; n < kRows; ++n) {
    const int v = first + n;
    if (v >= V) continue;
#pragma unroll
    for (int i = 0; i < kFloats / 4; ++i) {
      *reinterpret_cast<float4*>(state + n * kK + 4 * kLanes * i) =
          make_float4(S[n][4 * i], S[n][4 * i + 1], S[n][4 * i + 2], S[n][4 * i + 3]);
    }
  }
}

// Any key size: a warp has one row of the state, which stays in memory.
template <UpdateRule kRule>
__global__ void __launch_bounds__(FastWeightRowsConfig::kMostThreads)
    FastWeightAnyRowsKernel(FastWeightRowsParams params) {
  const FastWeightParams& p = params.p;
  const RowsTask task(params);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, K = p.shape.key_dim, V = p.shape.value_dim;
  const int v = task.v_begin + static_cast<int>(threadIdx.x) / kWarp;
  if (task.row_begin == task.row_end || v >= V) return;
  const int64_t h = int64_t{task.value_head} * p.shape.heads / p.shape.value_heads;
  float* const S = p.state.At(task.slot) + (int64_t{task.value_head} * V + v) * K;
  for (int64_t r = task.row_begin; r < task.row_end; ++r) {
    const float* const k = p.k + r * p.ldk + h * K;
    const float* const q = p.q + r * p.ldq + h * K;
    const int64_t gate = r * p.shape.value_heads + task.value_head;
    const float decay = kRule == UpdateRule::kGatedDelta ? DecayOf(p.log_decay[gate]) : 1.0f;
    float u = p.v[r * p.ldv + int64_t{task.value_head} * V + v];
    if constexpr (kRule != UpdateRule::kSum) {
      float read = 0.0f;
      for (int i = lane; i < K; i += kWarp) read = fmaf(decay * S[i], k[i], read);
      u = p.beta[gate] * (u - GroupSum<kWarp>(read));
    }
    float out = 0.0f;
    for (int i = lane; i < K; i += kWarp) {
      S[i] = fmaf(u, k[i], decay * S[i]);
      out = fmaf(S[i], q[i], out);
    }
    out = GroupSum<kWarp>(out);
    if (lane == 0) p.out[r * p.ldout + int64_t{task.value_head} * V + v] = out;
  }
}

}  // namespace palimpsest::cuda
