// Inside feature_map: what a device does with one value, or with the sum of a head's.
#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/math.h"
#include "kernels/feature_map/feature_map.h"

namespace palimpsest::cuda {

__device__ __forceinline__ float Relu(float x) { return x < 0.0f ? 0.0f : x; }

// Of elementwise maps.
__device__ __forceinline__ float Feature(FeatureMapKind map, float x) {
  switch (map) {
    case FeatureMapKind::kElu1:
      return x > 0.0f ? x + 1.0f : expf(x);
    case FeatureMapKind::kRelu:
      return Relu(x);
    case FeatureMapKind::kSilu:
      return Silu(x);
    default:
      return x;
  }
}

// What a head's features add up to is this of each.
__device__ __forceinline__ float AddFeature(KeyNorm norm, float feature, float sum) {
  if (norm == KeyNorm::kL2) return fmaf(feature, feature, sum);
  return sum + (norm == KeyNorm::kL1 ? fabsf(feature) : feature);
}

// What a head's features are multiplied by, given what they add up to.
__device__ __forceinline__ float FeatureFactor(KeyNorm norm, float scale, float sum) {
  if (norm == KeyNorm::kL2) return scale / sqrtf(sum + 1e-6f);
  if (norm == KeyNorm::kL1) return scale / (sum < 1e-6f ? 1e-6f : sum);
  if (norm == KeyNorm::kShiftedSum) return scale / (sum + 1e-4f);
  if (norm == KeyNorm::kSum && sum != 0.0f) return scale / sum;
  return scale;
}

}  // namespace palimpsest::cuda
