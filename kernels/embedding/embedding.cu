#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/math.h"
#include "kernels/cuda/ops.h"
#include "kernels/embedding/embedding.h"

namespace palimpsest::cuda {
namespace {

__global__ void __launch_bounds__(kElementThreads) EmbeddingKernel(EmbeddingParams p) {
  AfterPrevious();
  int64_t r, i;
  if (!ElementPlace(p.rows, p.dim, r, i)) return;
  const float value = LoadAs(p.dtype, p.table, int64_t{p.tokens[r]} * p.dim + i);
  p.y[r * p.dim + i] = p.scale == 1.0f ? value : p.scale * value;  // bit for bit what the table holds
}

__global__ void __launch_bounds__(kElementThreads) SinusoidKernel(SinusoidParams p) {
  AfterPrevious();
  int64_t r, j;
  const int64_t half = p.dim / 2;
  if (!ElementPlace(p.rows, half, r, j)) return;
  const float angle = static_cast<float>(p.positions[r]) * p.frequencies[j];
  p.y[r * p.dim + j] += sinf(angle);
  p.y[r * p.dim + half + j] += cosf(angle);
}

}  // namespace

cudaError_t Run(const EmbeddingParams& p, const Target& target) {
  return Launch(EmbeddingKernel, ElementShape(p.rows, p.dim), target, p);
}

cudaError_t Run(const SinusoidParams& p, const Target& target) {
  return Launch(SinusoidKernel, ElementShape(p.rows, p.dim / 2), target, p);
}

}  // namespace palimpsest::cuda
