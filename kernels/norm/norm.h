// Normalisation over the last axis.
//
//   RmsNorm    y = x / sqrt(mean(x^2) + eps) * w                              1910.07467
//   LayerNorm  y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * w + b  1607.06450
#pragma once

#include <cstdint>

#include "kernels/common/thread_pool.h"

namespace palimpsest {

// Applied after the weight: y *= act(gate). Norm first, then gate.
enum class GateActivation : uint8_t { kNone, kSilu, kSigmoid };

// Normalises `groups` vectors of `dim` values in each row (a head each, or groups = 1 for the whole row); all share
// `weight`. In place (x == y) is allowed. Sums are float32 in a fixed order.
struct RmsNormParams {
  int32_t rows = 0;
  int32_t groups = 1;
  int32_t dim = 0;
  float eps = 1e-6f;
  const float* x = nullptr;  // [rows, groups, dim], row stride ldx
  int64_t ldx = 0;
  const float* weight = nullptr;  // [dim]
  GateActivation gate_activation = GateActivation::kNone;
  const float* gate = nullptr;  // [rows, groups, dim], row stride ldgate; null for kNone
  int64_t ldgate = 0;
  float* y = nullptr;  // [rows, groups, dim], row stride ldy
  int64_t ldy = 0;
};
void RmsNorm(const ExecContext& ctx, const RmsNormParams& params);

struct LayerNormParams {
  int32_t rows = 0;
  int32_t dim = 0;
  float eps = 1e-5f;
  const float* x = nullptr;  // [rows, dim], row stride ldx
  int64_t ldx = 0;
  const float* weight = nullptr;  // [dim]
  const float* bias = nullptr;    // [dim]
  float* y = nullptr;             // [rows, dim], row stride ldy; may be x
  int64_t ldy = 0;
};
void LayerNorm(const ExecContext& ctx, const LayerNormParams& params);

// The truth, in double precision.
void RmsNormReference(const RmsNormParams& params);
void LayerNormReference(const LayerNormParams& params);

}  // namespace palimpsest
