// Inside norm: what a device does with one value, or with a vector's sum.
#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/math.h"
#include "kernels/norm/norm.h"

namespace palimpsest::cuda {

__device__ __forceinline__ float RmsFactor(float squares, int32_t dim, float eps) {
  return 1.0f / sqrtf(squares / static_cast<float>(dim) + eps);
}

// Not of kNone.
__device__ __forceinline__ float Activated(GateActivation activation, float gate) {
  return activation == GateActivation::kSilu ? Silu(gate) : Sigmoid(gate);
}

}  // namespace palimpsest::cuda
