// What an engine counts, and what it says of its work while it goes on. Metrics are made of both.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/engine/request.h"

namespace palimpsest {

// What has happened so far; read by metrics at any time, monotonic counters and present values.
struct EngineStats {
  int32_t slots = 0;
  int32_t slots_used = 0;
  int32_t running = 0;
  int32_t waiting = 0;
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t cached_tokens = 0;
  // Tokens that were processed in vain: their requests ended before a token was sampled, or their numbers stopped being
  // finite, so that who asks again has them processed again. Going on from a state never does.
  int64_t wasted_tokens = 0;
  int64_t quarantined = 0;
  int64_t iterations = 0;
  // On a device: forward passes run from a recording, and launched op by op.
  int64_t recorded_passes = 0;
  int64_t direct_passes = 0;
  absl::Duration device_wait;  // what the engine's thread has waited for the device
  int64_t device_total_bytes = 0;
  int64_t device_free_bytes = 0;  // that nobody has, in this process or another
  int32_t paused = 0;             // of `running`: left out of batches until their readers have caught up
  int32_t max_queue = 0;          // EngineOptions
  // Arrival of the request that has waited longest, on the clock of SteadyNow().
  absl::Time oldest_waiting = absl::InfiniteFuture();
  // Of those that have requests here.
  struct Owner {
    std::string name;
    int32_t waiting = 0;
    int32_t running = 0;
  };
  std::vector<Owner> owners;
  // The minimum work of the iterations (Model::Work).
  int64_t minimum_bytes = 0;
  int64_t minimum_flops = 0;
};

// Told of each iteration and of each request as it goes; called on the engine's thread, as sinks are, and must return
// quickly.
struct EngineObserver {
  std::function<void(int32_t rows, int32_t sequences, absl::Duration time)> on_iteration;
  std::function<void(absl::Duration)> on_queued;  // from arrival until it had a slot, or its end if it never had one
  std::function<void(absl::Duration)> on_first_token;  // since arrival
  std::function<void(const RequestSink::Finish&)> on_finish;
  std::function<void(absl::Duration)> on_token;  // time since the sequence's token before
};

}  // namespace palimpsest
