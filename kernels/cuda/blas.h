// Matrix products by the vendor's library (cuBLASLt), for many rows at once.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/common/dtype.h"
#include "kernels/cuda/cuda.h"

namespace palimpsest::cuda {

// y = x W^T, or y += x W^T; then y += bias. x and W are of one type, f32 or bf16; sums are float32. Pointers and
// strides in bytes are multiples of 16.
struct Product {
  DType dtype = DType::kF32;
  int64_t out = 0;
  int64_t in = 0;
  int64_t rows = 0;
  const void* weights = nullptr;  // [out, in], row stride ldw
  int64_t ldw = 0;
  const void* x = nullptr;  // [rows, in], row stride ldx
  int64_t ldx = 0;
  float* y = nullptr;  // [rows, out], row stride ldy
  int64_t ldy = 0;
  bool accumulate = false;
  const float* bias = nullptr;  // [out] or null
};

// One thread at a time. A matrix is always multiplied by the same kernel, one that sums over `in` in one go, however
// many rows there are: so the bits of a row of y do not depend on the other rows. linear_test holds it to that.
class Blas {
 public:
  // `workspace`: device memory that products may use, until the last of them is done. Null if the library does not
  // start.
  static std::unique_ptr<Blas> Create(std::byte* workspace, int64_t workspace_bytes);
  virtual ~Blas() = default;
  // Whether the library has such a kernel for this matrix; `rows` does not matter.
  virtual bool Supports(const Product& product) = 0;
  virtual cudaError_t Multiply(const Product& product, cudaStream_t stream) = 0;
};

}  // namespace palimpsest::cuda
