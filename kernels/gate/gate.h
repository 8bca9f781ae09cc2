// The scalar gates of a head: writing strength and forgetting.
//
//   beta      = scale * sigmoid(b)                              scale 2 allows negative eigenvalues
//   log_decay = -exp(A_log) * softplus(a + dt_bias)             softplus(x) = log(1 + e^x), x itself above 20
#pragma once

#include <cstdint>

#include "kernels/common/thread_pool.h"

namespace palimpsest {

struct GateParams {
  int32_t rows = 0;
  int32_t heads = 0;
  const float* b = nullptr;  // [rows, heads], row stride ldb; null: beta = scale everywhere
  int64_t ldb = 0;
  float beta_scale = 1.0f;
  float* beta = nullptr;  // [rows, heads] contiguous
  // All null without decay.
  const float* a = nullptr;  // [rows, heads], row stride lda
  int64_t lda = 0;
  const float* a_log = nullptr;    // [heads]
  const float* dt_bias = nullptr;  // [heads]
  float* log_decay = nullptr;      // [rows, heads] contiguous
};
void Gate(const ExecContext& ctx, const GateParams& params);

// The truth, in double precision.
void GateReference(const GateParams& params);

}  // namespace palimpsest
