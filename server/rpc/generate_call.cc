// Generate.
//
// Threads: gRPC's bring a request and tell of ended writes, the engine's tells of tokens, the delivery thread builds
// messages and starts writes. None waits for another.
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "palimpsest/v1/generation.pb.h"
#include "server/rpc/call.h"
#include "server/rpc/engine_call.h"
#include "server/rpc/generation_calls.h"
#include "server/rpc/prepare.h"
#include "server/rpc/status.h"
#include "server/rpc/wire.h"

namespace palimpsest {
namespace {

// One Generate. The engine and the delivery thread hold counted references; its own, `self_`, goes when gRPC is done.
//
// At most one write is out. What the engine tells meanwhile is gathered in `pending_` and leaves as one message; what
// has not left counts as undelivered, and at the engine's bound the sequence is paused until a write ends.
// Response headers leave with the first message: until then a client's library may try again elsewhere by itself.
class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public RequestSink,
                           public Deliverable,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  GenerateCall(ServerCore& core, grpc::CallbackServerContext* context)
      : core_(core), call_(core, context, methods::kGenerate) {}

  // Whatever happens, gRPC calls OnDone later. `bytes` are gRPC's until then.
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
    if (finish_->taken_back) has_pending_ = false;
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
    call_.EndWait(static_cast<int64_t>(bytes_.Length()));
    int64_t before = 0;
    bool gone = false;
    {
      absl::MutexLock lock(&mu_);
      writing_ = false;
      if (!ok) gone_ = true;
      gone = gone_;
      if (ok) before = undelivered_.fetch_sub(tokens_in_write_);
    }
    if (gone) {
      handle_.Cancel();
    } else if (before >= resume_from_) {
      handle_.Resume();
    }
    WriteNext();
  }
  void OnCancel() override {
    bool writing = false;
    {
      absl::MutexLock lock(&mu_);
      gone_ = true;
      writing = writing_;
    }
    // What becomes of a message that is being written decides where the session is to stand.
    if (!writing) handle_.Cancel();
  }
  // Any thread. The session goes to another call, whatever becomes of a message that nobody reads.
  void BreakOff() {
    {
      absl::MutexLock lock(&mu_);
      gone_ = true;
      interrupted_ = true;
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
  using Reactor = grpc::ServerWriteReactor<grpc::ByteBuffer>;

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
    v1::GenerateRequest wire;
    absl::Status status = ReadMessage(bytes, call_.limits(), &wire);
    call_.SetId(wire.call_id());
    ModelRef model;
    EngineRequest request;
    if (status.ok()) status = Prepare(core_, wire, call_, &model, &request);
    call_.NoteRead();
    if (!status.ok()) return status;
    const int64_t undelivered = TokenBytes(model.engine().options().max_undelivered_tokens, request.top_logprobs);
    if (status = call_.HoldReply(ReplyBytes(request, model) + undelivered); !status.ok()) return status;
    tokenizer_ = model.shared_tokenizer();
    previous_ = TokenBefore(request, std::ssize(request.prompt));
    want_logprobs_ = request.want_logprobs;
    resume_from_ =
        request.commit == EngineRequest::Commit::kDelivered ? 1 : model.engine().options().max_undelivered_tokens / 2;
    request.sink = shared_from_this();
    const absl::Status submitted = handle_.Submit(core_.sessions, std::move(model), std::move(request));
    if (submitted.ok() && handle_.lease() != 0) {
      // Its owner may break it off from another call. What cancels must not keep this object, nor need it.
      core_.sessions.SetBreak(handle_.lease(), [weak = weak_from_this()] {
        if (const std::shared_ptr<GenerateCall> call = weak.lock()) call->BreakOff();
      });
    }
    return submitted;
  }

  void End(const absl::Status& status) {
    {
      absl::MutexLock lock(&mu_);
      ended_ = true;
      status_ = status;
    }
    call_.BeginWait(0);
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
        failure = interrupted_           ? absl::CancelledError("another call has interrupted this one")
                  : finish_->status.ok() ? absl::CancelledError("the caller has gone")
                                         : FinishError(finish_->status);
        ended_ = true;  // here, under the lock: two threads may come this far, and gRPC is told once
      }
    }
    if (!failure.ok()) return End(failure);
    const absl::Status made = Guarded([&] { return MakeMessage(delta, last); });
    if (!made.ok()) {
      handle_.Cancel();
      return End(made);
    }
    call_.BeginWait(static_cast<int64_t>(bytes_.Length()));
    if (!last.has_value()) return StartWrite(&bytes_);
    StartWriteAndFinish(&bytes_, grpc::WriteOptions(), grpc::Status::OK);
  }

  absl::Status MakeMessage(const Delta& delta, const std::optional<RequestSink::Finish>& last) {
    message_.Clear();
    FillMessage(delta);
    absl::Status status = last.has_value() ? FillFinish(*last) : absl::OkStatus();
    if (!status.ok()) return status;
    return WriteMessage(message_, &bytes_);
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
    return FillState(finish.state, made->mutable_state());
  }

  ServerCore& core_;
  Call call_;
  EngineHandle handle_;
  std::shared_ptr<const Tokenizer> tokenizer_;  // these three: constant after Submit
  bool want_logprobs_ = false;
  int64_t resume_from_ = 0;
  std::atomic<int64_t> undelivered_{0};     // read by the engine's thread without mu_; it hears of a fall by Resume
  v1::GenerateResponse message_;            // these three: of whoever set `writing_`
  grpc::ByteBuffer bytes_;                  // the message, gRPC's while it is written
  int32_t previous_ = Tokenizer::kNoToken;  // the last token told of

  absl::Mutex mu_;  // never held while gRPC or the engine is called
  Delta pending_ ABSL_GUARDED_BY(mu_);
  bool has_pending_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<RequestSink::Finish> finish_ ABSL_GUARDED_BY(mu_);
  int64_t tokens_in_write_ ABSL_GUARDED_BY(mu_) = 0;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;      // a write is out or being made
  bool posted_ ABSL_GUARDED_BY(mu_) = false;       // the delivery thread will come
  bool gone_ ABSL_GUARDED_BY(mu_) = false;         // the caller reads no more
  bool interrupted_ ABSL_GUARDED_BY(mu_) = false;  // and that is why
  bool ended_ ABSL_GUARDED_BY(mu_) = false;        // gRPC has been told the end
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<GenerateCall> self_;
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartGenerate(ServerCore& core, grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request) {
  auto call = std::make_shared<GenerateCall>(core, context);
  call->Start(request);
  return call.get();
}

}  // namespace palimpsest
