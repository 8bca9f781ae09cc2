// One request while the engine has it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/reply_text.h"
#include "server/engine/request.h"
#include "server/engine/scheduler.h"
#include "server/engine/waiting_room.h"
#include "server/model/state_layout.h"
#include "server/session/slot_pool.h"
#include "server/session/state.h"
#include "server/tokenizer/tokenizer.h"

namespace palimpsest {

// How a request ended. kEarly: cancelled, too late, its reader gone still, refused after all, or drained. kNoMemory:
// there was none for the state that it leaves.
enum class Ending : uint8_t { kDone, kEarly, kNotFinite, kDeviceFailed, kNoMemory };

// Why a request is done.
struct Conclusion {
  EndReason reason = EndReason::kLength;
  std::string stop_string = {};
};

// Made by the thread that submits, then the engine thread's alone.
struct Sequence {
  // `end_tokens`: the model's own, which end a reply unless the request ignores them.
  Sequence(RequestId id, EngineRequest request, std::span<const int32_t> end_tokens);

  Scheduler::Job MakeJob() const;
  // Tokens that its reader has not taken yet, those being sampled among them.
  int64_t undelivered() const { return request.sink->undelivered_tokens() + coming_tokens; }
  // Only with Commit::kDelivered: goes back to `before`, as if the last token had not been sampled.
  void TakeBack();
  // The model has taken in all of the prompt but its last token, which is pending now.
  void CompletePrompt();
  bool IsStopToken(int32_t token) const;
  // Makes the text of the last token, if that is left to do, and adds to `delta` what of it can be sent. The index of
  // the stop string that the reply now contains, or -1.
  int32_t ReadToken(const Tokenizer& tokenizer);

  // Whether the context stays as the request made it. One that ends early leaves its prompt behind only if a token was
  // sampled after it.
  bool Keeps(Ending ending) const;
  // Whether the session gets a new state, and whether the caller is told of one.
  bool Commits(Ending ending) const;
  bool HandsOutState(Ending ending) const;
  bool LeavesState(Ending ending) const { return Commits(ending) || HandsOutState(ending); }

  bool scores() const { return request.kind == EngineRequest::Kind::kScore; }
  // Without a session there is nothing to commit.
  bool commits_delivered() const { return request.commit == EngineRequest::Commit::kDelivered && request.lease; }
  bool generates() const { return !scores() && request.max_tokens > 0; }

  RequestId id = 0;
  EngineRequest request;  // `initial` is let go once it is in the slot
  EngineShare share;      // its owner's
  int64_t initial_position = 0;
  int64_t prompt_tokens = 0;
  std::vector<int32_t> stop_tokens;  // ascending

  SequenceHead head;  // without the prompt until it is complete
  ReplyText reply;
  std::optional<int32_t> unread_after;  // the token before the last one, while that one's text is not made
  RequestSink::Delta delta;             // not sent yet
  int64_t generated_tokens = 0;
  int64_t coming_tokens = 0;  // being sampled, or sampled and not sent yet
  int64_t rows_taken = 0;     // that the model has taken in
  // With Commit::kDelivered: the state before the last token's step, and how the request ends once all is delivered.
  std::shared_ptr<State> before;
  std::optional<Conclusion> conclusion;
  bool taken_back = false;                           // the last token is not part of the context and is not told of
  bool made_room = false;                            // refused after it had waited
  absl::Time paused_since = absl::InfiniteFuture();  // its reader has taken nothing since

  SlotHandle slot;  // index -1: it waits
  absl::Time admitted = absl::InfiniteFuture();
  absl::Time first_token = absl::InfiniteFuture();
  absl::Time last_token = absl::InfiniteFuture();
};

// What a slot holds, as a state with this head; into `used`, if there is one, of which nobody else knows. INTERNAL: the
// device that has the slots failed.  RESOURCE_EXHAUSTED: the system has no memory left for it.
absl::StatusOr<std::shared_ptr<State>> CopyState(const StateFormat& format, const SequenceHead& head, SlotPool& slots,
                                                 SlotHandle slot, std::shared_ptr<State> used);
// The same of a new one, whose data has come when `copy` is finished.
absl::StatusOr<std::shared_ptr<State>> BeginCopyState(const StateFormat& format, const SequenceHead& head,
                                                      SlotPool& slots, SlotHandle slot, SlotCopy* copy);

// The end of a sequence whose state is lost, for this reason; and because the device failed.
absl::Status Lost(const Sequence& sequence, const absl::Status& status);
absl::Status LostWithDevice(const Sequence& sequence, const absl::Status& status);

// Whether all numbers of the state, laid out by `layout`, are finite.
bool IsFinite(const StateLayout& layout, const State& state);

}  // namespace palimpsest
