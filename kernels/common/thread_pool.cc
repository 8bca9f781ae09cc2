#include "kernels/common/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/check.h"
#include "kernels/common/simd.h"

namespace palimpsest {
namespace {

// Regions of a token follow each other within microseconds, so a short spin saves the wake-up. No longer: the machine
// may have more runnable threads than cores, and a spinning thread then keeps the one it waits for from running.
constexpr auto kSpin = std::chrono::microseconds(20);

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Returns when `value` is no longer `old`.
int WaitForChange(const std::atomic<int>& value, int old) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      const int now = value.load(std::memory_order_acquire);
      if (now != old) return now;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  for (;;) {
    value.wait(old, std::memory_order_acquire);
    const int now = value.load(std::memory_order_acquire);
    if (now != old) return now;
  }
}

}  // namespace

struct ThreadPool::Shared {
  // Written by the calling thread before `epoch` moves, read by the others after they see it move.
  const absl::FunctionRef<void(int)>* body = nullptr;
  bool stop = false;

  alignas(64) std::atomic<int> epoch{0};    // one more per region
  alignas(64) std::atomic<int> running{0};  // threads other than the caller still in the region

  std::vector<std::thread> threads;

  void Work(int part) {
    int seen = 0;
    for (;;) {
      seen = WaitForChange(epoch, seen);
      if (stop) return;
      (*body)(part);
      if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) running.notify_one();
    }
  }

  void StartRegion() {
    running.store(static_cast<int>(threads.size()), std::memory_order_relaxed);
    epoch.fetch_add(1, std::memory_order_release);
    epoch.notify_all();
  }
};

ThreadPool::ThreadPool(int num_threads) : shared_(std::make_unique<Shared>()) {
  PALIMPSEST_CHECK(num_threads >= 1);
  UseSimdTargetFromEnvironment();
  for (int part = 1; part < num_threads; ++part) {
    shared_->threads.emplace_back([shared = shared_.get(), part] { shared->Work(part); });
  }
}

ThreadPool::~ThreadPool() {
  shared_->stop = true;
  shared_->StartRegion();
  for (std::thread& thread : shared_->threads) thread.join();
}

int ThreadPool::size() const { return static_cast<int>(shared_->threads.size()) + 1; }

void ThreadPool::Run(absl::FunctionRef<void(int part)> body) {
  if (shared_->threads.empty()) return body(0);
  shared_->body = &body;
  shared_->StartRegion();
  body(0);
  for (int running = shared_->running.load(std::memory_order_acquire); running != 0;) {
    running = WaitForChange(shared_->running, running);
  }
}

void ThreadPool::ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  PALIMPSEST_CHECK(grain >= 1);
  if (n <= 0) return;
  const int64_t grains = (n + grain - 1) / grain;
  const int64_t parts = std::min<int64_t>(grains, size());
  if (parts == 1) return body(0, n);
  Run([&](int part) {
    if (part >= parts) return;
    const int64_t begin = grains * part / parts * grain;
    const int64_t end = std::min(n, grains * (part + 1) / parts * grain);
    if (begin < end) body(begin, end);
  });
}

}  // namespace palimpsest
