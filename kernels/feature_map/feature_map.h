// What happens to q and k between projection and memory: an elementwise map, a normalisation per head, a scale.
#pragma once

#include <cstdint>

#include "kernels/common/thread_pool.h"

namespace palimpsest {

enum class FeatureMapKind : uint8_t { kIdentity, kElu1, kRelu, kSilu };  // kElu1: elu(x) + 1

enum class KeyNorm : uint8_t {
  kNone,
  kSum,  // divide by the plain sum over the head's features
  kL2,   // divide by sqrt(sum of squares + 1e-6)
};

struct FeatureMapParams {
  int32_t rows = 0;
  int32_t heads = 0;
  int32_t dim = 0;  // features per head
  FeatureMapKind map = FeatureMapKind::kIdentity;
  KeyNorm norm = KeyNorm::kNone;
  float scale = 1.0f;
  const float* x = nullptr;  // [rows, heads, dim], row stride ldx
  int64_t ldx = 0;
  float* y = nullptr;  // [rows, heads, dim], row stride ldy; may be x
  int64_t ldy = 0;
};
void FeatureMap(const ExecContext& ctx, const FeatureMapParams& params);

// The truth, in double precision.
void FeatureMapReference(const FeatureMapParams& params);

}  // namespace palimpsest
