// Inside gate: the gates of one head of one row on a device.
#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/math.h"
#include "kernels/gate/gate.h"

namespace palimpsest::cuda {

__device__ __forceinline__ float Beta(const GateParams& p, int64_t row, int64_t head) {
  return p.b == nullptr ? p.beta_scale : p.beta_scale * Sigmoid(p.b[row * p.ldb + head]);
}

__device__ __forceinline__ float LogDecay(const GateParams& p, int64_t row, int64_t head) {
  return -expf(p.a_log[head]) * Softplus(p.a[row * p.lda + head] + p.dt_bias[head]);
}

}  // namespace palimpsest::cuda
