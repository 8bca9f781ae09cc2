#include "kernels/cuda/cuda.h"

namespace palimpsest::cuda {
namespace {

__global__ void ProbeKernel(int) { AfterPrevious(); }

}  // namespace

bool KernelsOverlap() {
#ifdef PALIMPSEST_CUDA_EMULATED
  static_cast<void>(&ProbeKernel);
  return true;
#else
  // Of PTX that was compiled for an older device AfterPrevious() is empty, whatever it is translated to here.
  constexpr int kFirst = 90;
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, ProbeKernel) == cudaSuccess && attributes.ptxVersion >= kFirst;
#endif
}

}  // namespace palimpsest::cuda
