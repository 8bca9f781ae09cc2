// Continuous batching: decides, runs, commits. One thread owns the model, the slots and the batch.
//
// A request's life: kQueued -> kPrefilling -> kDecoding -> kFinished; any of the first three may go to kFinished early
// (cancelled, deadline, drained, non-finite). Only the engine's thread moves it. docs/life_of_a_request.md
//
// How a context grows. Its last token, the pending one, has not been taken in by the model yet. Appending x_1 .. x_n to
// an empty context takes in x_1 .. x_{n-1} in chunks of 64 counted from x_1, and x_n becomes pending. Appending
// y_1 .. y_m to a context with a pending token first takes that in as a step of its own, then y_1 .. y_{m-1} in chunks
// counted from y_1, and y_m becomes pending. Generating takes in the pending token as a step; what is drawn from its
// logits becomes pending. So the bits depend on the calls alone, never on the schedule; twenty tokens in one call are
// the same as ten and ten; and a text may be scored in pieces.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/sampling/sampling.h"
#include "server/engine/waiting_room.h"
#include "server/model/model.h"
#include "server/session/session_store.h"
#include "server/session/state.h"
#include "server/tokenizer/tokenizer.h"

namespace palimpsest {

struct EngineOptions {
  // Threads of the arithmetic, the engine's own included. 0: one per processor.
  int32_t threads = 0;
  // Sequences that run at once. Each costs StateLayout::bytes() from the start on. More raises throughput until the
  // arithmetic is saturated, and with it every caller's time between tokens. 0: on a device, as many as its memory
  // holds (at most 4096); else 64.
  int32_t slots = 64;
  // Of a device's memory, the part that this server may take in all, weights included.
  double device_memory_fraction = 0.9;
  // Requests that wait for a slot before new ones are refused.
  int32_t max_queue = 256;
  // Prompt tokens taken into one iteration beside the decoding sequences, in whole chunks. More shortens the time to
  // the first token under load and lengthens the others' time between tokens. At least one chunk is always taken. While
  // a text is scored, each of these rows costs memory for its logits. 0: 256, or more on a device, whose weights are
  // read once for all of them: 16 for each of its multiprocessors.
  int32_t prefill_budget = 0;
  // Generated tokens that may wait for a slow reader before its sequence is paused.
  int32_t max_undelivered_tokens = 256;
  // How long a sequence may be left out because its reader takes nothing; then its request ends. Infinite: for ever.
  absl::Duration max_stall = absl::Seconds(60);
  // What an owner may use; null: everybody as much as the others. Thread-safe, quick, and never waits for the engine.
  std::function<EngineShare(const std::string& owner)> shares = nullptr;
};

// kContextFull: the model was trained with positions, and they are used up.
enum class EndReason : uint8_t { kLength, kStopToken, kStopString, kContextFull };

struct GeneratedTokenValue {
  int32_t id = 0;
  float logprob = 0.0f;
  std::vector<TokenLogprobValue> top;
};

// What the engine says of a request as it goes. The engine's thread calls these one at a time and must not be held up:
// implementations queue and return. After OnFinish nothing more is called and the sink is let go. On a device, what
// came of a batch is told while the next one runs: who cancels then finds that one more token has been sampled.
class RequestSink {
 public:
  struct Delta {
    std::string text;  // whole characters
    // Generated since the last delta. For kScore: the scored tokens, which are all of the prompt's from `first_scored`
    // on, but the first of an empty context.
    std::vector<GeneratedTokenValue> tokens;
    int64_t position = 0;
  };
  struct Finish {
    // OK: ended for `reason`.  CANCELLED.  DEADLINE_EXCEEDED.  ABORTED: the reader read nothing for
    // EngineOptions::max_stall.  RESOURCE_EXHAUSTED: it waited, and made room for a request of an owner that has less
    // in the queue, or there was no memory for the state that it leaves.  UNAVAILABLE: drained, or the device failed.
    // With these two a session is where it was before the request.  INTERNAL: the sequence's numbers stopped being
    // finite; a session of it is quarantined, and no other sequence notices.
    absl::Status status;
    std::string owner;
    bool device_failed = false;
    EndReason reason = EndReason::kLength;
    std::string stop_string;
    uint64_t seed = 0;
    // Where the context stands now; with a lease, the session's position. A request that ends early leaves it at the
    // last token sampled (Commit::kDelivered: delivered), or as it was if none was: a prompt is appended as a whole or
    // not at all.
    int64_t position = 0;
    // The last token was sampled, and is not part of the context, because it had not been delivered. If OnDelta has
    // told of it, it is not to be sent any more.
    bool taken_back = false;
    int64_t prompt_tokens = 0;
    int64_t generated_tokens = 0;
    int64_t cached_tokens = 0;           // position of the state that it went on from
    absl::Duration queue_time;           // from arrival until it had a slot, or until the end if it never had one
    absl::Duration time_to_first_token;  // zero without a generated token
    absl::Duration total_time;
    StatePtr state;            // if asked for and OK
    std::string state_digest;  // if asked for and OK
  };

  virtual ~RequestSink() = default;
  virtual void OnDelta(Delta delta) = 0;
  virtual void OnFinish(Finish finish) = 0;
  // Tokens given to OnDelta that the reader has not taken yet. Read by the engine's thread, which has to be told of a
  // fall by Engine::Resume if the sequence is left out: at EngineOptions::max_undelivered_tokens, or at the first one
  // with Commit::kDelivered.
  virtual int64_t undelivered_tokens() const = 0;
};

// Text: stop strings are looked for in the reply's text, across token borders; the match and what follows is not sent,
// but the context keeps the tokens. A token that ends the reply counts as generated and is part of the context; its
// text is not sent. Bytes at the end of a reply that begin a character only are held back: a session, or the state that
// was asked for, keeps them for the next reply, which goes on from them unless a prompt comes between; without either
// they come out as U+FFFD.
struct EngineRequest {
  enum class Kind : uint8_t { kGenerate, kScore };
  // Where a context stands when its request ends early. kSampled: at the last token sampled, which the reader may not
  // have got. kDelivered: at the last one that the sink has delivered. No token is sampled while one waits to be, and
  // before each the state is copied, so this costs each token the way to the reader and back to the engine, and a copy
  // of the state's bytes. A reply that ends by itself ends when all of it is delivered.
  enum class Commit : uint8_t { kSampled, kDelivered };

  std::string id;
  std::string owner;  // whose share it uses
  Kind kind = Kind::kGenerate;
  std::vector<int32_t> prompt;
  // Where to go on from; null: an empty state (then the prompt must not be empty unless max_tokens is 0). With a lease
  // it is the lease's state.
  StatePtr initial;
  // kScore: the prompt's tokens before this one are context, for which no logits are computed.
  int64_t first_scored = 0;
  SessionLease lease;  // may be empty. Committed, quarantined or abandoned by the engine before OnFinish.

  SamplingSettings sampling;              // ranges: the caller checked
  int64_t max_tokens = 256;               // 0 only appends; kScore never generates
  std::vector<std::string> stop_strings;  // none empty: the caller checked
  std::vector<int32_t> stop_tokens;
  bool ignore_end_of_text = false;
  bool want_logprobs = false;
  int32_t top_logprobs = 0;
  bool want_state = false;
  bool want_digest = false;
  Commit commit = Commit::kSampled;  // kScore: of no matter
  absl::Time arrival;                // this and the deadline: on the clock of SteadyNow()
  absl::Time deadline = absl::InfiniteFuture();
  std::shared_ptr<RequestSink> sink;
};

// A reference to a request that was taken; the ways to it from other threads.
using RequestId = uint64_t;

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

class Engine {
 public:
  // Allocates the slots, runs one step and one chunk to warm up, and starts the thread. RESOURCE_EXHAUSTED: the slots
  // or batches do not fit the memory that is free (message: bytes of each, bytes free).  INTERNAL: the device failed.
  // INVALID_ARGUMENT: an option is out of range.  DATA_LOSS: the warm-up's logits are not finite, so no request could
  // be served.
  static absl::StatusOr<std::unique_ptr<Engine>> Start(std::shared_ptr<const Model> model,
                                                       std::shared_ptr<const Tokenizer> tokenizer,
                                                       const EngineOptions& options, EngineObserver observer = {});
  // Drains with no grace.
  ~Engine();

  const Model& model() const;
  const Tokenizer& tokenizer() const;
  const EngineOptions& options() const;
  StateFormat state_format() const;

  // Thread-safe. On OK the engine owns the request, `request` is empty and the sink's OnFinish will be called exactly
  // once. On error the request is untouched and still the caller's. RESOURCE_EXHAUSTED: the owner's share is used up,
  // or the queue is full, that is, as many requests are here as there are slots and places in the queue, and no other
  // owner has more in it.  UNAVAILABLE: draining, or the device failed. INVALID_ARGUMENT: a token id of the prompt, the
  // logit bias or the state is outside the vocabulary. FAILED_PRECONDITION: the state is of another model or layout, or
  // there is nothing to continue from, or the context would be longer than the model's positions reach
  // (Model::max_context()).
  absl::StatusOr<RequestId> Submit(EngineRequest& request);
  // Thread-safe. The request ends with CANCELLED soon; unknown or finished ids are ignored.
  void Cancel(RequestId id);
  // Thread-safe. The sink has room again.
  void Resume(RequestId id);

  // Takes no more requests; those running may end until `deadline`, the rest end with UNAVAILABLE, their sessions at
  // the last token sampled. Returns when nothing runs. Thread-safe, idempotent.
  void Drain(absl::Time deadline);

  EngineStats stats() const;
  // Thread-safe. The device will not come back: nothing is taken any more.
  bool device_failed() const;

 private:
  class Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace palimpsest
