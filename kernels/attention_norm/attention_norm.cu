// A warp takes one head of one sequence, row by row; each lane has its part of z.
#include "kernels/attention_norm/attention_norm.h"
#include "kernels/cuda/group.h"
#include "kernels/cuda/ops.h"

namespace palimpsest::cuda {
namespace {

constexpr int kHeadsPerBlock = 4;

__global__ void __launch_bounds__(kWarp* kHeadsPerBlock, 8) AttentionNormKernel(AttentionNormParams p) {
  AfterPrevious();
  const int64_t task = int64_t{blockIdx.x} * kHeadsPerBlock + threadIdx.y;
  if (task >= int64_t{p.rows.num_sequences} * p.heads) return;
  const int64_t s = task / p.heads, head = task % p.heads, column = head * p.dim;
  const int32_t slot = p.rows.slot[s];
  if (slot < 0) return;
  const int lane = threadIdx.x;
  float* const z = p.z.At(slot) + column;
  for (int64_t r = p.rows.row_begin[s]; r < p.rows.row_begin[s + 1]; ++r) {
    float* const k = p.k + r * p.ldk + column;
    float* const q = p.q + r * p.ldq + column;
    float old_dot = 0.0f, new_dot = 0.0f;
    bool any = false;
    for (int i = lane; i < p.dim; i += kWarp) {
      any |= z[i] != 0.0f;
      old_dot = fmaf(z[i], k[i], old_dot);
      z[i] += k[i];
      new_dot = fmaf(z[i], q[i], new_dot);
    }
    if (p.normalise_keys) {
      old_dot = GroupSum<kWarp>(old_dot);
      const float D = __any_sync(kAllLanes, any) ? old_dot : 1.0f;
      const float factor = 1.0f / (D + p.eps);
      for (int i = lane; i < p.dim; i += kWarp) k[i] *= factor;
      if (lane == 0) p.beta[r * p.heads + head] *= D;
    }
    const float c = GroupSum<kWarp>(new_dot);
    const float factor = p.scale / ((p.scaled_denominator ? p.scale * c : c) + p.eps);
    for (int i = lane; i < p.dim; i += kWarp) q[i] *= factor;
  }
}

}  // namespace

cudaError_t Run(const AttentionNormParams& p, const Target& target) {
  const int64_t tasks = int64_t{p.rows.num_sequences} * p.heads;
  return Launch(
      AttentionNormKernel,
      {.grid = dim3(static_cast<unsigned>(DivideUp(tasks, kHeadsPerBlock))), .block = dim3(kWarp, kHeadsPerBlock)},
      target, p);
}

}  // namespace palimpsest::cuda
