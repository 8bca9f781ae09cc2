// What is asked of an engine, and how it answers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/sampling/sampling.h"
#include "server/session/session_store.h"
#include "server/session/state.h"

namespace palimpsest {

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

}  // namespace palimpsest
