// A group of threads normalises one vector: a warp each where they are short, a block each where they are long.
#include "kernels/cuda/group.h"
#include "kernels/cuda/ops.h"
#include "kernels/norm/norm_values.h"

namespace palimpsest::cuda {
namespace {

template <int kThreads, GateActivation kActivation>
__global__ void __launch_bounds__(256) RmsNormKernel(RmsNormParams p) {
  AfterPrevious();
  const int64_t vector = GroupRow();
  if (vector >= int64_t{p.rows} * p.groups) return;
  const int64_t row = vector / p.groups, column = vector % p.groups * p.dim;
  const float* const x = p.x + row * p.ldx + column;
  float* const y = p.y + row * p.ldy + column;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < p.dim; i += kThreads) squares = fmaf(x[i], x[i], squares);
  squares = GroupSum<kThreads>(squares, Shared<float>());
  const float factor = RmsFactor(squares, p.dim, p.eps);
  for (int i = threadIdx.x; i < p.dim; i += kThreads) {
    float value = x[i] * factor * p.weight[i];
    if constexpr (kActivation != GateActivation::kNone) {
      value *= Activated(kActivation, p.gate[row * p.ldgate + column + i]);
    }
    y[i] = value;
  }
}

template <int kThreads>
__global__ void __launch_bounds__(256) LayerNormKernel(LayerNormParams p) {
  AfterPrevious();
  const int64_t row = GroupRow();
  if (row >= p.rows) return;
  const float* const x = p.x + row * p.ldx;
  float* const y = p.y + row * p.ldy;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < p.dim; i += kThreads) sum += x[i];
  const float mean = GroupSum<kThreads>(sum, Shared<float>()) / static_cast<float>(p.dim);
  float squares = 0.0f;
  for (int i = threadIdx.x; i < p.dim; i += kThreads) squares = fmaf(x[i] - mean, x[i] - mean, squares);
  squares = GroupSum<kThreads>(squares, Shared<float>());
  const float factor = 1.0f / sqrtf(squares / static_cast<float>(p.dim) + p.eps);
  for (int i = threadIdx.x; i < p.dim; i += kThreads) y[i] = fmaf((x[i] - mean) * factor, p.weight[i], p.bias[i]);
}

}  // namespace

cudaError_t Run(const RmsNormParams& p, const Target& target) {
  return WithRowGroups(int64_t{p.rows} * p.groups, p.dim, [&]<int kThreads>(const Shape& shape) {
    switch (p.gate_activation) {
      case GateActivation::kNone:
        return Launch(RmsNormKernel<kThreads, GateActivation::kNone>, shape, target, p);
      case GateActivation::kSilu:
        return Launch(RmsNormKernel<kThreads, GateActivation::kSilu>, shape, target, p);
      case GateActivation::kSigmoid:
        return Launch(RmsNormKernel<kThreads, GateActivation::kSigmoid>, shape, target, p);
    }
    return cudaErrorInvalidValue;
  });
}

cudaError_t Run(const LayerNormParams& p, const Target& target) {
  return WithRowGroups(p.rows, p.dim, [&]<int kThreads>(const Shape& shape) {
    return Launch(LayerNormKernel<kThreads>, shape, target, p);
  });
}

}  // namespace palimpsest::cuda
