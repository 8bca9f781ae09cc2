#include "kernels/cuda/group.h"
#include "kernels/cuda/math.h"
#include "kernels/cuda/ops.h"
#include "kernels/log_softmax/log_softmax.h"

namespace palimpsest::cuda {
namespace {

template <int kThreads>
__global__ void __launch_bounds__(256) LogSoftmaxKernel(LogSoftmaxParams p) {
  AfterPrevious();
  const int64_t row = GroupRow();
  if (row >= p.rows) return;
  const float* const x = p.x + row * p.ldx;
  float* const y = p.y + row * p.ldy;
  float* const shared = Shared<float>();
  float max = -INFINITY, wrong = 0.0f;
  for (int64_t i = threadIdx.x; i < p.dim; i += kThreads) {
    max = fmaxf(max, x[i]);
    wrong += IsFinite(x[i]) ? 0.0f : 1.0f;
  }
  max = GroupMax<kThreads>(max, shared);
  wrong = GroupSum<kThreads>(wrong, shared);
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < p.dim; i += kThreads) sum += expf(x[i] - max);
  sum = GroupSum<kThreads>(sum, shared);
  // In double until the end: near 0 a log-probability is the small difference of larger numbers.
  const double shift = (p.shift == nullptr ? 0.0 : p.shift[row * p.ldshift]) - max - log(double{sum});
  for (int64_t i = threadIdx.x; i < p.dim; i += kThreads) y[i] = wrong > 0.0f ? NAN : static_cast<float>(x[i] + shift);
}

}  // namespace

cudaError_t Run(const LogSoftmaxParams& p, const Target& target) {
  return WithRowGroups(p.rows, p.dim, [&]<int kThreads>(const Shape& shape) {
    return Launch(LogSoftmaxKernel<kThreads>, shape, target, p);
  });
}

}  // namespace palimpsest::cuda
