// Elementwise functions, as kernels/common/simd_math-inl.h has them: a NaN that goes in comes out.
#pragma once

#include <cmath>

#include "kernels/common/dtype.h"
#include "kernels/cuda/cuda.h"

namespace palimpsest::cuda {

__device__ __forceinline__ float Sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

__device__ __forceinline__ float Silu(float x) { return x * Sigmoid(x); }

// log(1 + e^x), and x itself above 20.
__device__ __forceinline__ float Softplus(float x) { return x <= 20.0f ? log1pf(expf(x)) : x; }

__device__ __forceinline__ bool IsFinite(float x) { return fabsf(x) <= 3.402823466e38f; }

// Both as bfloat16, rounded to nearest, ties to even: `low` in the lower half.
__device__ __forceinline__ uint32_t PackBF16(float low, float high) {
#ifdef PALIMPSEST_CUDA_EMULATED
  return uint32_t{BF16FromFloat(low)} | uint32_t{BF16FromFloat(high)} << 16;
#else
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

// As stored and read again.
template <typename Stored>
__device__ __forceinline__ float RoundedTo(float value) {
  if constexpr (sizeof(Stored) == sizeof(BF16)) return FloatFromBF16(static_cast<BF16>(PackBF16(value, 0.0f)));
  return value;
}

// Element i of a table of this type.
__device__ __forceinline__ float LoadAs(DType dtype, const void* table, int64_t i) {
  switch (dtype) {
    case DType::kBF16:
      return FloatFromBF16(static_cast<const BF16*>(table)[i]);
    case DType::kF16:
      return FloatFromF16(static_cast<const uint16_t*>(table)[i]);
    default:
      return static_cast<const float*>(table)[i];
  }
}

}  // namespace palimpsest::cuda
