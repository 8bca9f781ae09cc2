#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/math.h"
#include "kernels/cuda/ops.h"
#include "kernels/gate/gate.h"

namespace palimpsest::cuda {
namespace {

__global__ void __launch_bounds__(kElementThreads) GateKernel(GateParams p) {
  int64_t i, unused;
  if (!ElementPlace(1, int64_t{p.rows} * p.heads, unused, i)) return;
  const int64_t r = i / p.heads, h = i % p.heads;
  p.beta[i] = p.b == nullptr ? p.beta_scale : p.beta_scale * Sigmoid(p.b[r * p.ldb + h]);
  if (p.log_decay != nullptr) p.log_decay[i] = -expf(p.a_log[h]) * Softplus(p.a[r * p.lda + h] + p.dt_bias[h]);
}

}  // namespace

cudaError_t Run(const GateParams& p, const Target& target) {
  return Launch(GateKernel, ElementShape(1, int64_t{p.rows} * p.heads), target, p);
}

}  // namespace palimpsest::cuda
