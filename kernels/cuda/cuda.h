// The CUDA language and runtime as the kernels use them: CUDA's own, or, in tests on machines without a GPU, the
// emulator's, which compiles the same sources as C++ (emulator/emulator.h).
#pragma once

#ifdef PALIMPSEST_CUDA_EMULATED
#include "kernels/cuda/emulator/emulator.h"
#else
#include <cuda_runtime.h>
#endif

#include <cstddef>
#include <cstdint>

namespace palimpsest::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

constexpr int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What a launch needs to know: where to, and what the device allows.
struct Target {
  cudaStream_t stream = nullptr;
  int64_t shared_bytes_per_block = 48 << 10;
  bool overlaps = false;  // kernels may begin before the one before has ended: KernelsOverlap()
};

// Whether the kernels, as they are compiled for the current device, wait for the one before by themselves: from compute
// capability 9.0 on.
bool KernelsOverlap();

struct Shape {
  dim3 grid;
  dim3 block;
  int64_t shared_bytes = 0;
};

#if defined(__CUDACC__) || defined(PALIMPSEST_CUDA_EMULATED)

// The dynamic shared memory of a block, as one struct or array.
template <typename T>
__device__ __forceinline__ T* Shared() {
#ifdef PALIMPSEST_CUDA_EMULATED
  return reinterpret_cast<T*>(emulator::SharedMemory());
#else
  extern __shared__ __align__(16) unsigned char palimpsest_shared[];
  return reinterpret_cast<T*>(palimpsest_shared);
#endif
}

// A kernel on a stream is launched while the one before still runs (programmatic dependent launch), so that it has
// begun when that one ends. This waits for that end; and since every kernel calls it, first of all, everything that was
// put on the stream earlier has ended then. Before it, a kernel may ask for what no kernel writes, and nothing else.
__device__ __forceinline__ void AfterPrevious() {
#ifdef PALIMPSEST_CUDA_EMULATED
  emulator::AfterPrevious();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// The pointer, which the compiler may take to be into the device's memory: of one that was itself loaded from there it
// does not know.
template <typename T>
__device__ __forceinline__ T* Global(T* pointer) {
#ifndef PALIMPSEST_CUDA_EMULATED
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// Has the line of memory at `address` brought to the L2 cache.
__device__ __forceinline__ void PrefetchToL2([[maybe_unused]] const void* address) {
#ifndef PALIMPSEST_CUDA_EMULATED
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(address)));
#endif
}

// Puts kernel(params) on the stream. A grid without blocks is no work, and no error.
template <typename Params>
cudaError_t Launch(void (*kernel)(Params), const Shape& shape, const Target& target, const Params& params) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return cudaSuccess;
#ifdef PALIMPSEST_CUDA_EMULATED
  emulator::RequireOnDevice(params);
  return emulator::Launch(shape.grid, shape.block, shape.shared_bytes, target.stream,
                          [kernel, params] { kernel(params); });
#else
  if (shape.shared_bytes > 48 << 10) {
    // Per function and device; setting it again costs nothing that matters beside such a kernel.
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  void* arguments[] = {const_cast<Params*>(&params)};
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = target.stream;
  config.attrs = &overlap;
  config.numAttrs = target.overlaps ? 1 : 0;
  return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments);
#endif
}

#endif  // what compiles kernels

}  // namespace palimpsest::cuda
