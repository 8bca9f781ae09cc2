// The largest rate of products that the vendor's library reaches: a square one, all choices its own.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/cuda/cuda.h"

namespace palimpsest::cuda {

enum class PeakProduct : uint8_t { kBF16, kTF32 };

class Peak {
 public:
  virtual ~Peak() = default;
  virtual cudaError_t Multiply(cudaStream_t stream) = 0;
};

// y = a b^T for n x n matrices in device memory, a and b of bf16 or of float32. Null if there is no such library.
std::unique_ptr<Peak> MakePeakProduct(PeakProduct kind, int64_t n, const void* a, const void* b, float* y);

}  // namespace palimpsest::cuda
