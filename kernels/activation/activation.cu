#include "kernels/activation/activation.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/math.h"
#include "kernels/cuda/ops.h"

namespace palimpsest::cuda {
namespace {

__global__ void __launch_bounds__(kElementThreads) SwigluKernel(SwigluParams p) {
  AfterPrevious();
  int64_t r, i;
  if (!ElementPlace(p.rows, p.dim, r, i)) return;
  p.y[r * p.ldy + i] = Silu(p.gate[r * p.ldgate + i]) * p.up[r * p.ldup + i];
}

__global__ void __launch_bounds__(kElementThreads) ReluKernel(ReluParams p) {
  AfterPrevious();
  int64_t r, i;
  if (!ElementPlace(p.rows, p.dim, r, i)) return;
  const float x = p.x[r * p.ldx + i];
  p.y[r * p.ldy + i] = x < 0.0f ? 0.0f : x;
}

}  // namespace

cudaError_t Run(const SwigluParams& p, const Target& target) {
  return Launch(SwigluKernel, ElementShape(p.rows, p.dim), target, p);
}

cudaError_t Run(const ReluParams& p, const Target& target) {
  return Launch(ReluKernel, ElementShape(p.rows, p.dim), target, p);
}

}  // namespace palimpsest::cuda
