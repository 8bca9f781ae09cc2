// What happens to q and k between projection and memory: a map to features, a normalisation per head, a scale.
#pragma once

#include <cstdint>

#include "kernels/common/host_device.h"
#include "kernels/common/thread_pool.h"

namespace palimpsest {

enum class FeatureMapKind : uint8_t {
  kIdentity,
  kElu1,  // elu(x) + 1 (2006.16236)
  kRelu,
  kSilu,
  // DPFP (2102.11174, eq. 37): with r = [relu(x), relu(-x)] of 2 dim values, feature (i - 1) 2 dim + j is r_j r_(j-i),
  // indices modulo 2 dim, for rolls i = 1 to `rolls` and j = 0 to 2 dim - 1.
  kDpfp,
  // FAVOR+ with positive and negative exponents (2009.14794), as the toolkit of 2102.11174 has it: with
  // u = x projection and o = -|x|^2 / 2, features are ([exp(o + u), exp(o - u)] + 1e-4) / sqrt(2 projections).
  kFavor,
  // Learned maps, one for all heads, with A and B of dim x dim.
  kElementwiseProduct,  // (A x + a) (B x + b), value by value
  kT2r,                 // relu(A x + a) (2103.13076)
  kHedgehog,            // softmax of [2 u, -2 u], u = A x + a (2402.04347)
};

constexpr bool IsLearned(FeatureMapKind map) {
  return map == FeatureMapKind::kElementwiseProduct || map == FeatureMapKind::kT2r || map == FeatureMapKind::kHedgehog;
}

// Whether a feature depends on one value alone.
constexpr bool IsElementwise(FeatureMapKind map) {
  return map != FeatureMapKind::kDpfp && map != FeatureMapKind::kFavor && !IsLearned(map);
}

enum class KeyNorm : uint8_t {
  kNone,
  kSum,         // divide by the plain sum over the head's features; features that sum to zero stay as they are
  kL1,          // divide by the sum of absolute values, at least 1e-6
  kL2,          // divide by sqrt(sum of squares + 1e-6)
  kShiftedSum,  // divide by the plain sum + 1e-4
};

// Features of a head of `dim` values.
PALIMPSEST_HOST_DEVICE constexpr int32_t FeatureCount(FeatureMapKind map, int32_t dim, int32_t rolls,
                                                      int32_t projections) {
  if (map == FeatureMapKind::kDpfp) return 2 * dim * rolls;
  if (map == FeatureMapKind::kFavor) return 2 * projections;
  if (map == FeatureMapKind::kHedgehog) return 2 * dim;
  return dim;
}

// What a learned map's matrices give for a head's values.
PALIMPSEST_HOST_DEVICE constexpr int32_t LearnedOutputs(FeatureMapKind map, int32_t dim) {
  return map == FeatureMapKind::kElementwiseProduct ? 2 * dim : dim;
}

// Of FeatureMapParams::projection.
constexpr int64_t ProjectionFloats(FeatureMapKind map, int32_t dim, int32_t projections) {
  if (map == FeatureMapKind::kFavor) return int64_t{dim} * projections;
  return IsLearned(map) ? (int64_t{dim} + 1) * LearnedOutputs(map, dim) : 0;
}

struct FeatureMapParams {
  int32_t rows = 0;
  int32_t heads = 0;
  int32_t dim = 0;  // values per head of x
  FeatureMapKind map = FeatureMapKind::kIdentity;
  int32_t rolls = 0;        // kDpfp: from 1 to 2 dim - 1
  int32_t projections = 0;  // kFavor
  // kFavor: [dim, projections]. Learned maps: [dim + 1, LearnedOutputs], the transpose of A, and to its right that of
  // B, if there is one; then a row of biases, zeros where the map has none.
  const float* projection = nullptr;
  KeyNorm norm = KeyNorm::kNone;
  float scale = 1.0f;
  const float* x = nullptr;  // [rows, heads, dim], row stride ldx
  int64_t ldx = 0;
  float* y = nullptr;  // [rows, heads, FeatureCount], row stride ldy; may be x if the map is elementwise
  int64_t ldy = 0;

  PALIMPSEST_HOST_DEVICE int32_t features() const { return FeatureCount(map, dim, rolls, projections); }
};
void FeatureMap(const ExecContext& ctx, const FeatureMapParams& params);

// The truth, in double precision.
void FeatureMapReference(const FeatureMapParams& params);

}  // namespace palimpsest
