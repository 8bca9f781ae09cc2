#include "kernels/cuda/emulator/emulator.h"

#include <algorithm>
#include <atomic>
#include <boost/context/detail/fcontext.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

#include "kernels/cuda/emulator/memory.h"

namespace palimpsest::emulator {

struct Stream {
  std::deque<std::function<void()>> work;
  bool capturing = false;
  std::deque<std::function<void()>> captured;
};

struct Graph {
  std::deque<std::function<void()>> work;
  int references = 1;
};

struct Event {
  struct Marks {  // may outlive the event, in streams
    Stream* stream = nullptr;
    uint64_t recorded = 0, passed = 0;  // how often
    std::chrono::steady_clock::time_point time;
  };
  const std::shared_ptr<Marks> marks = std::make_shared<Marks>();
};

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned kWarpSize = 32;
constexpr int64_t kSharedLimit = 227 << 10;

namespace context = boost::context::detail;

enum class Wait : uint8_t { kNone, kWarp, kBlock, kDone };

// A thread of a block is a fiber, which goes on from block to block and from kernel to kernel.
struct Thread {
  Place place;
  unsigned lane = 0;
  unsigned warp = 0;
  Wait wait = Wait::kNone;
  unsigned mask = 0;
  unsigned exchange = 0;  // which of the warp's buffers is next
  bool after_previous = false;
  context::fcontext_t fiber = nullptr;
  std::unique_ptr<std::byte[]> stack;
};

struct Warp {
  uint64_t values[2][kWarpSize];
  void* addresses[kWarpSize];
  unsigned arrived = 0;
};

// What one host thread emulates.
struct Running {
  const std::function<void()>* kernel = nullptr;
  std::vector<std::byte> shared;
  std::vector<Thread> threads;  // as many as any block had
  size_t block_threads = 0;
  std::vector<Warp> warps;
  Thread* current = nullptr;
  context::fcontext_t scheduler = nullptr;
};
Running& running() {
  static thread_local Running instance;
  return instance;
}

// Back to the scheduler, until it comes back.
void SwitchToScheduler(Running& self) { self.scheduler = context::jump_fcontext(self.scheduler, nullptr).fctx; }

void RunFiber(context::transfer_t from) {
  Running& self = *static_cast<Running*>(from.data);
  self.scheduler = from.fctx;
  for (;;) {
    (*self.kernel)();
    if (!self.current->after_previous) {
      std::fprintf(stderr, "emulator: a kernel ends without having waited for the one before (AfterPrevious)\n");
      std::abort();
    }
    self.current->wait = Wait::kDone;
    SwitchToScheduler(self);
  }
}

void Resume(Running& self, Thread& thread) {
  self.current = &thread;
  place = &thread.place;
  thread.fiber = context::jump_fcontext(thread.fiber, &self).fctx;
}

std::atomic<uint64_t> launches{0};
std::atomic<bool> lost{false};

void Suspend(Running& self, Wait wait, unsigned mask) {
  self.current->wait = wait;
  self.current->mask = mask;
  SwitchToScheduler(self);
}

[[noreturn]] void ReportDeadlock(const Running& self) {
  int at_block = 0, at_warp = 0, done = 0;
  for (size_t i = 0; i < self.block_threads; ++i) {
    const Thread& thread = self.threads[i];
    at_block += thread.wait == Wait::kBlock ? 1 : 0;
    at_warp += thread.wait == Wait::kWarp ? 1 : 0;
    done += thread.wait == Wait::kDone ? 1 : 0;
  }
  const dim3 block = self.threads.front().place.block;
  std::fprintf(stderr,
               "emulator: block (%u, %u, %u) waits for ever: %d threads wait for the block, %d for their warp, %d have "
               "returned\n",
               block.x, block.y, block.z, at_block, at_warp, done);
  std::abort();
}

// Lanes whose mask names only lanes that wait with the same mask, or have returned, go on.
bool ReleaseWarp(Running& self, size_t begin, size_t end) {
  // Mostly the whole warp waits for itself.
  size_t waiting = 0;
  while (begin + waiting < end && self.threads[begin + waiting].wait == Wait::kWarp &&
         self.threads[begin + waiting].mask == 0xFFFFFFFFu) {
    ++waiting;
  }
  if (begin + waiting == end) {
    for (size_t i = begin; i < end; ++i) self.threads[i].wait = Wait::kNone;
    return true;
  }
  bool released = false;
  for (size_t i = begin; i < end; ++i) {
    if (self.threads[i].wait != Wait::kWarp) continue;
    const unsigned mask = self.threads[i].mask;
    bool complete = true;
    for (size_t j = begin; j < end && complete; ++j) {
      const Thread& other = self.threads[j];
      complete = (mask >> other.lane & 1) == 0 || other.wait == Wait::kDone ||
                 (other.wait == Wait::kWarp && other.mask == mask);
    }
    if (!complete) continue;
    for (size_t j = begin; j < end; ++j) {
      Thread& other = self.threads[j];
      if (other.wait == Wait::kWarp && other.mask == mask) other.wait = Wait::kNone;
    }
    released = true;
  }
  return released;
}

// Runs the warp until each of its threads has returned or waits for the block. False: some wait for ever.
bool RunWarp(Running& self, size_t begin, size_t end, bool backward) {
  do {
    for (size_t i = begin; i < end; ++i) {
      Thread& thread = self.threads[backward ? end - 1 - (i - begin) : i];
      if (thread.wait == Wait::kNone) Resume(self, thread);
    }
  } while (ReleaseWarp(self, begin, end));
  for (size_t i = begin; i < end; ++i) {
    if (self.threads[i].wait == Wait::kWarp) return false;
  }
  return true;
}

void RunBlock(Running& self, dim3 block, bool backward) {
  const size_t n = self.block_threads, warps = self.warps.size();
  // NaN in every word, so that what was not written shows.
  std::memset(self.shared.data(), 0xFF, self.shared.size());
  for (size_t i = 0; i < n; ++i) {
    Thread& thread = self.threads[i];
    thread.place.block = block;
    thread.wait = Wait::kNone;
    thread.exchange = 0;
    thread.after_previous = false;
  }
  for (Warp& warp : self.warps) warp.arrived = 0;
  for (bool all_done = false; !all_done;) {
    for (size_t i = 0; i < warps; ++i) {
      const size_t begin = (backward ? warps - 1 - i : i) * kWarpSize;
      if (!RunWarp(self, begin, std::min(n, begin + kWarpSize), backward)) ReportDeadlock(self);
    }
    all_done = true;
    for (size_t i = 0; i < n; ++i) {
      if (self.threads[i].wait != Wait::kBlock) continue;
      self.threads[i].wait = Wait::kNone;
      all_done = false;
    }
  }
}

void RunKernel(dim3 grid, dim3 block, int64_t shared_bytes, const std::function<void()>& kernel, bool backward) {
  Running& self = running();
  self.kernel = &kernel;
  self.block_threads = size_t{block.x} * block.y * block.z;
  self.shared.resize(static_cast<size_t>(shared_bytes) + 16);
  self.warps.resize((self.block_threads + kWarpSize - 1) / kWarpSize);
  while (self.threads.size() < self.block_threads) {
    Thread& thread = self.threads.emplace_back();
    thread.stack = std::make_unique<std::byte[]>(kStackBytes);
    thread.fiber = context::make_fcontext(thread.stack.get() + kStackBytes, kStackBytes, RunFiber);
  }
  for (size_t i = 0; i < self.block_threads; ++i) {
    Thread& thread = self.threads[i];
    const auto t = static_cast<unsigned>(i);
    thread.place = {.thread = dim3(t % block.x, t / block.x % block.y, t / block.x / block.y),
                    .block = {},
                    .block_size = block,
                    .grid = grid};
    thread.lane = t % kWarpSize;
    thread.warp = t / kWarpSize;
  }
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) RunBlock(self, dim3(x, y, z), backward);
    }
  }
}

// Does a stream's work, in its order, until there is no more or it is enough.
template <typename Enough>
void RunUntil(Stream& stream, Enough enough) {
  if (stream.work.empty()) return;
  const Opened opened;
  while (!stream.work.empty() && !enough()) {
    const std::function<void()> next = std::move(stream.work.front());
    stream.work.pop_front();
    next();
  }
}

void RunUntilPassed(const Event::Marks& marks, uint64_t times) {
  if (marks.stream != nullptr) RunUntil(*marks.stream, [&] { return marks.passed >= times; });
}

}  // namespace

unsigned Lane() { return running().current->lane; }

std::byte* SharedMemory() {
  const auto address = reinterpret_cast<uintptr_t>(running().shared.data());
  return reinterpret_cast<std::byte*>((address + 15) / 16 * 16);
}

void AfterPrevious() { running().current->after_previous = true; }
void SyncBlock() { Suspend(running(), Wait::kBlock, 0); }
void SyncWarp(unsigned mask) { Suspend(running(), Wait::kWarp, mask); }

const uint64_t* Exchange(unsigned mask, uint64_t mine) {
  Running& self = running();
  Thread& thread = *self.current;
  uint64_t* const values = self.warps[thread.warp].values[thread.exchange];
  thread.exchange ^= 1;
  values[thread.lane] = mine;
  Suspend(self, Wait::kWarp, mask);
  return values;
}

void Together(void* mine, void (*work)(void* const (&lanes)[32])) {
  Running& self = running();
  Warp& warp = self.warps[self.current->warp];
  warp.addresses[self.current->lane] = mine;
  warp.arrived |= 1u << self.current->lane;
  if (warp.arrived == 0xFFFFFFFFu) {
    warp.arrived = 0;
    work(warp.addresses);
  }
  Suspend(self, Wait::kWarp, 0xFFFFFFFFu);
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
  properties->totalGlobalMem = emulator::kDeviceBytes;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = emulator::kDeviceBytes;
  *free = emulator::FreeDeviceBytes();
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = emulator::AllocateOnDevice(bytes);
  return *memory != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* memory) {
  return memory == nullptr || emulator::FreeOnDevice(memory) ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  *memory = emulator::AllocatePinned(bytes);
  return *memory != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* memory) {
  return memory == nullptr || emulator::FreePinned(memory) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaHostRegister(void* memory, size_t bytes, unsigned) {
  return emulator::Register(memory, bytes) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaHostGetDevicePointer(void** address, void* memory, unsigned) {
  *address = memory;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (emulator::lost) return cudaErrorLaunchFailure;
  // (Pinned memory is both sides'.)
  if (emulator::IsOnDevice(to) && kind == cudaMemcpyDeviceToHost) return cudaErrorInvalidValue;
  if (emulator::IsOnDevice(from) && kind == cudaMemcpyHostToDevice) return cudaErrorInvalidValue;
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
  emulator::RunUntil(*stream, [] { return false; });
  return emulator::lost ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new Event;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  emulator::RunUntilPassed(*event->marks, event->marks->recorded);
  return emulator::lost ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (emulator::lost) return cudaErrorLaunchFailure;
  emulator::Enqueue(
      stream, [marks = event->marks, times = event->marks->recorded] { emulator::RunUntilPassed(*marks, times); });
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (emulator::lost) return cudaErrorLaunchFailure;
  event->marks->stream = stream;
  ++event->marks->recorded;
  emulator::Enqueue(stream, [marks = event->marks] {
    ++marks->passed;
    marks->time = std::chrono::steady_clock::now();
  });
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->marks->time - begin->marks->time).count();
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
