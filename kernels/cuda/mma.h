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
#include <cstdlib>
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

inline uint32_t ToTF32(float x) { return std::isnan(x) ? 0x7FFFE000u : (__float_as_uint(x) + 0x1000u) & ~0x1FFFu; }

inline void LoadMatrices(const float* row, uint32_t (&words)[4]) {
  struct Lane {
    const float* row;
    uint32_t* words;
  } mine{row, words};
  emulator::Together(&mine, [](void* const(&lanes)[32]) {
    const auto lane_of = [&lanes](int lane) { return static_cast<Lane*>(lanes[lane]); };
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const float* const from = lane_of(8 * i + lane / 4)->row;
        if (reinterpret_cast<uintptr_t>(from) % 16 != 0) std::abort();
        lane_of(lane)->words[i] = __float_as_uint(from[lane % 4]);
      }
    }
  });
}

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

// Four matrices of 8 rows of 16 bytes from shared memory: lanes 8i to 8i + 7 give the rows of matrix i, and words[i] is
// its word (lane / 4, lane % 4). PTX ISA, "ldmatrix".
__device__ __forceinline__ void LoadMatrices(const float* row, uint32_t (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

#endif

// How products of float32 are formed on tensor cores: once, with operands rounded to tf32 (11 bits); or three times,
// with what the rounding left behind, which gives 21 bits or so.
enum class Tf32 : uint8_t { kOnce, kThrice };

// A factor as it has to be before it becomes one of Factors.
template <Tf32 kMath>
__device__ __forceinline__ float AsFactor(float x) {
  return kMath == Tf32::kOnce ? __uint_as_float(ToTF32(x)) : x;
}

// Words of a fragment as the unit takes them, from factors.
template <Tf32 kMath, int kWords>
struct Factors {
  static constexpr bool kSplit = kMath == Tf32::kThrice;
  uint32_t large[kWords];
  uint32_t small[kSplit ? kWords : 1];

  __device__ __forceinline__ explicit Factors(const uint32_t (&words)[kWords]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      large[i] = words[i];
      if constexpr (kSplit) {
        // Rounded, without a care for NaN: what is left of one is NaN. Of that the unit takes all but the last bit.
        large[i] = (words[i] + 0x1000u) & ~0x1FFFu;
        small[i] = __float_as_uint(__uint_as_float(words[i]) - __uint_as_float(large[i]));
      }
    }
  }
};

// Sums of products, kTiles tiles of 16 x 8 side by side. The unit drops what a sum has no room for, the more the larger
// the sum: so the products with what rounding left have sums of their own, and the sums begin as zeros; what they are
// to be added to is added by whoever takes them.
template <Tf32 kMath, int kTiles>
struct TileSums {
  static constexpr bool kSplit = kMath == Tf32::kThrice;
  float large[kTiles][4] = {};
  float small[kSplit ? kTiles : 1][4] = {};

  __device__ __forceinline__ void Add(int n, const Factors<kMath, 4>& a, const Factors<kMath, 2>& b) {
    if constexpr (kSplit) {
      MmaTF32(small[n], a.small, b.large);
      MmaTF32(small[n], a.large, b.small);
    }
    MmaTF32(large[n], a.large, b.large);
  }

  __device__ __forceinline__ float At(int n, int i) const {
    if constexpr (kSplit) return large[n][i] + small[n][i];
    return large[n][i];
  }
};

// d = A B^T, in kTiles tiles: A is 16 x kDepth, B is 8 kTiles x kDepth, both of factors in shared memory, with rows
// that begin at 16 bytes. All lanes of the warp take part.
template <Tf32 kMath, int kTiles, int kDepth, int kOfTiles>
__device__ __forceinline__ void MultiplyRows(const float* a, int lda, const float* b, int ldb,
                                             float (&d)[kOfTiles][4]) {
  static_assert(kTiles % 2 == 0 && kTiles <= kOfTiles && kDepth % 8 == 0);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, row = lane % 8;
  a += (row + lane / 8 % 2 * 8) * lda + lane / 16 * 4;
  b += (row + lane / 16 * 8) * ldb + lane / 8 % 2 * 4;
  // Fragments are fetched while the products of those before them are formed, of which kThrice has enough without that.
  constexpr int kHeld = kMath == Tf32::kOnce ? 2 : 1;
  uint32_t left[kHeld][4], right[kHeld][kTiles / 2][4];
  const auto fetch = [&](int k) {
    const int to = k / 8 % kHeld;
    LoadMatrices(a + k, left[to]);
#pragma unroll
    for (int pair = 0; pair < kTiles / 2; ++pair) LoadMatrices(b + 16 * pair * ldb + k, right[to][pair]);
  };
  TileSums<kMath, kTiles> sums;
  if (kHeld == 2) fetch(0);
#pragma unroll 2
  for (int k = 0; k < kDepth; k += 8) {
    const int now = k / 8 % kHeld, next = k + 8 * (kHeld - 1);
    if (next < kDepth) fetch(next);
    const Factors<kMath, 4> factors(left[now]);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const uint32_t(&pair)[4] = right[now][n / 2];
      sums.Add(n, factors, Factors<kMath, 2>({pair[n % 2 * 2], pair[n % 2 * 2 + 1]}));
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) d[n][i] = sums.At(n, i);
  }
}

// Calls give(row, column, value) for this lane's elements of tiles side by side.
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
