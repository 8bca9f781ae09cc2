// Score. It is told of by gRPC's threads and the engine's, and answered on the delivery thread.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/status_macros.h"
#include "palimpsest/v1/generation.pb.h"
#include "server/rpc/call.h"
#include "server/rpc/engine_call.h"
#include "server/rpc/generation_calls.h"
#include "server/rpc/prepare.h"
#include "server/rpc/status.h"
#include "server/rpc/wire.h"

namespace palimpsest {
namespace {

int64_t CountCharacters(std::string_view bytes) {
  return std::ranges::count_if(bytes, [](char byte) { return (static_cast<uint8_t>(byte) & 0xC0) != 0x80; });
}

// One Score. It gathers what the engine tells and answers at the end; the number of tokens was bounded before.
class ScoreCall final : public grpc::ServerUnaryReactor,
                        public RequestSink,
                        public Deliverable,
                        public std::enable_shared_from_this<ScoreCall> {
 public:
  ScoreCall(ServerCore& core, grpc::CallbackServerContext* context, grpc::ByteBuffer* answer)
      : core_(core), call_(core, context, methods::kScore), answer_(answer) {}

  void Start(const grpc::ByteBuffer* bytes) {
    self_ = shared_from_this();
    absl::Status status = call_.admitted();
    if (status.ok()) status = CheckMessageSize(*bytes, call_.limits());
    if (status.ok()) {
      status = core_.RunBySize(call_.log.peer, bytes->Length(), [self = self_, bytes] { self->Try(*bytes); });
    }
    if (status.ok()) return;
    call_.SetId("");
    End(status);
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
      if (status.ok()) status = Guarded([this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return MakeAnswer(); });
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
  // Once the engine has the request, gRPC may be done with the call at any moment, and `self_` is gone: who calls this
  // holds a reference.
  void Try(const grpc::ByteBuffer& bytes) {
    const absl::Status submitted = Guarded([&] { return Submit(bytes); });
    if (submitted.ok()) return;
    const bool again = call_.AwaitSession(submitted, [self = shared_from_this(), &bytes](absl::Status waited) {
      waited.ok() ? self->Try(bytes) : self->End(waited);
    });
    if (!again) End(submitted);
  }

  absl::Status Submit(const grpc::ByteBuffer& bytes) {
    v1::ScoreRequest wire;
    absl::Status status = ReadMessage(bytes, call_.limits(), &wire);
    call_.SetId(wire.call_id());
    ModelRef model;
    EngineRequest request;
    if (status.ok()) status = Prepare(core_, wire, call_, &model, &request, &unknown_tokens_);
    call_.NoteRead();
    if (!status.ok()) return status;
    return_tokens_ = wire.return_tokens() || wire.top_logprobs() > 0;
    const int64_t told = return_tokens_ ? std::ssize(request.prompt) - request.first_scored : 0;
    status = call_.HoldReply(ReplyBytes(request, model) + TokenBytes(told, request.top_logprobs));
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
    const absl::Status submitted = handle_.Submit(core_.sessions, std::move(model), std::move(request));
    if (submitted.ok() && handle_.lease() != 0) {
      // Its owner may break it off from another call. What cancels must not keep this object, nor need it.
      core_.sessions.SetBreak(handle_.lease(), [weak = weak_from_this()] {
        if (const std::shared_ptr<ScoreCall> call = weak.lock()) call->OnCancel();
      });
    }
    return submitted;
  }

  void End(const absl::Status& status) {
    {
      absl::MutexLock lock(&mu_);
      status_ = status;
    }
    call_.BeginWait(static_cast<int64_t>(answer_->Length()));
    grpc::ServerUnaryReactor::Finish(ToGrpc(status));
  }

  absl::Status MakeAnswer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    v1::ScoreResponse response;
    PALIMPSEST_RETURN_IF_ERROR(FillResponse(&response));
    return WriteMessage(response, answer_);
  }

  absl::Status FillResponse(v1::ScoreResponse* response) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    response->set_total_logprob(total_logprob_);
    response->set_scored_tokens(scored_tokens_);
    response->set_scored_bytes(scored_bytes_);
    response->set_scored_characters(scored_characters_);
    response->set_unknown_tokens(unknown_tokens_);
    if (return_tokens_ && unpredicted_ >= 0) {
      v1::ScoredToken* made = response->add_tokens();
      made->set_id(unpredicted_);
      made->set_token(std::string(tokenizer_->Bytes(unpredicted_, Tokenizer::kNoToken)));
    }
    int32_t previous = before_scored_;
    for (const GeneratedTokenValue& token : tokens_) {
      v1::ScoredToken* made = response->add_tokens();
      made->set_id(token.id);
      made->set_token(std::string(tokenizer_->Bytes(token.id, previous)));
      made->set_logprob(token.logprob);
      AddAlternatives(token.top, *tokenizer_, previous, made->mutable_top());
      previous = token.id;
    }
    response->set_position(finish_->position);
    FillUsage(*finish_, response->mutable_usage());
    response->set_state_digest(finish_->state_digest);
    return FillState(finish_->state, response->mutable_state());
  }

  ServerCore& core_;
  Call call_;
  EngineHandle handle_;
  grpc::ByteBuffer* const answer_;              // gRPC's, until OnDone
  std::shared_ptr<const Tokenizer> tokenizer_;  // these five: constant after Submit
  bool return_tokens_ = false;
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

}  // namespace

grpc::ServerUnaryReactor* StartScore(ServerCore& core, grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request, grpc::ByteBuffer* answer) {
  auto call = std::make_shared<ScoreCall>(core, context, answer);
  call->Start(request);
  return call.get();
}

}  // namespace palimpsest
