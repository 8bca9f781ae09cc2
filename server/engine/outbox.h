// What callers and observers have yet to hear. Noting is quick and is done between two batches; telling is not (text,
// metrics, sessions, sinks), and is done while a device is at work on the next one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "kernels/sampling/sampling.h"
#include "server/engine/observer.h"
#include "server/engine/request.h"
#include "server/engine/sequence.h"
#include "server/model/state_layout.h"
#include "server/session/slot_pool.h"
#include "server/session/state.h"
#include "server/tokenizer/tokenizer.h"

namespace palimpsest {

// The engine thread's alone. What one batch leaves is told before the next one's answers are noted.
class Outbox {
 public:
  // A request that is over. It has left its slot.
  struct Ended {
    std::unique_ptr<Sequence> sequence;
    Ending ending = Ending::kDone;
    RequestSink::Finish finish;  // but for what its state decides
    // If it LeavesState: what was in the slot, its numbers not checked, without its head; there once `copy` is
    // finished.
    std::shared_ptr<State> state;
    SlotCopy copy;
  };

  // All must live as long.
  Outbox(const Tokenizer& tokenizer, const StateLayout& layout, const EngineObserver& observer)
      : tokenizer_(tokenizer), layout_(layout), observer_(observer) {}

  void AddIteration(int32_t rows, int32_t sequences, absl::Duration time);
  void AddQueued(absl::Duration time) { queued_.push_back(time); }
  // The token that the sequence's context now ends with. `time`: since the one before, or since arrival.
  void AddToken(Sequence& sequence, SampleRow& answer, absl::Duration time);
  // `position`: after the last scored token.
  void AddScores(Sequence& sequence, std::span<SampleRow> answers, int64_t position);
  void AddEnd(Ended ended) { ended_.push_back(std::move(ended)); }

  // In this order. All deltas, and what observers are told beside them.
  void SendDeltas();
  // Waits for the states of those that ended. INTERNAL: the device failed, and with it those whose states had not come.
  absl::Status AwaitStates();
  // Ends leases and makes the states that were asked for. Counts what came to nothing.
  void Settle(EngineStats& counted, absl::Time now);
  // Says that requests have ended, and lets them go.
  void SendFinishes();
  const std::vector<Ended>& all_ended() const { return ended_; }
  int32_t ended() const { return static_cast<int32_t>(ended_.size()); }

 private:
  struct Iteration {
    int32_t rows = 0;
    int32_t sequences = 0;
    absl::Duration time;
  };
  struct News {
    Sequence* sequence = nullptr;
    std::optional<absl::Duration> token_time = std::nullopt;
  };

  void AddTail(Ended& ended);
  void Settle(Ended& ended, EngineStats& counted, absl::Time now);

  const Tokenizer& tokenizer_;
  const StateLayout& layout_;
  const EngineObserver& observer_;

  std::optional<Iteration> iteration_;
  std::vector<absl::Duration> queued_;
  std::vector<News> news_;  // whose `delta` is to be sent
  std::vector<Ended> ended_;
};

}  // namespace palimpsest
