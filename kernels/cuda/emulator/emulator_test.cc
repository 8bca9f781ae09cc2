// The emulator shows what a kernel does wrong. (What kernels do right, the ops' tests show.)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <vector>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/group.h"

namespace palimpsest::cuda {
namespace {

constexpr int kThreads = 64;

struct Params {
  float* out;
};

class Stream {
 public:
  Stream() { cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking); }
  ~Stream() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// An array that both sides see.
class Array {
 public:
  explicit Array(float fill) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMallocHost(&memory, kThreads * sizeof(float)), cudaSuccess);
    data_ = static_cast<float*>(memory);
    std::fill_n(data_, kThreads, fill);
  }
  ~Array() { cudaFreeHost(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  float* data() const { return data_; }
  std::vector<float> values() const { return {data_, data_ + kThreads}; }

 private:
  float* data_ = nullptr;
};

std::vector<float> RunOnce(void (*kernel)(Params), int64_t shared_bytes = 0) {
  Stream stream;
  const Array out(-1.0f);
  EXPECT_EQ(Launch(kernel, {.grid = dim3(1), .block = dim3(kThreads), .shared_bytes = shared_bytes},
                   {.stream = stream.get()}, Params{out.data()}),
            cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
  return out.values();
}

// Every thread reads what its neighbour wrote; with or without waiting for it.
void Exchange(Params p, bool wait) {
  AfterPrevious();
  float* const shared = Shared<float>();
  const int i = static_cast<int>(threadIdx.x);
  shared[i] = static_cast<float>(i);
  if (wait) __syncthreads();
  p.out[i] = shared[(i + 1) % kThreads];
}

TEST(Emulator, AMissingBarrierShows) {
  std::vector<float> expected(kThreads);
  for (int i = 0; i < kThreads; ++i) expected[i] = static_cast<float>((i + 1) % kThreads);
  EXPECT_EQ(RunOnce([](Params p) { Exchange(p, true); }, kThreads * 4), expected);
  EXPECT_NE(RunOnce([](Params p) { Exchange(p, false); }, kThreads * 4), expected);
}

TEST(Emulator, SharedMemoryBeginsAsNaN) {
  for (const float value : RunOnce(
           [](Params p) {
             AfterPrevious();
             p.out[threadIdx.x] = Shared<float>()[threadIdx.x];
           },
           kThreads * 4)) {
    EXPECT_TRUE(std::isnan(value));
  }
}

TEST(Emulator, SumsOverWarpAndBlock) {
  const std::vector<float> warps = RunOnce([](Params p) {
    AfterPrevious();
    p.out[threadIdx.x] = GroupSum<32>(static_cast<float>(threadIdx.x));
  });
  EXPECT_EQ(warps.front(), 31 * 32 / 2);
  EXPECT_EQ(warps.back(), 63 * 64 / 2 - 31 * 32 / 2);
  const std::vector<float> block = RunOnce(
      [](Params p) {
        AfterPrevious();
        p.out[threadIdx.x] = GroupSum<64>(static_cast<float>(threadIdx.x), Shared<float>());
      },
      8);
  EXPECT_THAT(block, testing::Each(63 * 64 / 2));
}

TEST(EmulatorDeathTest, WaitingThatCannotEndIsTold) {
  EXPECT_DEATH(RunOnce([](Params) {
                 AfterPrevious();
                 if (threadIdx.x == 0) {
                   __syncwarp();
                 } else {
                   __syncthreads();
                 }
               }),
               "waits for ever");
}

// A device's array, as wide as one block, and what fills it.
float* DeviceArray() {
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, kThreads * sizeof(float)), cudaSuccess);
  return static_cast<float*>(memory);
}
void Fill(Params p) {
  AfterPrevious();
  p.out[threadIdx.x] = 7.0f;
}
constexpr Shape kOneBlock{.grid = dim3(1), .block = dim3(kThreads)};

TEST(EmulatorDeathTest, TheHostDoesNotTouchADevicesMemory) {
  Stream stream;
  float* const array = DeviceArray();
  ASSERT_EQ(Launch(&Fill, kOneBlock, {.stream = stream.get()}, Params{array}), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
  EXPECT_DEATH(std::fprintf(stderr, "read %f\n", static_cast<double>(*static_cast<volatile float*>(array))), "");
  EXPECT_DEATH(*static_cast<volatile float*>(array) = 1.0f, "");
  std::vector<float> copy(kThreads);
  cudaMemcpyAsync(copy.data(), array, kThreads * sizeof(float), cudaMemcpyDeviceToHost, stream.get());
  cudaStreamSynchronize(stream.get());
  EXPECT_THAT(copy, testing::Each(7.0f));
  EXPECT_EQ(cudaMemcpyAsync(array, copy.data(), 4, cudaMemcpyDeviceToHost, stream.get()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpyAsync(copy.data(), array, 4, cudaMemcpyHostToDevice, stream.get()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(array), cudaSuccess);
  EXPECT_EQ(cudaFree(array), cudaErrorInvalidValue);
}

TEST(EmulatorDeathTest, AKernelIsNotGivenTheHostsMemory) {
  Stream stream;
  float* const freed = DeviceArray();
  cudaFree(freed);
#ifndef PALIMPSEST_DEVICE_SEES_HEAP
  std::vector<float> heap(kThreads);
  float on_stack[kThreads] = {};
  for (float* const array : {heap.data(), on_stack}) {
    EXPECT_DEATH(static_cast<void>(Launch(&Fill, kOneBlock, {.stream = stream.get()}, Params{array})),
                 "is the host's and not the device's");
  }
#endif
  EXPECT_DEATH(static_cast<void>(Launch(&Fill, kOneBlock, {.stream = stream.get()}, Params{freed})),
               "where the device has freed its memory");
}

TEST(Emulator, FreedMemoryIsGivenAgain) {
  size_t before = 0, after = 0, total = 0;
  cudaMemGetInfo(&before, &total);
  void* pieces[3] = {};
  for (void*& piece : pieces) ASSERT_EQ(cudaMalloc(&piece, 10'000), cudaSuccess);
  cudaFree(pieces[0]);
  cudaFree(pieces[1]);
  void* both = nullptr;
  ASSERT_EQ(cudaMalloc(&both, 20'000), cudaSuccess);
  EXPECT_EQ(both, pieces[0]);
  EXPECT_EQ(cudaMalloc(&pieces[0], total), cudaErrorMemoryAllocation);
  cudaFree(both);
  cudaFree(pieces[2]);
  cudaMemGetInfo(&after, &total);
  EXPECT_EQ(after, before);
}

TEST(EmulatorDeathTest, AKernelWaitsForTheOneBefore) {
  EXPECT_DEATH(RunOnce([](Params p) {
                 if (threadIdx.x != 5) AfterPrevious();
                 p.out[threadIdx.x] = 1.0f;
               }),
               "AfterPrevious");
}

TEST(Emulator, AStreamsWorkIsDoneWhenSomebodyWaits) {
  Stream stream;
  const Array out(-1.0f);
  const auto fill = [](Params p) {
    AfterPrevious();
    p.out[threadIdx.x] = 7.0f;
  };
  ASSERT_EQ(Launch(+fill, {.grid = dim3(1), .block = dim3(kThreads)}, {.stream = stream.get()}, Params{out.data()}),
            cudaSuccess);
  EXPECT_THAT(out.values(), testing::Each(-1.0f));
  cudaStreamSynchronize(stream.get());
  EXPECT_THAT(out.values(), testing::Each(7.0f));
}

TEST(Emulator, AGraphRunsAgainWithoutRunningWhenItIsRecorded) {
  Stream stream;
  const Array out(0.0f);
  const auto add = [](Params p) {
    AfterPrevious();
    p.out[threadIdx.x] += 1.0f;
  };
  cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal);
  ASSERT_EQ(Launch(+add, {.grid = dim3(1), .block = dim3(kThreads)}, {.stream = stream.get()}, Params{out.data()}),
            cudaSuccess);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream.get(), &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  cudaStreamSynchronize(stream.get());
  EXPECT_THAT(out.values(), testing::Each(0.0f));
  for (int i = 0; i < 3; ++i) cudaGraphLaunch(executable, stream.get());
  cudaStreamSynchronize(stream.get());
  EXPECT_THAT(out.values(), testing::Each(3.0f));
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST(Emulator, WhatADeviceWouldRefuseIsRefused) {
  Stream stream;
  const auto nothing = [](Params) {};
  for (const Shape& shape :
       {Shape{.grid = dim3(1), .block = dim3(2048)}, Shape{.grid = dim3(1), .block = dim3(32), .shared_bytes = 1 << 20},
        Shape{.grid = dim3(1, 70000), .block = dim3(32)}}) {
    EXPECT_EQ(Launch(+nothing, shape, {.stream = stream.get()}, Params{}), cudaErrorInvalidValue);
  }
}

}  // namespace
}  // namespace palimpsest::cuda
