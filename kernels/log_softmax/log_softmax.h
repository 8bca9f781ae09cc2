// y = x - log(sum(e^x)) + shift over the last axis: log-probabilities of a distribution, or of one within a cluster
// whose own log-probability is the shift (adaptive softmax, 1609.04309).
#pragma once

#include <cstdint>

#include "kernels/common/thread_pool.h"

namespace palimpsest {

// A row that holds NaN or infinity comes out as NaN throughout.
struct LogSoftmaxParams {
  int32_t rows = 0;
  int32_t dim = 0;
  const float* x = nullptr;  // [rows, dim], row stride ldx
  int64_t ldx = 0;
  const float* shift = nullptr;  // [rows], ldshift apart; null: 0
  int64_t ldshift = 1;
  float* y = nullptr;  // [rows, dim], row stride ldy; may be x
  int64_t ldy = 0;
};
void LogSoftmax(const ExecContext& ctx, const LogSoftmaxParams& params);

// The truth, in double precision.
void LogSoftmaxReference(const LogSoftmaxParams& params);

}  // namespace palimpsest
