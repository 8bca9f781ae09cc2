// SnapshotService. A state is larger than one message should be, so it comes and goes in pieces.
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "palimpsest/v1/snapshot.grpc.pb.h"
#include "server/rpc/call.h"
#include "server/rpc/checks.h"
#include "server/rpc/once.h"
#include "server/rpc/owner_page.h"
#include "server/rpc/prepare.h"
#include "server/rpc/resources.h"
#include "server/rpc/services.h"
#include "server/rpc/status.h"
#include "server/rpc/unary.h"
#include "server/rpc/wire.h"

namespace palimpsest {
namespace {

// A place among the transfers that may run at once. Whoever sees its call end may have it: a call gives it back before
// it finishes.
class TransferPlace {
 public:
  explicit TransferPlace(ServerCore& core) : core_(core) {}
  ~TransferPlace() { GiveBack(); }
  absl::Status Take() {
    if (core_.transfers.fetch_add(1) >= core_.limits.max_transfers) {
      core_.transfers.fetch_sub(1);
      return WithReason(
          absl::ResourceExhaustedError(absl::StrCat(core_.limits.max_transfers, " snapshots are on their way already ",
                                                    "(--max_transfers); retry when one has ended")),
          "TRANSFER_LIMIT");
    }
    taken_ = true;
    return absl::OkStatus();
  }
  void GiveBack() {
    if (std::exchange(taken_, false)) core_.transfers.fetch_sub(1);
  }

 private:
  ServerCore& core_;
  bool taken_ = false;
};

// Sends the bytes of a snapshot. Deletes itself when gRPC is done.
class DownloadCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  DownloadCall(ServerCore& core, grpc::CallbackServerContext* context, const grpc::ByteBuffer& request)
      : core_(core), call_(core, context, methods::kDownloadSnapshot), place_(core) {
    call_.SetId("");
    status_ = Guarded([&] { return Begin(request); });
    if (status_.ok()) {
      WriteNext();
    } else {
      place_.GiveBack();
      Finish(ToGrpc(status_));
    }
  }

  void OnWriteDone(bool ok) override {
    call_.EndWait(static_cast<int64_t>(piece_.Length()));
    if (!ok) {
      status_ = absl::CancelledError("the caller has gone");
    } else if (sent_ < bytes_.size()) {
      return WriteNext();
    }
    place_.GiveBack();
    Finish(ToGrpc(status_));
  }
  void OnDone() override {
    call_.End(status_);
    delete this;
  }

 private:
  absl::Status Begin(const grpc::ByteBuffer& bytes) {
    if (!call_.admitted().ok()) return call_.admitted();
    v1::DownloadSnapshotRequest request;
    PALIMPSEST_RETURN_IF_ERROR(ReadMessage(bytes, call_.limits(), &request));
    Violations violations;
    std::string id;
    CheckName("name", "snapshots", request.name(), &id, violations);
    if (!violations.empty()) return violations.ToStatus();
    absl::StatusOr<SnapshotInfo> info = core_.sessions.GetSnapshot(call_.owner(), id, SteadyNow());
    if (!info.ok()) return SnapshotError(info.status(), id);
    PALIMPSEST_RETURN_IF_ERROR(place_.Take());
    absl::StatusOr<StatePtr> state = core_.sessions.SnapshotState(call_.owner(), id, SteadyNow());
    if (!state.ok()) return SnapshotError(state.status(), id);
    call_.log.model = info->model;
    absl::StatusOr<std::string> serialized = SerializeSnapshot(**state);
    if (!serialized.ok()) return WithReason(serialized.status(), "NO_MEMORY");
    bytes_ = *std::move(serialized);
    FillSnapshot(*info, message_.mutable_snapshot());
    return absl::OkStatus();
  }

  void WriteNext() {
    if (sent_ > 0) message_.clear_snapshot();
    const size_t size = std::min(static_cast<size_t>(kPieceBytes), bytes_.size() - sent_);
    message_.set_data(bytes_.substr(sent_, size));
    sent_ += size;
    status_ = WriteMessage(message_, &piece_);
    call_.BeginWait(static_cast<int64_t>(piece_.Length()));
    StartWrite(&piece_);
  }

  ServerCore& core_;
  Call call_;
  TransferPlace place_;
  absl::Status status_;
  std::string bytes_;
  size_t sent_ = 0;
  v1::DownloadSnapshotResponse message_;
  grpc::ByteBuffer piece_;  // gRPC's from StartWrite to OnWriteDone
};

// Takes the bytes of a snapshot. No model is referred to between pieces: a caller that stalls must not hold up an
// unload. Deletes itself when gRPC is done.
class UploadCall final : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  UploadCall(ServerCore& core, grpc::CallbackServerContext* context, grpc::ByteBuffer* answer)
      : core_(core), call_(core, context, methods::kUploadSnapshot), place_(core), context_(context), answer_(answer) {
    call_.SetId("");
    status_ = call_.admitted();
    if (status_.ok()) {
      ReadNext();
    } else {
      Finish(ToGrpc(status_));
    }
  }

  void OnReadDone(bool ok) override {
    call_.EndWait(ok ? static_cast<int64_t>(piece_.Length()) : 0);
    if (ok) {
      status_ = Guarded([this] { return Take(); });
      if (status_.ok()) return ReadNext();
    } else if (context_->IsCancelled()) {
      status_ = absl::CancelledError("the caller has gone");
    } else {
      // Its checksum and its digest are made. Where that is done at once, this object may be gone after it.
      const absl::Status taken =
          core_.RunBySize(call_.log.peer, bytes_.size(), [this] { End(Guarded([this] { return Store(); })); });
      return taken.ok() ? void() : End(taken);
    }
    End(status_);
  }
  void OnDone() override {
    call_.End(status_);
    delete this;
  }

 private:
  void End(const absl::Status& status) {
    status_ = status;
    call_.BeginWait(static_cast<int64_t>(answer_->Length()));
    place_.GiveBack();
    Finish(ToGrpc(status));
  }

  void ReadNext() {
    call_.BeginWait(0);
    StartRead(&piece_);
  }

  // The message that has come.
  absl::Status Take() {
    message_.Clear();
    PALIMPSEST_RETURN_IF_ERROR(ReadMessage(piece_, call_.limits(), &message_));
    Violations violations;
    if (first_) {
      // Not before something has come: who only opens a stream takes nobody's place.
      PALIMPSEST_RETURN_IF_ERROR(place_.Take());
      PALIMPSEST_RETURN_IF_ERROR(TakeFirst());
      first_ = false;
    } else if (!message_.snapshot_id().empty() || !message_.model().empty() || message_.has_snapshot()) {
      violations.Add(!message_.snapshot_id().empty() ? "snapshot_id"
                     : !message_.model().empty()     ? "model"
                                                     : "snapshot",
                     "is set in a later message; accepted: in the first only");
    }
    if (std::ssize(message_.data()) > kPieceBytes) {
      violations.Add("data",
                     absl::StrCat("has ", message_.data().size(), " bytes; accepted: pieces of at most ", kPieceBytes));
    }
    if (!violations.empty()) return violations.ToStatus();
    const int64_t size = static_cast<int64_t>(bytes_.size() + message_.data().size());
    if (size > MaxSnapshotBytes(format_)) {
      return WithoutRetry(WithReason(
          absl::ResourceExhaustedError(absl::StrCat("data has ", size, " bytes so far; accepted: at most ",
                                                    MaxSnapshotBytes(format_), ", a snapshot of models/", model_id_)),
          "SNAPSHOT_TOO_LONG"));
    }
    bytes_ += message_.data();
    return absl::OkStatus();
  }

  absl::Status TakeFirst() {
    Violations violations;
    if (!message_.snapshot_id().empty()) {
      CheckNewId("snapshot_id", message_.snapshot_id(), /*dots=*/false, violations);
    }
    CheckOptionalName("model", "models", message_.model(), &model_id_, violations);
    if (message_.snapshot().has_ttl()) CheckTtl("snapshot.ttl", message_.snapshot().ttl(), &ttl_, violations);
    if (!violations.empty()) return violations.ToStatus();
    PALIMPSEST_ASSIGN_OR_RETURN(ModelRef model,
                                model_id_.empty() ? core_.models.FindOnly() : core_.models.Find(model_id_));
    snapshot_id_ = message_.snapshot_id();
    model_id_ = model.id();
    call_.log.model = model_id_;
    format_ = model.engine().state_format();
    return absl::OkStatus();
  }

  absl::Status Store() {
    if (first_) {
      return FieldViolation("data", "is missing: no message came; accepted: the bytes of a snapshot in pieces");
    }
    PALIMPSEST_ASSIGN_OR_RETURN(ModelRef model, core_.models.Find(model_id_));
    absl::StatusOr<StatePtr> state = ParseSnapshot(bytes_, model.engine().state_format());
    if (!state.ok()) {
      const std::string message(state.status().message());
      if (state.status().code() == absl::StatusCode::kInvalidArgument) return FieldViolation("data", message);
      return WithReason(absl::Status(state.status().code(), absl::StrCat("data: ", message)), "SNAPSHOT_REFUSED");
    }
    absl::StatusOr<SnapshotInfo> made =
        core_.sessions.AddSnapshot(call_.owner(), snapshot_id_, model_id_, std::move(*state), ttl_, SteadyNow());
    if (!made.ok()) return SnapshotError(made.status(), snapshot_id_);
    v1::Snapshot response;
    FillSnapshot(*made, &response);
    return WriteMessage(response, answer_);
  }

  ServerCore& core_;
  Call call_;
  TransferPlace place_;
  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const answer_;  // gRPC's, until OnDone
  grpc::ByteBuffer piece_;          // gRPC's from StartRead to OnReadDone
  v1::UploadSnapshotRequest message_;
  absl::Status status_;
  bool first_ = true;
  std::string snapshot_id_;
  std::string model_id_;
  absl::Duration ttl_ = absl::InfiniteDuration();
  StateFormat format_;
  std::string bytes_;
};

using S = v1::SnapshotService;
using RawService = S::WithRawCallbackMethod_CreateSnapshot<
    S::WithRawCallbackMethod_GetSnapshot<S::WithRawCallbackMethod_ListSnapshots<S::WithRawCallbackMethod_DeleteSnapshot<
        S::WithRawCallbackMethod_DownloadSnapshot<S::WithRawCallbackMethod_UploadSnapshot<S::Service>>>>>>;

class SnapshotServiceImpl final : public RawService {
 public:
  explicit SnapshotServiceImpl(ServerCore& core) : core_(core) {}

  grpc::ServerUnaryReactor* CreateSnapshot(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kCreateSnapshot, request, answer, &SnapshotServiceImpl::Create,
                    RunsOn::kWorker);  // the state's digest is made
  }
  grpc::ServerUnaryReactor* GetSnapshot(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kGetSnapshot, request, answer, &SnapshotServiceImpl::Get);
  }
  grpc::ServerUnaryReactor* ListSnapshots(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kListSnapshots, request, answer, &SnapshotServiceImpl::List);
  }
  grpc::ServerUnaryReactor* DeleteSnapshot(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kDeleteSnapshot, request, answer, &SnapshotServiceImpl::Delete);
  }
  grpc::ServerWriteReactor<grpc::ByteBuffer>* DownloadSnapshot(grpc::CallbackServerContext* context,
                                                               const grpc::ByteBuffer* request) override {
    return new DownloadCall(core_, context, *request);
  }
  grpc::ServerReadReactor<grpc::ByteBuffer>* UploadSnapshot(grpc::CallbackServerContext* context,
                                                            grpc::ByteBuffer* answer) override {
    return new UploadCall(core_, context, answer);
  }

 private:
  absl::Status Create(Call& call, const v1::CreateSnapshotRequest& request, v1::Snapshot* response) {
    return Once(core_, call, methods::kCreateSnapshot.name, request, response,
                [&](v1::Snapshot* made) { return CreateOnce(request, call, made); });
  }

  absl::Status Get(Call& call, const v1::GetSnapshotRequest& request, v1::Snapshot* response) {
    Violations violations;
    std::string id;
    CheckName("name", "snapshots", request.name(), &id, violations);
    if (!violations.empty()) return violations.ToStatus();
    absl::StatusOr<SnapshotInfo> snapshot = core_.sessions.GetSnapshot(call.owner(), id, SteadyNow());
    if (!snapshot.ok()) return SnapshotError(snapshot.status(), id);
    FillSnapshot(*snapshot, response);
    return absl::OkStatus();
  }

  absl::Status List(Call& call, const v1::ListSnapshotsRequest& request, v1::ListSnapshotsResponse* response) {
    Violations violations;
    int32_t limit = 0;
    CheckPageSize(request.page_size(), &limit, violations);
    if (!violations.empty()) return violations.ToStatus();
    PALIMPSEST_ASSIGN_OR_RETURN(const OwnerPage page, OwnerPage::Read(core_.pages, call.identity(), "snapshots",
                                                                      request.owner(), request.page_token()));
    const auto& [owner, id] = page.after();
    std::vector<SnapshotInfo> snapshots = page.all_owners()
                                              ? core_.sessions.ListAllSnapshots(page.after(), limit + 1, SteadyNow())
                                              : core_.sessions.ListSnapshots(owner, id, limit + 1, SteadyNow());
    if (static_cast<int32_t>(snapshots.size()) > limit) {
      snapshots.pop_back();
      response->set_next_page_token(page.TokenAfter(snapshots.back()));
    }
    for (const SnapshotInfo& snapshot : snapshots) FillSnapshot(snapshot, response->add_snapshots());
    return absl::OkStatus();
  }

  absl::Status Delete(Call& call, const v1::DeleteSnapshotRequest& request, google::protobuf::Empty*) {
    Violations violations;
    std::string id;
    CheckName("name", "snapshots", request.name(), &id, violations);
    if (!violations.empty()) return violations.ToStatus();
    absl::Status status = core_.sessions.DeleteSnapshot(call.owner(), id, SteadyNow());
    return status.ok() ? status : SnapshotError(status, id);
  }

  absl::Status CreateOnce(const v1::CreateSnapshotRequest& request, Call& call, v1::Snapshot* response) {
    Violations violations;
    if (!request.snapshot_id().empty()) CheckNewId("snapshot_id", request.snapshot_id(), /*dots=*/false, violations);
    CheckName("session", "sessions", request.session(), &call.log.session, violations);
    absl::Duration ttl = absl::InfiniteDuration();
    if (request.snapshot().has_ttl()) CheckTtl("snapshot.ttl", request.snapshot().ttl(), &ttl, violations);
    if (!violations.empty()) return violations.ToStatus();

    const absl::Time now = SteadyNow();
    absl::StatusOr<SessionStore::Parked> parked = core_.sessions.Peek(call.owner(), call.log.session, now);
    if (!parked.ok()) return SessionError(parked.status(), call.log.session);
    // As for a new session: while the model is referred to, unloading waits, and then finds the snapshot.
    PALIMPSEST_ASSIGN_OR_RETURN(ModelRef model, core_.models.Find(parked->model));
    call.log.model = model.id();
    StatePtr state = parked->state;
    if (state == nullptr) {
      absl::StatusOr<StatePtr> empty = EmptyState(model.engine().state_format());
      if (!empty.ok()) return SnapshotError(empty.status(), request.snapshot_id());
      state = *std::move(empty);
    }
    absl::StatusOr<SnapshotInfo> made =
        core_.sessions.AddSnapshot(call.owner(), request.snapshot_id(), model.id(), std::move(state), ttl, now);
    if (!made.ok()) return SnapshotError(made.status(), request.snapshot_id());
    FillSnapshot(*made, response);
    return absl::OkStatus();
  }

  ServerCore& core_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeSnapshotService(ServerCore& core) {
  return std::make_unique<SnapshotServiceImpl>(core);
}

}  // namespace palimpsest
