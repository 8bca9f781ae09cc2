#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/ops.h"
#include "kernels/gate/gate_values.h"

namespace palimpsest::cuda {
namespace {

__global__ void __launch_bounds__(kElementThreads) GateKernel(GateParams p) {
  AfterPrevious();
  int64_t i, unused;
  if (!ElementPlace(1, int64_t{p.rows} * p.heads, unused, i)) return;
  const int64_t r = i / p.heads, h = i % p.heads;
  p.beta[i] = Beta(p, r, h);
  if (p.log_decay != nullptr) p.log_decay[i] = LogDecay(p, r, h);
}

}  // namespace

cudaError_t Run(const GateParams& p, const Target& target) {
  return Launch(GateKernel, ElementShape(1, int64_t{p.rows} * p.heads), target, p);
}

}  // namespace palimpsest::cuda
