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

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/observer.h"
#include "server/engine/options.h"
#include "server/engine/request.h"
#include "server/model/model.h"
#include "server/session/state.h"
#include "server/tokenizer/tokenizer.h"

namespace palimpsest {

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
