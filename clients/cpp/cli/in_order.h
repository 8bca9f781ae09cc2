// Independent work on several threads, its results in order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace palimpsest::cli {

// Calls make(0) .. make(count - 1) on up to `threads` threads, and use(result) for each in that order, on the calling
// thread. The first error, in that order, of either is returned; then nothing more is begun, and what was is waited
// for. At most 4 * `threads` results are made or waiting at a time.
template <class T>
absl::Status InOrder(int64_t count, int threads, const std::function<absl::StatusOr<T>(int64_t)>& make,
                     const std::function<absl::Status(const T&)>& use) {
  struct Shared {
    absl::Mutex mu;  // never held while `make` or `use` is called
    int64_t begun ABSL_GUARDED_BY(mu) = 0;
    int64_t used ABSL_GUARDED_BY(mu) = 0;
    bool stopped ABSL_GUARDED_BY(mu) = false;
    std::map<int64_t, absl::StatusOr<T>> made ABSL_GUARDED_BY(mu);
  };
  Shared shared;
  const auto work = [&] {
    const auto may_go_on = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared.mu) {
      return shared.stopped || shared.begun == count || shared.begun < shared.used + int64_t{4} * threads;
    };
    while (true) {
      int64_t index = 0;
      {
        absl::MutexLock lock(&shared.mu);
        shared.mu.Await(absl::Condition(&may_go_on));
        if (shared.stopped || shared.begun == count) return;
        index = shared.begun++;
      }
      absl::StatusOr<T> result = make(index);
      absl::MutexLock lock(&shared.mu);
      shared.made.emplace(index, std::move(result));
    }
  };
  std::vector<std::thread> workers;
  for (int64_t i = 0; i < std::min<int64_t>(threads, count); ++i) workers.emplace_back(work);

  absl::Status status;
  for (int64_t index = 0; index < count && status.ok(); ++index) {
    absl::StatusOr<T> result = absl::UnknownError("");
    {
      absl::MutexLock lock(&shared.mu);
      const auto is_made = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared.mu) { return shared.made.contains(index); };
      shared.mu.Await(absl::Condition(&is_made));
      result = std::move(shared.made.extract(index).mapped());
      shared.used = index + 1;
    }
    status = result.ok() ? use(*result) : result.status();
  }
  {
    absl::MutexLock lock(&shared.mu);
    shared.stopped = true;
  }
  for (std::thread& worker : workers) worker.join();
  return status;
}

}  // namespace palimpsest::cli
