// One request while the engine has it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "server/engine/reply_text.h"
#include "server/engine/scheduler.h"
#include "server/model/state_layout.h"
#include "server/session/slot_pool.h"
#include "server/session/state.h"

namespace palimpsest {

// Made by the thread that submits, then the engine thread's alone.
struct Sequence {
  // `end_tokens`: the model's own, which end a reply unless the request ignores them.
  Sequence(RequestId id, EngineRequest request, std::span<const int32_t> end_tokens);

  Scheduler::Job MakeJob() const;
  // The model has taken in all of the prompt but its last token, which is pending now.
  void CompletePrompt();
  bool IsStopToken(int32_t token) const;
  bool scores() const { return request.kind == EngineRequest::Kind::kScore; }
  bool generates() const { return !scores() && request.max_tokens > 0; }

  RequestId id = 0;
  EngineRequest request;  // `initial` is let go once it is in the slot
  int64_t initial_position = 0;
  int64_t prompt_tokens = 0;
  std::vector<int32_t> stop_tokens;  // ascending

  SequenceHead head;  // without the prompt until it is complete
  ReplyText reply;
  int64_t generated_tokens = 0;
  int64_t unsent_tokens = 0;  // of deltas that the sink has not been told yet
  int64_t rows_taken = 0;     // that the model has taken in

  int32_t lane = -1;  // -1: waits
  SlotHandle slot;
  absl::Time admitted = absl::InfiniteFuture();
  absl::Time first_token = absl::InfiniteFuture();
  absl::Time last_token = absl::InfiniteFuture();
};

// The state that the slot, laid out by `layout`, and `head` make; null if some number in it is not finite. INTERNAL:
// the device that has the slots failed.
absl::StatusOr<StatePtr> MakeState(const StateFormat& format, const StateLayout& layout, const SequenceHead& head,
                                   SlotPool& slots, SlotHandle slot);

}  // namespace palimpsest
