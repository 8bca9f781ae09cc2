// The tensor cores' instructions on a warp's fragments (PTX ISA, "mma.m16n8k8" and "mma.m16n8k16").
//
// With g = lane / 4 and t = lane % 4, a lane has these elements:
//   D, 16 x 8          d0, d1 = (g, 2t), (g, 2t + 1)          d2, d3 = (g + 8, 2t), (g + 8, 2t + 1)
//   tf32  A, 16 x 8    a0 (g, t)   a1 (g + 8, t)   a2 (g, t + 4)   a3 (g + 8, t + 4)
//         B, 8 x 8     b0 (t, g)   b1 (t + 4, g)
//   bf16  A, 16 x 16   a0 (g, 2t..)   a1 (g + 8, 2t..)   a2 (g, 2t + 8..)   a3 (g + 8, 2t + 8..)      pairs, lower
//   first
//         B, 16 x 8    b0 (2t.., g)   b1 (2t + 8.., g)
#pragma once

#ifdef PALIMPSEST_CUDA_EMULATED
#include <algorithm>
#include <bit>
#include <cmath>
#endif

#include "kernels/common/dtype.h"
#include "kernels/cuda/cuda.h"

namespace palimpsest::cuda {

#ifdef PALIMPSEST_CUDA_EMULATED

namespace emulated {

struct Fragments {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

// Sums as the unit forms them, as far as is known (Fasi, Higham, Mikaitis and Pranesh 2021; Khattak and Mikaitis 2025):
// it adds the products of 16 bytes of A at a time to what was there (the H100 perhaps of 32), each cut off below the
// last of 24 + 2 bits of the greatest among them, and cuts the sum off to 24 bits. Nothing is rounded to nearest, so
// sums drift towards zero.
template <int kGroup>
float AddProducts(float sum, const float* a, const float* b) {
  double terms[kGroup + 1], total = sum, most = std::abs(sum);
  terms[kGroup] = sum;
  for (int k = 0; k < kGroup; ++k) {
    terms[k] = double{a[k]} * b[k];
    total += terms[k];
    most = std::max(most, std::abs(terms[k]));
  }
  if (most == 0.0 || !std::isfinite(total)) return static_cast<float>(total);
  // Exact in double, but for terms so small that they are cut off whole.
  constexpr int kFractionBits = 52, kLast = 23 + 2;
  const auto power = [](int64_t exponent) { return std::bit_cast<double>((exponent + 1023) << kFractionBits); };
  const int64_t exponent = (std::bit_cast<int64_t>(most) >> kFractionBits) - 1023;
  const double scale = power(kLast - exponent);
  int32_t units = 0;
  for (const double term : terms) units += static_cast<int32_t>(term * scale);
  constexpr int64_t kBelowFloat = (int64_t{1} << (kFractionBits - 23)) - 1;
  return static_cast<float>(
      std::bit_cast<double>(std::bit_cast<int64_t>(units * power(exponent - kLast)) & ~kBelowFloat));
}

// D += A B for the whole warp, B given by columns.
template <int kGroup, int kDepth>
void Multiply(void* const (&lanes)[32], const float (&A)[16][kDepth], const float (&B)[8][kDepth]) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      float& d = static_cast<Fragments*>(lanes[lane])->d[i];
      const float* const a = A[lane / 4 + i / 2 * 8];
      const float* const b = B[2 * (lane % 4) + i % 2];
      for (int k = 0; k < kDepth; k += kGroup) d = AddProducts<kGroup>(d, a + k, b + k);
    }
  }
}

}  // namespace emulated

inline void MmaTF32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated::Fragments mine{d, a, b};
  emulator::Together(&mine, [](void* const(&lanes)[32]) {
    float A[16][8], B[8][8];
    // The unit does not look at the lower bits.
    const auto value = [](uint32_t bits) { return __uint_as_float(bits & ~0x1FFFu); };
    for (int lane = 0; lane < 32; ++lane) {
      const auto* const given = static_cast<const emulated::Fragments*>(lanes[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) A[g + i % 2 * 8][t + i / 2 * 4] = value(given->a[i]);
      for (int i = 0; i < 2; ++i) B[g][t + 4 * i] = value(given->b[i]);
    }
    emulated::Multiply<4>(lanes, A, B);
  });
}

inline void MmaBF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated::Fragments mine{d, a, b};
  emulator::Together(&mine, [](void* const(&lanes)[32]) {
    float A[16][16], B[8][16];
    const auto value = [](uint32_t pair, int i) { return FloatFromBF16(static_cast<BF16>(pair >> (16 * i))); };
    for (int lane = 0; lane < 32; ++lane) {
      const auto* const given = static_cast<const emulated::Fragments*>(lanes[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 8; ++i) A[g + i / 2 % 2 * 8][2 * t + i / 4 * 8 + i % 2] = value(given->a[i / 2], i % 2);
      for (int i = 0; i < 4; ++i) B[g][2 * t + i / 2 * 8 + i % 2] = value(given->b[i / 2], i % 2);
    }
    emulated::Multiply<8>(lanes, A, B);
  });
}

inline uint32_t ToTF32(float x) { return (__float_as_uint(x) + 0x1000u) & ~0x1FFFu; }

#else

__device__ __forceinline__ void MmaTF32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void MmaBF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Rounds to the 11 significant bits that the unit takes.
__device__ __forceinline__ uint32_t ToTF32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

#endif

// How products of float32 are formed on tensor cores: once, with operands rounded to tf32 (11 bits); or three times,
// with what the rounding left behind, which gives 21 bits or so.
enum class Tf32 : uint8_t { kOnce, kThrice };

// d[n] += A B for `kTiles` tiles of B side by side: A is a(row, k), 16 x depth, B is b(k, column), depth x 8 kTiles.
// `depth` is a multiple of 8. All lanes of the warp take part. The unit drops what its sums have no room for, more of
// it the larger they are: so what was in d, and the products with what rounding left behind, are added at the end.
template <Tf32 kMath, int kTiles, typename A, typename B>
__device__ __forceinline__ void MultiplyTiles(float (&d)[kTiles][4], int depth, A a, B b) {
  const int g = static_cast<int>(threadIdx.x % kWarp) / 4, t = static_cast<int>(threadIdx.x % kWarp) % 4;
  float sum[kTiles][4] = {}, rest[kTiles][4] = {};
#pragma unroll 2  // more of them in flight take more registers than there are
  for (int k = 0; k < depth; k += 8) {
    const float left[4] = {a(g, k + t), a(g + 8, k + t), a(g, k + t + 4), a(g + 8, k + t + 4)};
    uint32_t large[4], small[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      large[i] = ToTF32(left[i]);
      if constexpr (kMath == Tf32::kThrice) small[i] = ToTF32(left[i] - __uint_as_float(large[i]));
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float right[2] = {b(k + t, 8 * n + g), b(k + t + 4, 8 * n + g)};
      const uint32_t large_right[2] = {ToTF32(right[0]), ToTF32(right[1])};
      if constexpr (kMath == Tf32::kThrice) {
        const uint32_t small_right[2] = {ToTF32(right[0] - __uint_as_float(large_right[0])),
                                         ToTF32(right[1] - __uint_as_float(large_right[1]))};
        MmaTF32(rest[n], small, large_right);
        MmaTF32(rest[n], large, small_right);
      }
      MmaTF32(sum[n], large, large_right);
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) d[n][i] += sum[n][i] + rest[n][i];
  }
}

// Calls give(row, column, value) for this lane's elements of those tiles.
template <int kTiles, typename Give>
__device__ __forceinline__ void ForTileElements(const float (&d)[kTiles][4], Give give) {
  const int g = static_cast<int>(threadIdx.x % kWarp) / 4, t = static_cast<int>(threadIdx.x % kWarp) % 4;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) give(g + i / 2 * 8, 8 * n + 2 * t + i % 2, d[n][i]);
  }
}

}  // namespace palimpsest::cuda
