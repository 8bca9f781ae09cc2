// Inside fast_weight: the recurrence row by row on a device, with the state in registers. A step is one row.
//
// A block has rows_per_block rows of one head's state of one sequence (fast_weight_config.h). For each row in time:
//   1. k, q (spread over the lanes of a state row), v, beta, decay, or what else the rule has
//   2. S k, summed over the lanes                     u = beta (v - a S k)
//   3. S <- a S + u k, and S q of what was written    out
// With several writes to a row, 2 and the first half of 3 come once for each, the decay with the first.
// The state is read once before the first row and written once after the last: 16 bytes a lane, kRowsPerThread rows'
// loads in flight.
#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/group.h"
#include "kernels/fast_weight/fast_weight_config.h"
#include "kernels/fast_weight/fast_weight_registers.h"

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
  bool fetches = false;  // entries of the replay form go by way of shared memory
};

// One block's place in the work.
struct RowsTask {
  int32_t slot;
  int32_t value_head;
  int32_t v_begin;
  int32_t row_begin;
  int32_t row_end;

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

// In the replay form, what steps before have left out is added first, and a step is left out itself unless it is the
// interval-th.
template <int kK, UpdateRule kRule, typename Stored, RowsForm kForm>
__global__ void __launch_bounds__(FastWeightRowsConfig::kMostThreads, RowsBlocksOf(kRule, kForm))
    FastWeightRowsKernel(FastWeightRowsParams params) {
  AfterPrevious();
  constexpr bool kReplay = kForm == RowsForm::kReplayStep;
  using Rows = RowsInRegisters<kK, kRule, Stored>;
  using In = Spread<kK, Stored>;
  const FastWeightParams& p = params.p;
  const RowsTask task(params);
  const int32_t pending = kReplay && task.slot >= 0 ? *p.replay.pending.At<int32_t>(task.slot) : 0;
  if (task.row_begin == task.row_end && pending == 0) return;
  const int lane = static_cast<int>(threadIdx.x) % In::kLanes, V = p.shape.value_dim;
  // Neighbouring rows: one address serves them all.
  const int first = task.v_begin + static_cast<int>(threadIdx.x) / In::kLanes * Rows::kRows;
  const int count = V - first;  // rows that there are, if less than kRows
  Stored* const state = p.state.At<Stored>(task.slot) + (int64_t{task.value_head} * V + first) * kK;

  Rows rows;
  rows.Load(state, lane, count);
  bool write = true;
  float* written = nullptr;
  const ReplayEntries<kK, kRule, Stored> entries(p, task.slot, task.value_head, pending);
  if constexpr (kReplay) {
    if (params.fetches) {
      const int v_end = task.v_begin + params.rows_per_block < V ? task.v_begin + params.rows_per_block : V;
      float* const fetched = Shared<float>();
      entries.Fetch(task.v_begin, v_end, fetched);
      entries.WaitForFetched();
      __syncthreads();
      entries.AddFetched(fetched, task.v_begin, v_end, rows, lane, first, count);
    } else {
      entries.AddTo(rows, lane, first, count);
    }
    write = task.row_begin == task.row_end || pending == p.replay.interval - 1;
    if (!write) written = entries.Written(first);
  }
  for (int32_t r = task.row_begin; r < task.row_end; ++r) {
    const int64_t column = int64_t{task.value_head} * V + first;
    RowInputs<kK, kRule, Stored> in;
    in.Load(p, r, task.value_head, kForm == RowsForm::kRows ? p.sub_steps : 1, lane, params.aligned);
    if constexpr (kReplay) {
      if (!write && first == 0) entries.Keep(in, lane);
    }
    rows.Write(in, lane, count, p.v + r * p.ldv + column, written);
    if constexpr (kForm == RowsForm::kRows && HasSubSteps(kRule)) {
#pragma unroll 1
      for (int32_t j = 1; j < p.sub_steps; ++j) {
        in.LoadWrite(p, r, task.value_head, j, p.sub_steps, lane, params.aligned);
        const float* const v = p.v + r * p.ldv + int64_t{j} * p.shape.value_heads * V + column;
        rows.template Write<false>(in, lane, count, v, nullptr);
      }
    }
    rows.Read(in.q, lane, count, p.out + r * p.ldout + column);
    if constexpr (kForm != RowsForm::kRows) break;
    if ((r - task.row_begin) % FastWeightParams::kChunk == FastWeightParams::kChunk - 1) rows.Round();
  }
  if (write) rows.Store(lane, count, state);
}

// One write to a row S of the state, which stays in memory, by a warp: write number j of row r in time. Returns the
// lane's part of S q after it.
template <UpdateRule kRule, typename Stored, bool kSeveralWrites>
__device__ __forceinline__ float WriteAnyRow(const FastWeightParams& p, int32_t r, int32_t j, int32_t value_head,
                                             int32_t v, Stored* S) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, K = p.shape.key_dim, V = p.shape.value_dim;
  const int64_t h = int64_t{value_head} * p.shape.heads / p.shape.value_heads;
  const float* const k = p.k + r * p.ldk + (int64_t{j} * p.shape.heads + h) * K;
  const float* const q = p.q + r * p.ldq + h * K;
  const int64_t gate = int64_t{r} * p.shape.value_heads + value_head;
  const auto decayed = [&](int i) {
    const float stored = FloatFrom(S[i]);
    if (kSeveralWrites && j > 0) return stored;
    if constexpr (DecaysHeads(kRule)) return DecayOf(p.log_decay[gate]) * stored;
    if constexpr (DecaysChannels(kRule)) return DecayOf(p.log_decay[gate * K + i]) * stored;
    return stored;
  };
  float u = p.v[r * p.ldv + (int64_t{j} * p.shape.value_heads + value_head) * V + v];
  float removed = 0.0f;
  if constexpr (Corrects(kRule)) {
    float read = 0.0f;
    for (int i = lane; i < K; i += kWarp) read = fmaf(decayed(i), k[i], read);
    const int64_t write = kSeveralWrites ? int64_t{r} * p.sub_steps + j : r;
    u = p.beta[write * p.shape.value_heads + value_head] * (u - GroupSum<kWarp>(read));
  }
  if constexpr (kRule == UpdateRule::kLowRank) {
    for (int i = lane; i < K; i += kWarp) removed = fmaf(FloatFrom(S[i]), p.remove[gate * K + i], removed);
    removed = GroupSum<kWarp>(removed);
  }
  float out = 0.0f;
  for (int i = lane; i < K; i += kWarp) {
    float written = decayed(i);
    if constexpr (kRule == UpdateRule::kLowRank) written = fmaf(removed, p.insert[gate * K + i], written);
    written = fmaf(u, k[i], written);
    PutFloat(written, S[i]);
    out = fmaf(written, q[i], out);
  }
  return out;
}

// Blocks that a multiprocessor is to hold at once, told because the compiler otherwise tries for more, of which some
// leave the registers.
constexpr int kAnyRowsBlocks = 4;

// Any key size: a warp has one row of the state, which is rounded after every write. With one write to a row in time,
// the kernel has fewer registers.
template <UpdateRule kRule, typename Stored, bool kSeveralWrites>
__global__ void __launch_bounds__(FastWeightRowsConfig::kMostThreads, kAnyRowsBlocks)
    FastWeightAnyRowsKernel(FastWeightRowsParams params) {
  AfterPrevious();
  const FastWeightParams& p = params.p;
  const RowsTask task(params);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, K = p.shape.key_dim, V = p.shape.value_dim;
  const int v = task.v_begin + static_cast<int>(threadIdx.x) / kWarp;
  if (task.row_begin == task.row_end || v >= V) return;
  Stored* const S = p.state.At<Stored>(task.slot) + (int64_t{task.value_head} * V + v) * K;
  for (int32_t r = task.row_begin; r < task.row_end; ++r) {
    float out = 0.0f;
#pragma unroll 1
    for (int32_t j = 0; j < (kSeveralWrites ? p.sub_steps : 1); ++j) {
      out = WriteAnyRow<kRule, Stored, kSeveralWrites>(p, r, j, task.value_head, v, S);
    }
    out = GroupSum<kWarp>(out);
    if (lane == 0) p.out[r * p.ldout + int64_t{task.value_head} * V + v] = out;
  }
}

}  // namespace palimpsest::cuda
