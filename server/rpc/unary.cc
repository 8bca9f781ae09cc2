#include "server/rpc/unary.h"

#include <grpcpp/server_context.h>

#include <cstdint>
#include <utility>

#include "server/rpc/status.h"

namespace palimpsest {
namespace {

// Deletes itself when gRPC is done.
class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  UnaryCall(ServerCore& core, grpc::CallbackServerContext* context, const Method& method,
            const grpc::ByteBuffer* request, grpc::ByteBuffer* answer, UnaryWork work)
      : core_(core),
        call_(core, context, method),
        context_(context),
        request_(request),
        answer_(answer),
        work_(std::move(work)) {
    call_.SetId("");
  }

  void Start(RunsOn runs_on) {
    absl::Status status = call_.admitted();
    if (status.ok()) status = CheckMessageSize(*request_, call_.limits());
    if (status.ok() && runs_on == RunsOn::kOwnThread) return core_.tasks.Run([this] { Run(); });
    if (status.ok()) {
      const size_t bytes = runs_on == RunsOn::kWorker ? SIZE_MAX : request_->Length();
      status = core_.RunBySize(call_.log.peer, bytes, [this] {
        if (context_->IsCancelled())
          return End(absl::CancelledError("the caller has gone"));  // while it waited for a worker
        Run();
      });
    }
    if (!status.ok()) End(status);
  }

  void OnDone() override {
    call_.End(status_);
    delete this;
  }

 private:
  void Run() {
    absl::Status status = Guarded([this] { return work_(call_, *request_, answer_); });
    if (!IsShort(request_->Length())) call_.NoteRead();
    if (status.ok()) status = call_.HoldReply(static_cast<int64_t>(answer_->Length()));
    if (!status.ok()) answer_->Clear();
    const bool again = call_.AwaitSession(status, [this](absl::Status waited) { waited.ok() ? Run() : End(waited); });
    if (!again) End(status);
  }

  void End(const absl::Status& status) {
    status_ = status;
    call_.BeginWait(static_cast<int64_t>(answer_->Length()));
    Finish(ToGrpc(status));  // after which the object may be gone
  }

  ServerCore& core_;
  Call call_;
  grpc::CallbackServerContext* const context_;
  const grpc::ByteBuffer* const request_;  // gRPC's, as the answer, until OnDone
  grpc::ByteBuffer* const answer_;
  const UnaryWork work_;
  absl::Status status_;
};

}  // namespace

grpc::ServerUnaryReactor* StartUnary(ServerCore& core, grpc::CallbackServerContext* context, const Method& method,
                                     const grpc::ByteBuffer* request, grpc::ByteBuffer* answer, RunsOn runs_on,
                                     UnaryWork work) {
  auto* call = new UnaryCall(core, context, method, request, answer, std::move(work));
  call->Start(runs_on);
  return call;
}

}  // namespace palimpsest
