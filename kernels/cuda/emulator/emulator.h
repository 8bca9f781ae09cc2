// Runs CUDA kernels on the processor, for tests on machines without a GPU. The sources of the kernels are compiled as
// C++ with this in place of CUDA's headers: what a kernel computes, where it reads and writes, and where its threads
// wait for each other is then tested everywhere; how fast it is, and what the GPU's compiler makes of it, is not.
//
// A block's threads are fibers of one host thread. They run one at a time from one wait (__syncthreads, __syncwarp, a
// shuffle, a matrix instruction) to the next, in an order that changes from launch to launch, so that a kernel that
// counts on threads being in step shows it. Shared memory is filled with NaN before each block. Waiting that cannot end
// aborts with a message. A stream's work is done when somebody waits for it, not before, so that host code which counts
// on it being done shows it, too; host memory from cudaMallocHost is read only then, as the real one's may be. Host
// code that touches a device's memory, and kernels that are given the host's, are caught (memory.h).
//
// Only what the kernels use is here. Not thread-safe but for launches from several threads on streams of their own.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "kernels/cuda/emulator/memory.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
  constexpr dim3() = default;
  constexpr dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaHostRegisterMapped = 2;
inline constexpr unsigned cudaEventDisableTiming = 2;
struct cudaDeviceProp {
  char name[256];
  int major;
  int minor;
  int multiProcessorCount;
  size_t sharedMemPerBlockOptin;
  size_t totalGlobalMem;
};

namespace palimpsest::emulator {
struct Stream;
struct Graph;
struct Event;

// Where the thread that runs is.
struct Place {
  dim3 thread, block, block_size, grid;
};
inline constinit thread_local const Place* place = nullptr;

std::byte* SharedMemory();

// Notes that the thread has waited for the kernel before: one that ends without that aborts with a message, for on a
// device it could run beside any earlier one.
void AfterPrevious();
void SyncBlock();
void SyncWarp(unsigned mask);
// Every lane of `mask` gives 64 bits and gets those of all; valid until its next exchange but one.
const uint64_t* Exchange(unsigned mask, uint64_t mine);
unsigned Lane();
// Every lane of a full warp gives the address of what it has; `work` is then done once, for all of them.
void Together(void* mine, void (*work)(void* const (&lanes)[32]));

cudaError_t Launch(dim3 grid, dim3 block, int64_t shared_bytes, Stream* stream, std::function<void()> kernel);
// Other work on a stream, in its turn.
void Enqueue(Stream* stream, std::function<void()> work);

// The next launch fails as one on a lost device does, and everything after it: for tests of what happens then.
void LoseDevice(bool lost);

template <typename T>
uint64_t ToBits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <typename T>
T FromBits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace palimpsest::emulator

#define threadIdx (palimpsest::emulator::place->thread)
#define blockIdx (palimpsest::emulator::place->block)
#define blockDim (palimpsest::emulator::place->block_size)
#define gridDim (palimpsest::emulator::place->grid)

using cudaStream_t = palimpsest::emulator::Stream*;
using cudaGraph_t = palimpsest::emulator::Graph*;
using cudaGraphExec_t = palimpsest::emulator::Graph*;
using cudaEvent_t = palimpsest::emulator::Event*;

inline void __syncthreads() { palimpsest::emulator::SyncBlock(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { palimpsest::emulator::SyncWarp(mask); }
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return palimpsest::emulator::FromBits<T>(
      palimpsest::emulator::Exchange(mask, palimpsest::emulator::ToBits(value))[lane & 31]);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int offset) {
  return __shfl_sync(mask, value, static_cast<int>(palimpsest::emulator::Lane()) ^ offset);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  const unsigned lane = palimpsest::emulator::Lane();
  return __shfl_sync(mask, value, static_cast<int>(lane < delta ? lane : lane - delta));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* const all = palimpsest::emulator::Exchange(mask, predicate != 0 ? 1 : 0);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) != 0 && all[lane] != 0) ballot |= 1u << lane;
  }
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0 ? 1 : 0; }
// One fiber runs at a time: the plain operation is atomic.
template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <typename T>
T atomicMax(T* address, T value) {
  const T old = *address;
  if (value > old) *address = value;
  return old;
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocHost(void** memory, size_t bytes);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaHostRegister(void* memory, size_t bytes, unsigned flags);
cudaError_t cudaHostGetDevicePointer(void** address, void* memory, unsigned flags);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable);
