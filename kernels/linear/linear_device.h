// Inside linear: its CUDA home.
#pragma once

#include "kernels/cuda/blas.h"
#include "kernels/cuda/cuda.h"
#include "kernels/linear/linear.h"

namespace palimpsest::cuda {

// What a product may use beside its operands: the library, and device memory for rows of x as bf16.
struct LinearResources {
  Blas* blas = nullptr;
  std::byte* scratch = nullptr;
  int64_t scratch_bytes = 0;
};

cudaError_t Run(const LinearParams& params, const LinearResources& resources, const Target& target);

}  // namespace palimpsest::cuda
