// Inside gate: the gates of one row on a device.
#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/math.h"
#include "kernels/gate/gate.h"

namespace palimpsest::cuda {

__device__ __forceinline__ float Beta(const GateParams& p, int64_t row, int64_t head) {
  return p.b == nullptr ? p.beta_scale : p.beta_scale * Sigmoid(p.b[row * p.ldb + head]);
}

// kSoftplus by head, with A_log and a bias.
__device__ __forceinline__ float SoftplusLogDecay(const GateParams& p, int64_t row, int64_t head) {
  return -expf(p.a_log[head]) * Softplus(p.a[row * p.lda + head] + p.dt_bias[head]);
}

// Number `i` of a row's decays.
__device__ __forceinline__ float LogDecay(const GateParams& p, int64_t row, int64_t i) {
  const float x = p.dt_bias == nullptr ? p.a[row * p.lda + i] : p.a[row * p.lda + i] + p.dt_bias[i];
  const float rate = p.a_log == nullptr ? 1.0f : expf(p.a_log[i / p.decay_channels]);
  switch (p.decay_kind) {
    case DecayKind::kSoftplus:
      return -rate * Softplus(x);
    case DecayKind::kSigmoid:
      return p.lower_bound * Sigmoid(rate * x);
    case DecayKind::kLogSigmoid: {
      const float log_decay = -Softplus(-x) / p.divisor;
      return log_decay < p.lower_bound ? p.lower_bound : log_decay;  // NaN stays
    }
  }
  return 0.0f;
}

}  // namespace palimpsest::cuda
