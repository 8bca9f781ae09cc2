#include "kernels/cuda/ops.h"
#include "kernels/fast_weight/fast_weight.h"
#include "kernels/fast_weight/fast_weight_chunks.h"
#include "kernels/fast_weight/fast_weight_rows.h"

namespace palimpsest::cuda {
namespace {

// Calls f.template operator()<rule>().
template <typename F>
cudaError_t WithRule(UpdateRule rule, F f) {
  switch (rule) {
    case UpdateRule::kSum:
      return f.template operator()<UpdateRule::kSum>();
    case UpdateRule::kDelta:
      return f.template operator()<UpdateRule::kDelta>();
    case UpdateRule::kGatedDelta:
      return f.template operator()<UpdateRule::kGatedDelta>();
  }
  return cudaErrorInvalidValue;
}

// Calls f.template operator()<kK>() for the one of kKs that `k` is.
template <int... kKs, typename F>
cudaError_t WithKeyDim(int32_t k, F f) {
  cudaError_t error = cudaErrorInvalidValue;
  (void)((k == kKs && (error = f.template operator()<kKs>(), true)) || ...);
  return error;
}

bool IsAligned(const float* pointer, int64_t ld) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && ld % 4 == 0;
}

cudaError_t RunRows(const FastWeightParams& p, RowsTaken taken, bool replay, const Target& target) {
  if (p.rows.num_sequences == 0) return cudaSuccess;
  const FastWeightRowsConfig config = ChooseRowsConfig(p.shape);
  const FastWeightRowsParams params{.p = p,
                                    .taken = taken,
                                    .rows_per_block = config.rows_per_block,
                                    .blocks_per_head = config.blocks_per_head,
                                    .aligned = IsAligned(p.q, p.ldq) && IsAligned(p.k, p.ldk)};
  const Shape shape{.grid = dim3(static_cast<unsigned>(p.rows.num_sequences),
                                 static_cast<unsigned>(p.shape.value_heads * config.blocks_per_head)),
                    .block = dim3(static_cast<unsigned>(config.threads))};
  return WithRule(p.rule, [&]<UpdateRule kRule>() {
    if (config.key_dim == 0) return Launch(FastWeightAnyRowsKernel<kRule>, shape, target, params);
    return WithKeyDim<16, 32, 64, 128, 256>(config.key_dim, [&]<int kK>() {
      return replay ? Launch(FastWeightRowsKernel<kK, kRule, true>, shape, target, params)
                    : Launch(FastWeightRowsKernel<kK, kRule, false>, shape, target, params);
    });
  });
}

cudaError_t RunChunks(const FastWeightParams& p, const Target& target) {
  const int32_t blocks = static_cast<int32_t>(DivideUp(p.shape.value_dim, FastWeightChunkLayout::kValues));
  const FastWeightChunksParams params{
      .p = p, .blocks_per_head = blocks, .aligned = IsAligned(p.q, p.ldq) && IsAligned(p.k, p.ldk)};
  const Shape shape{
      .grid = dim3(static_cast<unsigned>(p.rows.num_sequences), static_cast<unsigned>(p.shape.value_heads * blocks)),
      .block = dim3(FastWeightChunkLayout::kThreads),
      .shared_bytes = ChunkLayoutOf(p.shape.key_dim).bytes};
  return WithRule(p.rule, [&]<UpdateRule kRule>() {
    return WithKeyDim<64, 128, 256>(p.shape.key_dim, [&]<int kK>() {
      return p.round_products ? Launch(FastWeightChunksKernel<kK, kRule, Tf32::kOnce>, shape, target, params)
                              : Launch(FastWeightChunksKernel<kK, kRule, Tf32::kThrice>, shape, target, params);
    });
  });
}

// The sequences from `first` on.
FastWeightParams From(FastWeightParams p, int32_t first, int32_t count) {
  p.rows.row_begin += first;
  p.rows.slot += first;
  p.rows.num_sequences = count;
  return p;
}

constexpr int kAdvanceThreads = 128;

__global__ void __launch_bounds__(kAdvanceThreads) AdvanceReplayKernel(AdvanceReplayParams p) {
  const int s = static_cast<int>(blockIdx.x * kAdvanceThreads + threadIdx.x);
  if (s >= p.rows.num_sequences || p.rows.slot[s] < 0) return;
  int32_t& pending = *reinterpret_cast<int32_t*>(p.pending.At(p.rows.slot[s]));
  pending = s < p.rows.num_steps ? (pending + 1) % p.interval : 0;
}

}  // namespace

cudaError_t Run(const FastWeightParams& p, const Target& target) {
  const bool replay = p.replay.interval > 1;
  if (replay && !HasReplayForm(p.shape)) return cudaErrorInvalidValue;
  const int32_t steps = p.rows.num_steps < 0 ? 0 : p.rows.num_steps;
  const FastWeightParams rest = From(p, steps, p.rows.num_sequences - steps);
  cudaError_t error = RunRows(From(p, 0, steps), RowsTaken::kAll, replay, target);
  if (error != cudaSuccess || rest.rows.num_sequences == 0) return error;
  if (replay) error = RunRows(rest, RowsTaken::kNone, /*replay=*/true, target);
  if (error != cudaSuccess) return error;
  if (!HasChunkForm(p.shape.key_dim, target.shared_bytes_per_block)) {
    return RunRows(rest, RowsTaken::kAll, /*replay=*/false, target);
  }
  error = RunChunks(rest, target);
  return error != cudaSuccess ? error : RunRows(rest, RowsTaken::kLastOfChunks, /*replay=*/false, target);
}

cudaError_t Run(const FlushReplayParams& p, const Target& target) {
  if (!HasReplayForm(p.shape)) return cudaErrorInvalidValue;
  const FastWeightParams params{.shape = p.shape, .rule = p.rule, .rows = p.rows, .state = p.state, .replay = p.replay};
  return RunRows(params, RowsTaken::kNone, /*replay=*/true, target);
}

cudaError_t Run(const AdvanceReplayParams& p, const Target& target) {
  const auto blocks = static_cast<unsigned>(DivideUp(p.rows.num_sequences, kAdvanceThreads));
  return Launch(AdvanceReplayKernel, {.grid = dim3(blocks), .block = dim3(kAdvanceThreads)}, target, p);
}

}  // namespace palimpsest::cuda
