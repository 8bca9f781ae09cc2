// Ends calls whose peers do nothing. A stream that is not read, or an upload that sends nothing, would keep its slot,
// its session or its place for as long as its connection lives, and a connection lives as long as it answers pings.
#pragma once

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

struct grpc_call;

namespace palimpsest {

// Knows the calls that are under way, and since when each waits for its peer. Thread-safe.
class Stalls {
 public:
  // One call's. It may be waited for from any thread, at one place at a time.
  class Watch {
   public:
    // `call` must live as long. Both are registered until the object goes.
    Watch(Stalls& stalls, grpc_call* call);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

    // From now on it is the peer's turn: to read `bytes` that were written, or to send.
    void Begin(int64_t bytes, absl::Time now);
    // `bytes` have come or gone.
    void End(int64_t bytes, absl::Time now);
    // Whether the call was ended for it.
    bool cut() const;

   private:
    friend class Stalls;
    Stalls& stalls_;
    grpc_call* const call_;
    // All of these guarded by stalls_.mu_.
    bool cut_ = false;
    absl::Time since_ = absl::InfiniteFuture();  // infinite: it is not the peer's turn
    absl::Duration allowed_;                     // for what was asked of it last
    absl::Duration waited_;                      // before `since_`, for the last `moved_` bytes
    int64_t moved_ = 0;
  };

  // `most`: how long in all may be waited for a peer before it has sent or read 64 KiB, so that a trickle is a stall,
  // too; for a message of more than a MiB, that long for each. Infinite: no call is ended.
  explicit Stalls(absl::Duration most) : most_(most) {}

  // Cancels calls that have waited for longer, with RESOURCE_EXHAUSTED and a message that says so. Calls back into none
  // of ours while its lock is held. How many there were.
  int32_t Cut(absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);

  // What a call that was cut ends with.
  std::string Reason() const;

 private:
  const absl::Duration most_;
  mutable absl::Mutex mu_;
  absl::flat_hash_set<Watch*> watches_ ABSL_GUARDED_BY(mu_);
};

}  // namespace palimpsest
