#include "kernels/cuda/emulator/emulator.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/context/fiber.hpp>
#include <boost/context/fixedsize_stack.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace palimpsest::emulator {

struct Stream {
  std::vector<std::function<void()>> work;
  bool capturing = false;
  std::vector<std::function<void()>> captured;
};

struct Graph {
  std::vector<std::function<void()>> work;
  int references = 1;
};

struct Event {
  std::chrono::steady_clock::time_point passed;
};

namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr unsigned kWarpSize = 32;
constexpr int64_t kSharedLimit = 227 << 10;

enum class Wait : uint8_t { kNone, kWarp, kBlock, kDone };

struct Thread {
  dim3 index;
  unsigned lane = 0;
  unsigned warp = 0;
  Wait wait = Wait::kNone;
  unsigned mask = 0;
  unsigned exchange = 0;  // which of the warp's buffers is next
  boost::context::fiber fiber;
};

struct Warp {
  uint64_t values[2][kWarpSize];
  void* addresses[kWarpSize];
  unsigned arrived = 0;
};

// Stacks are kept: a kernel has thousands of threads, one block's at a time.
class StackPool {
 public:
  boost::context::stack_context allocate() {
    if (free_.empty()) return stacks_.allocate();
    const boost::context::stack_context stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void deallocate(boost::context::stack_context& stack) { free_.push_back(stack); }
  ~StackPool() {
    for (boost::context::stack_context& stack : free_) stacks_.deallocate(stack);
  }

 private:
  boost::context::fixedsize_stack stacks_{kStackBytes};
  std::vector<boost::context::stack_context> free_;
};
struct PooledStack {
  StackPool* pool;
  boost::context::stack_context allocate() { return pool->allocate(); }
  void deallocate(boost::context::stack_context& stack) { pool->deallocate(stack); }
};

struct Running {
  dim3 grid;
  dim3 block_size;
  dim3 block;
  StackPool stacks;
  std::vector<std::byte> shared;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Thread* current = nullptr;
  boost::context::fiber scheduler;
};
thread_local Running running;

std::atomic<uint64_t> launches{0};
std::atomic<bool> lost{false};

// Memory that the emulator gave out.
std::mutex memory_mutex;
std::map<const void*, size_t> pinned;
std::map<const void*, size_t> on_device;

bool IsPinned(const void* memory) {
  const std::lock_guard<std::mutex> lock(memory_mutex);
  auto it = pinned.upper_bound(memory);
  if (it == pinned.begin()) return false;
  --it;
  return static_cast<const std::byte*>(memory) < static_cast<const std::byte*>(it->first) + it->second;
}

void Suspend(Wait wait, unsigned mask) {
  Thread* const self = running.current;
  self->wait = wait;
  self->mask = mask;
  running.scheduler = std::move(running.scheduler).resume();
}

[[noreturn]] void ReportDeadlock() {
  int at_block = 0, at_warp = 0, done = 0;
  for (const Thread& thread : running.threads) {
    at_block += thread.wait == Wait::kBlock ? 1 : 0;
    at_warp += thread.wait == Wait::kWarp ? 1 : 0;
    done += thread.wait == Wait::kDone ? 1 : 0;
  }
  std::fprintf(stderr,
               "emulator: block (%u, %u, %u) waits for ever: %d threads wait for the block, %d for their warp, %d have "
               "returned\n",
               running.block.x, running.block.y, running.block.z, at_block, at_warp, done);
  std::abort();
}

// Lanes whose mask names only lanes that wait with the same mask, or have returned, go on.
bool ReleaseWarp(Thread* begin, Thread* end) {
  bool released = false;
  for (Thread* thread = begin; thread != end; ++thread) {
    if (thread->wait != Wait::kWarp) continue;
    const unsigned mask = thread->mask;
    const bool complete = std::all_of(begin, end, [&](const Thread& other) {
      return (mask >> other.lane & 1) == 0 || other.wait == Wait::kDone ||
             (other.wait == Wait::kWarp && other.mask == mask);
    });
    if (!complete) continue;
    for (Thread* other = begin; other != end; ++other) {
      if (other->wait == Wait::kWarp && other->mask == mask) other->wait = Wait::kNone;
    }
    released = true;
  }
  return released;
}

void RunBlock(const std::function<void()>& kernel, bool backward) {
  std::vector<Thread>& threads = running.threads;
  // NaN in every word, so that what was not written shows.
  std::memset(running.shared.data(), 0xFF, running.shared.size());
  for (Thread& thread : threads) {
    thread.wait = Wait::kNone;
    thread.exchange = 0;
    running.warps[thread.warp].arrived = 0;
    thread.fiber = boost::context::fiber(std::allocator_arg, PooledStack{&running.stacks},
                                         [&kernel, &thread](boost::context::fiber&& scheduler) {
                                           running.scheduler = std::move(scheduler);
                                           kernel();
                                           thread.wait = Wait::kDone;
                                           return std::move(running.scheduler);
                                         });
  }
  const size_t warps = running.warps.size(), n = threads.size();
  for (;;) {
    bool ran = false;
    for (size_t i = 0; i < warps; ++i) {
      const size_t warp = backward ? warps - 1 - i : i;
      Thread* const begin = threads.data() + warp * kWarpSize;
      Thread* const end = threads.data() + std::min(n, (warp + 1) * kWarpSize);
      do {
        for (ptrdiff_t j = 0; j < end - begin; ++j) {
          Thread* const thread = backward ? end - 1 - j : begin + j;
          if (thread->wait != Wait::kNone) continue;
          running.current = thread;
          thread->fiber = std::move(thread->fiber).resume();
          ran = true;
        }
      } while (ReleaseWarp(begin, end));
    }
    if (std::all_of(threads.begin(), threads.end(), [](const Thread& t) { return t.wait == Wait::kDone; })) return;
    const bool all_wait = std::all_of(threads.begin(), threads.end(),
                                      [](const Thread& t) { return t.wait == Wait::kDone || t.wait == Wait::kBlock; });
    if (all_wait) {
      for (Thread& thread : threads) {
        if (thread.wait == Wait::kBlock) thread.wait = Wait::kNone;
      }
    } else if (!ran) {
      ReportDeadlock();
    }
  }
}

void RunKernel(dim3 grid, dim3 block, int64_t shared_bytes, const std::function<void()>& kernel, bool backward) {
  const size_t n = size_t{block.x} * block.y * block.z;
  running.grid = grid;
  running.block_size = block;
  running.shared.resize(static_cast<size_t>(shared_bytes) + 64);
  running.threads.resize(n);
  running.warps.resize((n + kWarpSize - 1) / kWarpSize);
  for (size_t i = 0; i < n; ++i) {
    Thread& thread = running.threads[i];
    const auto t = static_cast<unsigned>(i);
    thread.index = dim3(t % block.x, t / block.x % block.y, t / block.x / block.y);
    thread.lane = t % kWarpSize;
    thread.warp = t / kWarpSize;
  }
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        running.block = dim3(x, y, z);
        RunBlock(kernel, backward);
      }
    }
  }
}

}  // namespace

const dim3& ThreadIndex() { return running.current->index; }
const dim3& BlockIndex() { return running.block; }
const dim3& BlockSize() { return running.block_size; }
const dim3& GridSize() { return running.grid; }
unsigned Lane() { return running.current->lane; }

std::byte* SharedMemory() {
  const auto address = reinterpret_cast<uintptr_t>(running.shared.data());
  return reinterpret_cast<std::byte*>((address + 15) / 16 * 16);
}

void SyncBlock() { Suspend(Wait::kBlock, 0); }
void SyncWarp(unsigned mask) { Suspend(Wait::kWarp, mask); }

const uint64_t* Exchange(unsigned mask, uint64_t mine) {
  Thread* const self = running.current;
  uint64_t* const values = running.warps[self->warp].values[self->exchange];
  self->exchange ^= 1;
  values[self->lane] = mine;
  SyncWarp(mask);
  return values;
}

void Together(void* mine, void (*work)(void* const (&lanes)[32])) {
  Warp& warp = running.warps[running.current->warp];
  warp.addresses[Lane()] = mine;
  warp.arrived |= 1u << Lane();
  if (warp.arrived == 0xFFFFFFFFu) {
    warp.arrived = 0;
    work(warp.addresses);
  }
  SyncWarp(0xFFFFFFFFu);
}

void Enqueue(Stream* stream, std::function<void()> work) {
  (stream->capturing ? stream->captured : stream->work).push_back(std::move(work));
}

cudaError_t Launch(dim3 grid, dim3 block, int64_t shared_bytes, Stream* stream, std::function<void()> kernel) {
  const int64_t threads = int64_t{block.x} * block.y * block.z;
  if (threads < 1 || threads > 1024 || shared_bytes > kSharedLimit || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidValue;
  }
  if (lost) return cudaErrorLaunchFailure;
  Enqueue(stream, [grid, block, shared_bytes, kernel = std::move(kernel)] {
    RunKernel(grid, block, shared_bytes, kernel, launches.fetch_add(1) % 2 == 1);
  });
  return cudaSuccess;
}

void LoseDevice(bool value) { lost = value; }

}  // namespace palimpsest::emulator

using palimpsest::emulator::Event;
using palimpsest::emulator::Graph;
using palimpsest::emulator::Stream;
namespace emulator = palimpsest::emulator;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
  }
  return "unknown error";
}

cudaError_t cudaGetLastError() { return emulator::lost ? cudaErrorLaunchFailure : cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulator");
  properties->major = 9;
  properties->multiProcessorCount = 4;
  properties->sharedMemPerBlockOptin = emulator::kSharedLimit;
  properties->totalGlobalMem = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = static_cast<size_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  *total = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  return cudaSuccess;
}

namespace {

cudaError_t Allocate(void** memory, size_t bytes, std::map<const void*, size_t>& book) {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  if (bytes > free) return cudaErrorMemoryAllocation;
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xFF, bytes);  // NaN: nobody may count on zeros
  const std::lock_guard<std::mutex> lock(emulator::memory_mutex);
  book[*memory] = bytes;
  return cudaSuccess;
}

cudaError_t Release(void* memory, std::map<const void*, size_t>& book) {
  if (memory == nullptr) return cudaSuccess;
  {
    const std::lock_guard<std::mutex> lock(emulator::memory_mutex);
    if (book.erase(memory) == 0) return cudaErrorInvalidValue;
  }
  std::free(memory);
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaMalloc(void** memory, size_t bytes) { return Allocate(memory, bytes, emulator::on_device); }
cudaError_t cudaFree(void* memory) { return Release(memory, emulator::on_device); }
cudaError_t cudaMallocHost(void** memory, size_t bytes) { return Allocate(memory, bytes, emulator::pinned); }
cudaError_t cudaFreeHost(void* memory) { return Release(memory, emulator::pinned); }

cudaError_t cudaHostRegister(void* memory, size_t bytes, unsigned) {
  const std::lock_guard<std::mutex> lock(emulator::memory_mutex);
  return emulator::pinned.emplace(memory, bytes).second ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaHostGetDevicePointer(void** address, void* memory, unsigned) {
  *address = memory;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (emulator::lost) return cudaErrorLaunchFailure;
  if (kind != cudaMemcpyHostToDevice || emulator::IsPinned(from)) {
    emulator::Enqueue(stream, [=] { std::memcpy(to, from, bytes); });
    return cudaSuccess;
  }
  // Pageable memory has been read when the call returns.
  auto copy = std::make_shared<std::vector<std::byte>>(bytes);
  std::memcpy(copy->data(), from, bytes);
  emulator::Enqueue(stream, [=] { std::memcpy(to, copy->data(), bytes); });
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  if (emulator::lost) return cudaErrorLaunchFailure;
  emulator::Enqueue(stream, [=] { std::memset(memory, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new Stream;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream->capturing) return cudaErrorInvalidValue;
  for (size_t i = 0; i < stream->work.size(); ++i) stream->work[i]();
  stream->work.clear();
  return emulator::lost ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new Event;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  emulator::Enqueue(stream, [event] { event->passed = std::chrono::steady_clock::now(); });
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->passed - begin->passed).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream->capturing) return cudaErrorInvalidValue;
  stream->capturing = true;
  stream->captured.clear();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!stream->capturing) return cudaErrorInvalidValue;
  stream->capturing = false;
  *graph = new Graph{std::move(stream->captured), 1};
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  ++graph->references;
  *executable = graph;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (emulator::lost) return cudaErrorLaunchFailure;
  for (const std::function<void()>& work : executable->work) emulator::Enqueue(stream, work);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (--graph->references == 0) delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return cudaGraphDestroy(executable); }
