#include "kernels/cuda/ops.h"
#include "kernels/fast_weight/fast_weight.h"
#include "kernels/fast_weight/fast_weight_chunks.h"
#include "kernels/fast_weight/fast_weight_dispatch.h"
#include "kernels/fast_weight/fast_weight_rows.h"

namespace palimpsest::cuda {
namespace {

// Whether rows may be read and written 16 bytes at a time.
bool AreAligned(const float* rows, int64_t ld) { return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && ld % 4 == 0; }

// Likewise all vectors over the channels of keys.
bool AreKeysAligned(const FastWeightParams& p) {
  const int64_t K = p.shape.key_dim;
  return AreAligned(p.q, p.ldq) && AreAligned(p.k, p.ldk) &&
         (!DecaysChannels(p.rule) ||
          (AreAligned(p.log_decay, K) && AreAligned(p.remove, K) && AreAligned(p.insert, K)));
}

cudaError_t RunRows(const FastWeightParams& p, RowsTaken taken, RowsForm form, const Target& target) {
  if (p.rows.num_sequences == 0) return cudaSuccess;
  const FastWeightRowsConfig config = ChooseRowsConfig(p.shape);
  FastWeightRowsParams params{.p = p,
                              .taken = taken,
                              .rows_per_block = config.rows_per_block,
                              .blocks_per_head = config.blocks_per_head,
                              .aligned = AreKeysAligned(p)};
  Shape shape{.grid = dim3(static_cast<unsigned>(p.rows.num_sequences),
                           static_cast<unsigned>(p.shape.value_heads * config.blocks_per_head)),
              .block = dim3(static_cast<unsigned>(config.threads))};
  if (form == RowsForm::kReplayStep) {
    const int64_t bytes = FetchedEntriesBytes(p, config.rows_per_block);
    params.fetches = bytes <= kMostFetchedBytes;
    if (params.fetches) shape.shared_bytes = bytes;
  }
  return WithRuleAndType(p, [&]<UpdateRule kRule, typename Stored>() {
    if (config.key_dim == 0) {
      if constexpr (HasSubSteps(kRule)) {
        if (p.sub_steps > 1) return Launch(FastWeightAnyRowsKernel<kRule, Stored, true>, shape, target, params);
      }
      return Launch(FastWeightAnyRowsKernel<kRule, Stored, false>, shape, target, params);
    }
    return WithKeyDim<16, 32, 64, 128, 256>(config.key_dim, [&]<int kK>() {
      const auto launch = [&]<RowsForm kForm>() {
        return Launch(FastWeightRowsKernel<kK, kRule, Stored, kForm>, shape, target, params);
      };
      if constexpr (!DecaysChannels(kRule)) {
        if (form == RowsForm::kReplayStep) return launch.template operator()<RowsForm::kReplayStep>();
      }
      return form == RowsForm::kRows ? launch.template operator()<RowsForm::kRows>()
                                     : launch.template operator()<RowsForm::kStep>();
    });
  });
}

cudaError_t RunChunks(const FastWeightParams& p, const Target& target) {
  const int32_t values = ChunkValuesOf(p.shape, p.rows.num_sequences);
  const int32_t blocks = static_cast<int32_t>(DivideUp(p.shape.value_dim, values));
  const bool aligned = AreAligned(p.q, p.ldq) && AreAligned(p.k, p.ldk) && AreAligned(p.v, p.ldv) &&
                       AreAligned(p.out, p.ldout) && p.shape.value_dim % 4 == 0;
  const FastWeightChunksParams params{.p = p, .blocks_per_head = blocks, .aligned = aligned};
  const Shape shape{
      .grid = dim3(static_cast<unsigned>(p.rows.num_sequences), static_cast<unsigned>(p.shape.value_heads * blocks)),
      .block = dim3(FastWeightChunkLayout::kThreads),
      .shared_bytes = ChunkLayoutOf(p.shape.key_dim, values).bytes};
  return WithRuleAndType(p, [&]<UpdateRule kRule, typename Stored>() {
    if constexpr (DecaysChannels(kRule)) {
      return cudaErrorInvalidValue;
    } else {
      const auto launch = [&]<int kK, int kV>() {
        return p.round_products
                   ? Launch(FastWeightChunksKernel<kK, kV, kRule, Stored, Tf32::kOnce>, shape, target, params)
                   : Launch(FastWeightChunksKernel<kK, kV, kRule, Stored, Tf32::kThrice>, shape, target, params);
      };
      switch (p.shape.key_dim) {
        case 64:
          return launch.template operator()<64, 64>();
        case 128:
          return values == 64 ? launch.template operator()<128, 64>() : launch.template operator()<128, 32>();
        case 256:
          return launch.template operator()<256, 32>();
        default:
          return cudaErrorInvalidValue;
      }
    }
  });
}

constexpr int kAdvanceThreads = 128;

__global__ void __launch_bounds__(kAdvanceThreads) AdvanceReplayKernel(AdvanceReplayParams p) {
  AfterPrevious();
  const int s = static_cast<int>(blockIdx.x * kAdvanceThreads + threadIdx.x);
  if (s >= p.rows.num_sequences || p.rows.slot[s] < 0) return;
  int32_t& pending = *p.pending.At<int32_t>(p.rows.slot[s]);
  pending = s < p.rows.num_steps ? (pending + 1) % p.interval : 0;
}

}  // namespace

cudaError_t Run(const FastWeightParams& p, const Target& target) {
  if (p.sub_steps < 1 || (p.sub_steps > 1 && !HasSubSteps(p.rule))) return cudaErrorInvalidValue;
  const bool replay = p.replay.interval > 1;
  if (replay && !HasReplayForm(p.shape, p.rule, p.sub_steps)) return cudaErrorInvalidValue;
  const RowsForm step = p.sub_steps > 1 ? RowsForm::kRows : RowsForm::kStep;
  FastWeightParams steps = p, rest = p;
  rest.rows = p.rows.AfterSteps();
  steps.rows.num_sequences -= rest.rows.num_sequences;
  cudaError_t error = RunRows(steps, RowsTaken::kAll, replay ? RowsForm::kReplayStep : step, target);
  if (error != cudaSuccess || rest.rows.num_sequences == 0) return error;
  if (replay) error = RunRows(rest, RowsTaken::kNone, RowsForm::kReplayStep, target);
  if (error != cudaSuccess) return error;
  if (!HasChunkForm(p.shape.key_dim, p.rule, p.sub_steps, target.shared_bytes_per_block)) {
    return RunRows(rest, RowsTaken::kAll, RowsForm::kRows, target);
  }
  error = RunChunks(rest, target);
  return error != cudaSuccess ? error : RunRows(rest, RowsTaken::kLastOfChunks, RowsForm::kStep, target);
}

cudaError_t Run(const FlushReplayParams& p, const Target& target) {
  if (!HasReplayForm(p.shape, p.rule)) return cudaErrorInvalidValue;
  const FastWeightParams params{.shape = p.shape, .rule = p.rule, .rows = p.rows, .state = p.state, .replay = p.replay};
  return RunRows(params, RowsTaken::kNone, RowsForm::kReplayStep, target);
}

cudaError_t Run(const AdvanceReplayParams& p, const Target& target) {
  const auto blocks = static_cast<unsigned>(DivideUp(p.rows.num_sequences, kAdvanceThreads));
  return Launch(AdvanceReplayKernel, {.grid = dim3(blocks), .block = dim3(kAdvanceThreads)}, target, p);
}

}  // namespace palimpsest::cuda
