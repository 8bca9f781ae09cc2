// Waiting under an absl::Mutex on a clock that never jumps. absl's own waits end by the wall clock: when it is set back
// by an hour, a wait of a second takes an hour.
#pragma once

#include <algorithm>
#include <condition_variable>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/steady_clock.h"

namespace palimpsest {

// Thread-safe.
class Bell {
 public:
  // Called with `mu` held, after what the waiting thread looks for has changed.
  void Ring() { changed_.notify_one(); }

  // Called with `mu` held, which is let go meanwhile: returns when `is_so()` or at `until`, a time of SteadyNow(). What
  // `is_so` needs held is `mu` under another name, which the analysis does not know.
  template <typename Condition>
  void Wait(absl::Mutex& mu, absl::Time until, Condition is_so)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    constexpr absl::Duration kAtOnce = absl::Hours(1);
    Lockable lockable{mu};
    while (!is_so()) {
      const absl::Duration left = std::min(until - SteadyNow(), kAtOnce);
      if (left <= absl::ZeroDuration()) return;
      changed_.wait_for(lockable, absl::ToChronoNanoseconds(left));
    }
  }

 private:
  // A mutex as the standard library wants it.
  struct Lockable {
    absl::Mutex& mu;
    void lock() ABSL_NO_THREAD_SAFETY_ANALYSIS { mu.Lock(); }
    void unlock() ABSL_NO_THREAD_SAFETY_ANALYSIS { mu.Unlock(); }
  };

  std::condition_variable_any changed_;
};

}  // namespace palimpsest
