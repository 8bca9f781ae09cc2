// Generate, Score, Tokenize, Detokenize.
//
// Threads: gRPC's bring a request and tell of ended writes, the engine's tells of tokens, the delivery thread builds
// messages and starts writes. None waits for another.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "palimpsest/v1/generation.grpc.pb.h"
#include "server/rpc/call.h"
#include "server/rpc/checks.h"
#include "server/rpc/prepare.h"
#include "server/rpc/services.h"
#include "server/rpc/status.h"

namespace palimpsest {
namespace {

v1::FinishReason ReasonOf(EndReason reason) {
  switch (reason) {
    case EndReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case EndReason::kStopToken:
      return v1::FINISH_REASON_STOP_TOKEN;
    case EndReason::kStopString:
      return v1::FINISH_REASON_STOP_STRING;
    case EndReason::kContextFull:
      return v1::FINISH_REASON_CONTEXT_FULL;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

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
int32_t TokenBefore(const EngineRequest& request, int64_t count) {
  if (count > 0) return request.prompt[count - 1];
  return request.initial == nullptr ? Tokenizer::kNoToken : request.initial->head.pending;
}

int64_t CountCharacters(std::string_view bytes) {
  return std::ranges::count_if(bytes, [](char byte) { return (static_cast<uint8_t>(byte) & 0xC0) != 0x80; });
}

void FillUsage(const RequestSink::Finish& finish, v1::Usage* usage) {
  usage->set_prompt_tokens(finish.prompt_tokens);
  usage->set_generated_tokens(finish.generated_tokens);
  usage->set_cached_tokens(finish.cached_tokens);
  usage->set_queue_seconds(absl::ToDoubleSeconds(finish.queue_time));
  usage->set_time_to_first_token_seconds(absl::ToDoubleSeconds(finish.time_to_first_token));
  usage->set_total_seconds(absl::ToDoubleSeconds(finish.total_time));
}

void FillLog(const RequestSink::Finish& finish, CallLog* log) {
  log->prompt_tokens = finish.prompt_tokens;
  log->generated_tokens = finish.generated_tokens;
  log->cached_tokens = finish.cached_tokens;
  log->position = finish.position;
  log->queue_time = finish.queue_time;
  log->time_to_first_token = finish.time_to_first_token;
}

// What the engine says, with the reason by name.
absl::Status EngineError(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return WithReason(status, "QUEUE_FULL");
    case absl::StatusCode::kUnavailable:
      return WithReason(status, "SERVER_DRAINING");
    case absl::StatusCode::kInternal:
      return WithReason(status, "NUMBERS_NOT_FINITE");
    case absl::StatusCode::kFailedPrecondition:
      return WithReason(status, "CONTEXT_FULL");
    default:
      return status;
  }
}

// And what it says at the end of a request, which a full queue is no reason for.
absl::Status FinishError(const absl::Status& status) {
  return absl::IsResourceExhausted(status) ? WithReason(status, "NO_MEMORY") : EngineError(status);
}

// What Generate and Score have in common: the way into the engine, and out of it when the caller goes away. The
// engine's id is known only after Submit, and a cancellation may come before. Thread-safe.
class EngineHandle {
 public:
  // On error `request` is let go, and a session with it. Called once.
  absl::Status Submit(ModelRef model, EngineRequest request) {
    absl::MutexLock lock(&mu_);
    model_ = std::move(model);
    absl::StatusOr<RequestId> id = model_.engine().Submit(request);
    if (!id.ok()) return EngineError(id.status());
    id_ = *id;
    if (cancelled_) model_.engine().Cancel(*id_);
    return absl::OkStatus();
  }
  void Cancel() {
    absl::MutexLock lock(&mu_);
    cancelled_ = true;
    if (id_.has_value()) model_.engine().Cancel(*id_);
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
  absl::Mutex mu_;  // held while the engine's queue is told; taken by its thread never
  ModelRef model_ ABSL_GUARDED_BY(mu_);
  std::optional<RequestId> id_ ABSL_GUARDED_BY(mu_);
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

// One Generate. The engine and the delivery thread hold counted references; its own, `self_`, goes when gRPC is done.
//
// At most one write is out. What the engine tells meanwhile is gathered in `pending_` and leaves as one message; what
// has not left counts as undelivered, and at the engine's bound the sequence is left out of batches until a write ends.
// Response headers leave with the first message: until then a client's library may try again elsewhere by itself.
class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                           public RequestSink,
                           public Deliverable,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  GenerateCall(ServerCore& core, grpc::CallbackServerContext* context, const v1::GenerateRequest& wire)
      : core_(core), call_(core, context, "palimpsest.v1.GenerationService/Generate", wire.request_id()) {}

  // Whatever happens, gRPC calls OnDone later.
  void Start(const v1::GenerateRequest& wire) {
    self_ = shared_from_this();
    absl::Status status = call_.admitted();
    if (status.ok()) status = Submit(wire);
    if (!status.ok()) End(status);
  }

  // The engine's thread.
  void OnDelta(Delta delta) override {
    undelivered_.fetch_add(static_cast<int64_t>(delta.tokens.size()));
    absl::MutexLock lock(&mu_);
    pending_.text += delta.text;
    pending_.tokens.insert(pending_.tokens.end(), std::make_move_iterator(delta.tokens.begin()),
                           std::make_move_iterator(delta.tokens.end()));
    pending_.position = delta.position;
    has_pending_ = true;
    PostIfIdle();
  }
  void OnFinish(RequestSink::Finish finish) override {
    absl::MutexLock lock(&mu_);
    finish_ = std::move(finish);
    PostIfIdle();
  }
  int64_t undelivered_tokens() const override { return undelivered_.load(); }

  // The delivery thread.
  void Deliver() override {
    {
      absl::MutexLock lock(&mu_);
      posted_ = false;
    }
    WriteNext();
  }

  // gRPC's threads.
  void OnWriteDone(bool ok) override {
    int64_t before = 0;
    {
      absl::MutexLock lock(&mu_);
      writing_ = false;
      if (!ok) gone_ = true;
      before = undelivered_.fetch_sub(tokens_in_write_);
    }
    if (!ok) {
      handle_.Cancel();
    } else if (before >= resume_from_) {
      handle_.Resume();
    }
    WriteNext();
  }
  void OnCancel() override {
    {
      absl::MutexLock lock(&mu_);
      gone_ = true;
    }
    handle_.Cancel();
  }
  void OnDone() override {
    handle_.Release();
    absl::Status status;
    {
      absl::MutexLock lock(&mu_);
      if (finish_.has_value()) FillLog(*finish_, &call_.log);
      status = status_;
    }
    call_.End(status);
    self_.reset();
  }

 private:
  using Reactor = grpc::ServerWriteReactor<v1::GenerateResponse>;

  absl::Status Submit(const v1::GenerateRequest& wire) {
    ModelRef model;
    EngineRequest request;
    if (absl::Status status = Prepare(core_, wire, call_, &model, &request); !status.ok()) return status;
    tokenizer_ = model.shared_tokenizer();
    previous_ = TokenBefore(request, std::ssize(request.prompt));
    want_logprobs_ = request.want_logprobs;
    resume_from_ = model.engine().options().max_undelivered_tokens / 2;
    request.sink = shared_from_this();
    return handle_.Submit(std::move(model), std::move(request));
  }

  void End(const absl::Status& status) {
    {
      absl::MutexLock lock(&mu_);
      ended_ = true;
      status_ = status;
    }
    Reactor::Finish(ToGrpc(status));
  }

  void PostIfIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || posted_) return;  // whoever ends that looks for more
    posted_ = true;
    core_.delivery.Post(shared_from_this());
  }

  // Starts the next write, or the end, if it is time for one.
  void WriteNext() {
    Delta delta;
    std::optional<RequestSink::Finish> last;
    absl::Status failure;
    {
      absl::MutexLock lock(&mu_);
      if (writing_ || ended_) return;
      if (gone_) has_pending_ = false;  // nobody to tell
      if (!has_pending_ && !finish_.has_value()) return;
      const bool well = finish_.has_value() && finish_->status.ok() && !gone_;
      if (has_pending_ || well) {
        // From here on `message_` is this thread's alone, until OnWriteDone.
        writing_ = true;
        delta = std::exchange(pending_, {});
        has_pending_ = false;
        tokens_in_write_ = static_cast<int64_t>(delta.tokens.size());
        if (well) {
          last = *finish_;
          finish_->state.reset();
          ended_ = true;
        }
      } else {
        failure = finish_->status.ok() ? absl::CancelledError("the caller has gone") : FinishError(finish_->status);
        ended_ = true;  // here, under the lock: two threads may come this far, and gRPC is told once
      }
    }
    if (!failure.ok()) return End(failure);
    message_.Clear();
    FillMessage(delta);
    if (!last.has_value()) return StartWrite(&message_);
    if (absl::Status status = FillFinish(*last); !status.ok()) return End(status);
    StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
  }

  void FillMessage(const Delta& delta) {
    message_.set_text(delta.text);
    message_.set_position(delta.position);
    for (const GeneratedTokenValue& token : delta.tokens) {
      v1::GeneratedToken* made = message_.add_tokens();
      made->set_id(token.id);
      if (want_logprobs_) made->set_logprob(token.logprob);
      AddAlternatives(token.top, *tokenizer_, previous_, made->mutable_top());
      previous_ = token.id;
    }
  }

  // RESOURCE_EXHAUSTED: no memory for the state that was asked for.
  absl::Status FillFinish(const RequestSink::Finish& finish) {
    message_.set_position(finish.position);
    v1::GenerateFinish* made = message_.mutable_finish();
    made->set_reason(ReasonOf(finish.reason));
    made->set_stop_string(finish.stop_string);
    FillUsage(finish, made->mutable_usage());
    made->set_seed(finish.seed);
    made->set_state_digest(finish.state_digest);
    if (finish.state == nullptr) return absl::OkStatus();
    absl::StatusOr<std::string> state = SerializeSnapshot(*finish.state);
    if (!state.ok()) return WithReason(state.status(), "NO_MEMORY");
    made->set_state(*std::move(state));
    return absl::OkStatus();
  }

  ServerCore& core_;
  Call call_;
  EngineHandle handle_;
  std::shared_ptr<const Tokenizer> tokenizer_;  // these three: constant after Submit
  bool want_logprobs_ = false;
  int64_t resume_from_ = 0;
  std::atomic<int64_t> undelivered_{0};     // read by the engine's thread without mu_; it hears of a fall by Resume
  v1::GenerateResponse message_;            // these two: of whoever set `writing_`
  int32_t previous_ = Tokenizer::kNoToken;  // the last token told of

  absl::Mutex mu_;  // never held while gRPC or the engine is called
  Delta pending_ ABSL_GUARDED_BY(mu_);
  bool has_pending_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<RequestSink::Finish> finish_ ABSL_GUARDED_BY(mu_);
  int64_t tokens_in_write_ ABSL_GUARDED_BY(mu_) = 0;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;  // a write is out or being made
  bool posted_ ABSL_GUARDED_BY(mu_) = false;   // the delivery thread will come
  bool gone_ ABSL_GUARDED_BY(mu_) = false;     // the caller reads no more
  bool ended_ ABSL_GUARDED_BY(mu_) = false;    // gRPC has been told the end
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<GenerateCall> self_;
};

// One Score. It gathers what the engine tells and answers at the end; the number of tokens was bounded before.
class ScoreCall final : public grpc::ServerUnaryReactor,
                        public RequestSink,
                        public Deliverable,
                        public std::enable_shared_from_this<ScoreCall> {
 public:
  ScoreCall(ServerCore& core, grpc::CallbackServerContext* context, const v1::ScoreRequest& wire,
            v1::ScoreResponse* response)
      : core_(core),
        call_(core, context, "palimpsest.v1.GenerationService/Score", wire.request_id()),
        return_tokens_(wire.return_tokens() || wire.top_logprobs() > 0),
        response_(response) {}

  void Start(const v1::ScoreRequest& wire) {
    self_ = shared_from_this();
    absl::Status status = call_.admitted();
    if (status.ok()) status = Submit(wire);
    if (!status.ok()) End(status);
  }

  // The engine's thread.
  void OnDelta(Delta delta) override {
    absl::MutexLock lock(&mu_);
    for (GeneratedTokenValue& token : delta.tokens) {
      const std::string_view bytes = tokenizer_->Bytes(token.id, previous_);
      previous_ = token.id;
      total_logprob_ += token.logprob;
      scored_bytes_ += static_cast<int64_t>(bytes.size());
      scored_characters_ += CountCharacters(bytes);
      ++scored_tokens_;
      if (return_tokens_) tokens_.push_back(std::move(token));
    }
  }
  void OnFinish(RequestSink::Finish finish) override {
    absl::MutexLock lock(&mu_);
    finish_ = std::move(finish);
    core_.delivery.Post(shared_from_this());
  }
  // Nothing is delivered before the end, and all of it is bounded.
  int64_t undelivered_tokens() const override { return 0; }

  // The delivery thread, once.
  void Deliver() override {
    absl::Status status;
    {
      absl::MutexLock lock(&mu_);
      status = FinishError(finish_->status);
      if (status.ok()) status = FillResponse();
    }
    End(status);
  }

  // gRPC's threads.
  void OnCancel() override { handle_.Cancel(); }
  void OnDone() override {
    handle_.Release();
    absl::Status status;
    {
      absl::MutexLock lock(&mu_);
      if (finish_.has_value()) FillLog(*finish_, &call_.log);
      status = status_;
    }
    call_.End(status);
    self_.reset();
  }

 private:
  absl::Status Submit(const v1::ScoreRequest& wire) {
    ModelRef model;
    EngineRequest request;
    absl::Status status = Prepare(core_, wire, call_, &model, &request, &unknown_tokens_);
    if (!status.ok()) return status;
    tokenizer_ = model.shared_tokenizer();
    int64_t first_scored = request.first_scored;
    if (request.initial == nullptr && first_scored == 0 && !request.prompt.empty()) {
      unpredicted_ = request.prompt[first_scored++];
    }
    before_scored_ = TokenBefore(request, first_scored);
    {
      absl::MutexLock lock(&mu_);
      previous_ = before_scored_;
    }
    request.sink = shared_from_this();
    return handle_.Submit(std::move(model), std::move(request));
  }

  void End(const absl::Status& status) {
    {
      absl::MutexLock lock(&mu_);
      status_ = status;
    }
    grpc::ServerUnaryReactor::Finish(ToGrpc(status));
  }

  absl::Status FillResponse() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    response_->set_total_logprob(total_logprob_);
    response_->set_scored_tokens(scored_tokens_);
    response_->set_scored_bytes(scored_bytes_);
    response_->set_scored_characters(scored_characters_);
    response_->set_unknown_tokens(unknown_tokens_);
    if (return_tokens_ && unpredicted_ >= 0) {
      v1::ScoredToken* made = response_->add_tokens();
      made->set_id(unpredicted_);
      made->set_token(std::string(tokenizer_->Bytes(unpredicted_, Tokenizer::kNoToken)));
    }
    int32_t previous = before_scored_;
    for (const GeneratedTokenValue& token : tokens_) {
      v1::ScoredToken* made = response_->add_tokens();
      made->set_id(token.id);
      made->set_token(std::string(tokenizer_->Bytes(token.id, previous)));
      made->set_logprob(token.logprob);
      AddAlternatives(token.top, *tokenizer_, previous, made->mutable_top());
      previous = token.id;
    }
    response_->set_position(finish_->position);
    FillUsage(*finish_, response_->mutable_usage());
    response_->set_state_digest(finish_->state_digest);
    if (finish_->state == nullptr) return absl::OkStatus();
    absl::StatusOr<std::string> state = SerializeSnapshot(*finish_->state);
    if (!state.ok()) return WithReason(state.status(), "NO_MEMORY");
    response_->set_state(*std::move(state));
    return absl::OkStatus();
  }

  ServerCore& core_;
  Call call_;
  EngineHandle handle_;
  const bool return_tokens_;
  v1::ScoreResponse* const response_;           // gRPC's, until OnDone
  std::shared_ptr<const Tokenizer> tokenizer_;  // these four: constant after Submit
  int64_t unknown_tokens_ = 0;
  int32_t unpredicted_ = -1;  // first token of an empty context, if it is to be told: nothing predicts it
  int32_t before_scored_ = Tokenizer::kNoToken;  // the token before those that are scored

  absl::Mutex mu_;  // never held while gRPC or the engine is called
  double total_logprob_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t scored_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t scored_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t scored_characters_ ABSL_GUARDED_BY(mu_) = 0;
  int32_t previous_ ABSL_GUARDED_BY(mu_) = Tokenizer::kNoToken;  // the last token scored
  std::vector<GeneratedTokenValue> tokens_ ABSL_GUARDED_BY(mu_);
  std::optional<RequestSink::Finish> finish_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<ScoreCall> self_;
};

class GenerationServiceImpl final : public v1::GenerationService::CallbackService {
 public:
  explicit GenerationServiceImpl(ServerCore& core) : core_(core) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest* request) override {
    auto call = std::make_shared<GenerateCall>(core_, context, *request);
    call->Start(*request);
    return call.get();  // it holds itself until OnDone, which comes after this returns
  }

  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override {
    auto call = std::make_shared<ScoreCall>(core_, context, *request, response);
    call->Start(*request);
    return call.get();
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return RunUnary(core_, context, "palimpsest.v1.GenerationService/Tokenize", [&](CallLog& log) -> absl::Status {
      absl::StatusOr<ModelRef> model = FindModel(request->model(), log);
      if (!model.ok()) return model.status();
      if (absl::Status status = CheckPromptBytes("text", request->text().size(), core_.limits); !status.ok()) {
        return status;
      }
      const Tokenizer& tokenizer = model->tokenizer();
      int64_t unknown = 0;
      const std::vector<int32_t> ids = tokenizer.Encode(request->text(), /*first=*/!request->continues(), &unknown);
      response->mutable_ids()->Add(ids.begin(), ids.end());
      int32_t previous = request->continues() ? Tokenizer::kSomeToken : Tokenizer::kNoToken;
      for (const int32_t id : ids) {
        response->add_tokens(std::string(tokenizer.Bytes(id, previous)));
        previous = id;
      }
      response->set_unknown_tokens(unknown);
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return RunUnary(core_, context, "palimpsest.v1.GenerationService/Detokenize", [&](CallLog& log) -> absl::Status {
      absl::StatusOr<ModelRef> model = FindModel(request->model(), log);
      if (!model.ok()) return model.status();
      if (absl::Status status = CheckPromptTokens("ids", request->ids_size(), core_.limits); !status.ok()) {
        return status;
      }
      Violations violations;
      CheckIds("ids", request->ids(), model->vocabulary(), violations);
      if (!violations.empty()) return violations.ToStatus();
      const std::vector<int32_t> ids(request->ids().begin(), request->ids().end());
      response->set_text(model->tokenizer().Decode(ids));
      return absl::OkStatus();
    });
  }

 private:
  absl::StatusOr<ModelRef> FindModel(const std::string& name, CallLog& log) {
    Violations violations;
    std::string id;
    CheckOptionalName("model", "models", name, &id, violations);
    if (!violations.empty()) return violations.ToStatus();
    absl::StatusOr<ModelRef> model = id.empty() ? core_.models.FindOnly() : core_.models.Find(id);
    if (model.ok()) log.model = model->id();
    return model;
  }

  ServerCore& core_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeGenerationService(ServerCore& core) {
  return std::make_unique<GenerationServiceImpl>(core);
}

}  // namespace palimpsest
