// One thread for each value of a matrix: the launch that elementwise ops share.
#pragma once

#include "kernels/cuda/cuda.h"

namespace palimpsest::cuda {

inline constexpr int kElementThreads = 256;

// Rows are the grid's slow axes, so that it may have any number of them; columns its fast one.
inline Shape ElementShape(int64_t rows, int64_t columns) {
  const int64_t blocks = DivideUp(columns, kElementThreads);
  constexpr int64_t kMostY = 65535;
  const int64_t y = rows < kMostY ? rows : kMostY;
  return {.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(y),
                       static_cast<unsigned>(y == 0 ? 0 : DivideUp(rows, y))),
          .block = dim3(kElementThreads)};
}

// The thread's row and column; false: outside the matrix.
__device__ __forceinline__ bool ElementPlace(int64_t rows, int64_t columns, int64_t& row, int64_t& column) {
  row = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
  column = int64_t{blockIdx.x} * kElementThreads + threadIdx.x;
  return row < rows && column < columns;
}

}  // namespace palimpsest::cuda
