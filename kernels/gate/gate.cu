// A thread has one beta of a row and one decay, each if there is one of its number.
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/ops.h"
#include "kernels/gate/gate_values.h"

namespace palimpsest::cuda {
namespace {

PALIMPSEST_HOST_DEVICE int64_t WidthOf(const GateParams& p) {
  const int64_t betas = p.beta == nullptr ? 0 : p.heads, decays = p.log_decay == nullptr ? 0 : p.decays();
  return betas > decays ? betas : decays;
}

__global__ void __launch_bounds__(kElementThreads) GateKernel(GateParams p) {
  AfterPrevious();
  int64_t place, unused;
  const int64_t width = WidthOf(p);
  if (!ElementPlace(1, int64_t{p.rows} * width, unused, place)) return;
  const int64_t r = place / width, i = place % width;
  if (p.beta != nullptr && i < p.heads) p.beta[r * p.heads + i] = Beta(p, r, i);
  if (p.log_decay != nullptr && i < p.decays()) p.log_decay[r * p.decays() + i] = LogDecay(p, r, i);
}

}  // namespace

cudaError_t Run(const GateParams& p, const Target& target) {
  return Launch(GateKernel, ElementShape(1, int64_t{p.rows} * WidthOf(p)), target, p);
}

}  // namespace palimpsest::cuda
