// What stands between the matrices of an MLP.
//
//   Swiglu  y = silu(gate) * up
//   Relu    y = max(x, 0); NaN stays NaN
#pragma once

#include <cstdint>

#include "kernels/common/thread_pool.h"

namespace palimpsest {

struct SwigluParams {
  int32_t rows = 0;
  int32_t dim = 0;
  const float* gate = nullptr;  // [rows, dim], row stride ldgate
  int64_t ldgate = 0;
  const float* up = nullptr;  // [rows, dim], row stride ldup
  int64_t ldup = 0;
  float* y = nullptr;  // [rows, dim], row stride ldy; may be `gate`
  int64_t ldy = 0;
};
void Swiglu(const ExecContext& ctx, const SwigluParams& params);

struct ReluParams {
  int32_t rows = 0;
  int32_t dim = 0;
  const float* x = nullptr;  // [rows, dim], row stride ldx
  int64_t ldx = 0;
  float* y = nullptr;  // [rows, dim], row stride ldy; may be x
  int64_t ldy = 0;
};
void Relu(const ExecContext& ctx, const ReluParams& params);

// The truth, in double precision.
void SwigluReference(const SwigluParams& params);

}  // namespace palimpsest
