// Groups of threads that share one row of work: kThreads is a power of two up to a warp, or a whole number of warps
// that make up the block. Sums and maxima come out the same in every thread, in an order that depends on kThreads only.
#pragma once

#include "kernels/cuda/cuda.h"

namespace palimpsest::cuda {

// Words of dynamic shared memory that a block needs for its group's sums.
template <int kThreads>
constexpr int kGroupWords = kThreads > kWarp ? kThreads / kWarp : 0;

template <int kThreads, typename Value, typename Join>
__device__ __forceinline__ Value JoinGroup(Value value, Join join, Value* shared) {
  constexpr int kWidth = kThreads < kWarp ? kThreads : kWarp;
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2) value = join(value, __shfl_xor_sync(kAllLanes, value, offset));
  if constexpr (kThreads > kWarp) {
    constexpr int kWarps = kThreads / kWarp;
    __syncthreads();  // who reads the words of the sum before
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = shared[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) value = join(value, shared[w]);
  }
  return value;
}

template <int kThreads>
__device__ __forceinline__ float GroupSum(float value, float* shared = nullptr) {
  return JoinGroup<kThreads>(
      value, [](float a, float b) { return a + b; }, shared);
}

// NaN is greater than everything.
template <int kThreads>
__device__ __forceinline__ float GroupMax(float value, float* shared = nullptr) {
  return JoinGroup<kThreads>(
      value, [](float a, float b) { return a > b || a != a ? a : b; }, shared);
}

// Rows of `dim` values are taken by a warp each where they are short, else by a block each.
inline constexpr int kWideGroup = 256;
inline constexpr int kRowsPerBlock = 8;  // of warps
constexpr bool FitsWarp(int64_t dim) { return dim <= 1024; }

// Calls launch.template operator()<kThreads>(shape) for `rows` rows of `dim` values; thread (x, y) of a block works on
// row blockIdx.x * blockDim.y + threadIdx.y, as number x of its group.
template <typename LaunchFunction>
cudaError_t WithRowGroups(int64_t rows, int64_t dim, LaunchFunction launch) {
  if (FitsWarp(dim)) {
    const auto blocks = static_cast<unsigned>(DivideUp(rows, kRowsPerBlock));
    return launch.template operator()<kWarp>(Shape{.grid = dim3(blocks), .block = dim3(kWarp, kRowsPerBlock)});
  }
  return launch.template operator()<kWideGroup>(Shape{.grid = dim3(static_cast<unsigned>(rows)),
                                                      .block = dim3(kWideGroup),
                                                      .shared_bytes = kGroupWords<kWideGroup> * int64_t{4}});
}

__device__ __forceinline__ int64_t GroupRow() { return int64_t{blockIdx.x} * blockDim.y + threadIdx.y; }

}  // namespace palimpsest::cuda
