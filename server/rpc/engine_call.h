// What Generate and Score have in common: their way into the engine and out of it, and what they tell of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "palimpsest/v1/generation.pb.h"
#include "server/engine/engine.h"
#include "server/models/registry.h"
#include "server/rpc/log.h"
#include "server/tokenizer/tokenizer.h"

namespace palimpsest {

v1::FinishReason ReasonOf(EndReason reason);

// `previous`: the token before the place that these are alternatives for.
template <class Alternatives>
void AddAlternatives(const std::vector<TokenLogprobValue>& top, const Tokenizer& tokenizer, int32_t previous,
                     Alternatives* alternatives) {
  for (const TokenLogprobValue& value : top) {
    v1::TokenLogprob* made = alternatives->Add();
    made->set_id(value.id);
    made->set_token(std::string(tokenizer.Bytes(value.id, previous)));
    made->set_logprob(value.logprob);
  }
}

// The last of the context and of the prompt's first `count` tokens.
int32_t TokenBefore(const EngineRequest& request, int64_t count);

void FillUsage(const RequestSink::Finish& finish, v1::Usage* usage);
void FillLog(const RequestSink::Finish& finish, CallLog* log);

// What the engine says, with the reason by name.
absl::Status EngineError(const absl::Status& status);
// And what it says at the end of a request, which a full queue is no reason for.
absl::Status FinishError(const absl::Status& status);
// Sets the field of an answer, if there is a state. RESOURCE_EXHAUSTED: there is no memory for it.
absl::Status FillState(const StatePtr& state, std::string* field);

// Bytes that a request keeps besides the tokens of its answer and their alternatives: its prompt, what gRPC buffers of
// a stream, and the state that it ends with.
int64_t ReplyBytes(const EngineRequest& request, const ModelRef& model);
// The same of `tokens` tokens.
int64_t TokenBytes(int64_t tokens, int32_t top_logprobs);

// The way into the engine, and out of it when the caller goes away. The engine's id is known only after Submit, and a
// cancellation may come before. Thread-safe.
class EngineHandle {
 public:
  // `sessions` has the request's lease, if there is one, and must outlive this. On error `request` is let go, and a
  // session with it. Called once.
  absl::Status Submit(SessionStore& sessions, ModelRef model, EngineRequest request) {
    absl::MutexLock lock(&mu_);
    model_ = std::move(model);
    sessions_ = &sessions;
    if (request.lease) lease_ = request.lease.serial();
    absl::StatusOr<RequestId> id = model_.engine().Submit(request);
    if (!id.ok()) return EngineError(id.status());
    id_ = *id;
    if (cancelled_) CancelLocked();
    return absl::OkStatus();
  }
  // The session's next caller waits for what is on its way out.
  void Cancel() {
    absl::MutexLock lock(&mu_);
    cancelled_ = true;
    if (id_.has_value()) CancelLocked();
  }
  // Of the session that the request holds; 0: of none.
  uint64_t lease() const {
    absl::MutexLock lock(&mu_);
    return lease_;
  }
  void Resume() {
    absl::MutexLock lock(&mu_);
    if (id_.has_value()) model_.engine().Resume(*id_);
  }
  // Drops the reference to the model. The engine's copy of a sink may outlive the call by a moment; the reference,
  // which unloading waits for, must not.
  void Release() {
    absl::MutexLock lock(&mu_);
    id_.reset();
    model_ = ModelRef();
  }

 private:
  void CancelLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    model_.engine().Cancel(*id_);
    if (lease_ != 0) sessions_->SetEnding(lease_);
  }

  mutable absl::Mutex mu_;  // held while the engine's queue and the store are told; taken by the engine's thread never
  SessionStore* sessions_ ABSL_GUARDED_BY(mu_) = nullptr;
  uint64_t lease_ ABSL_GUARDED_BY(mu_) = 0;
  ModelRef model_ ABSL_GUARDED_BY(mu_);
  std::optional<RequestId> id_ ABSL_GUARDED_BY(mu_);
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace palimpsest
