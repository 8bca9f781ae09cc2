#include "kernels/copy_rows/copy_rows.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/ops.h"

namespace palimpsest::cuda {
namespace {

__global__ void __launch_bounds__(kElementThreads) CopyRowsKernel(CopyRowsParams p) {
  AfterPrevious();
  int64_t r, i;
  if (!ElementPlace(p.rows, p.dim, r, i)) return;
  const int64_t from = p.from == nullptr ? r : p.from[r], to = p.to == nullptr ? r : p.to[r];
  p.y[to * p.ldy + i] = p.x[from * p.ldx + i];
}

}  // namespace

cudaError_t Run(const CopyRowsParams& p, const Target& target) {
  return Launch(CopyRowsKernel, ElementShape(p.rows, p.dim), target, p);
}

}  // namespace palimpsest::cuda
