// A fixed set of threads that run one parallel region at a time.
//
// The partition is static and depends on the amount of work and the number of threads only; an op must give the same
// bits for any number of threads, which holds when each output element is computed by one thread in a fixed order.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"

namespace palimpsest {

// Regions are started by one thread at a time (the engine's); that thread works too, as part 0.
class ThreadPool {
 public:
  // `num_threads` >= 1 counts the calling thread: ThreadPool(1) starts none.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // Calls body(part) once for each part in [0, size()), at the same time, and returns when all have returned. Waiting
  // threads spin for some microseconds, then sleep. `body` must not throw nor start a region.
  void Run(absl::FunctionRef<void(int part)> body);

  // Splits [0, n) into at most size() contiguous ranges whose borders are multiples of `grain` and calls
  // body(begin, end) for each that is not empty. A single range runs on the calling thread without waking another.
  void ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t begin, int64_t end)> body);

 private:
  struct Shared;
  std::unique_ptr<Shared> shared_;
};

class Device;  // device.h

// Where an op runs, its first argument: on the processor, and then the results are there when the op returns; or on the
// device, if there is one, and then they are there when its stream has come to them (device.h).
struct ExecContext {
  ThreadPool* pool = nullptr;
  Device* device = nullptr;
};

}  // namespace palimpsest
