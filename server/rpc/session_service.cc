// SessionService: each call checks, asks the store, answers. All are quick: a fork is one more reference to a state.
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/quote.h"
#include "base/status_macros.h"
#include "palimpsest/v1/session.grpc.pb.h"
#include "server/errors/errors.h"
#include "server/rpc/call.h"
#include "server/rpc/checks.h"
#include "server/rpc/once.h"
#include "server/rpc/owner_page.h"
#include "server/rpc/prepare.h"
#include "server/rpc/resources.h"
#include "server/rpc/services.h"
#include "server/rpc/unary.h"

namespace palimpsest {
namespace {

constexpr int32_t kMaxForks = 1024;

// A failed call with an etag: what is stale stays so, and a retry of the same call cannot help.
absl::Status WithEtag(const absl::Status& status, ServerCore& core, const Call& call, const std::string& etag) {
  const std::string& id = call.log.session;
  if (status.code() == absl::StatusCode::kAborted && !etag.empty()) {
    const absl::StatusOr<SessionInfo> session = core.sessions.Get(call.owner(), id, SteadyNow());
    if (session.ok() && absl::StrCat(session->version) != etag) {
      return WithoutRetry(WithReason(status, "ETAG_STALE", {{"session", absl::StrCat("sessions/", id)}}));
    }
  }
  return status.ok() ? status : SessionError(status, id);
}

using S = v1::SessionService;
using RawService = S::WithRawCallbackMethod_CreateSession<S::WithRawCallbackMethod_GetSession<
    S::WithRawCallbackMethod_ListSessions<S::WithRawCallbackMethod_UpdateSession<S::WithRawCallbackMethod_ForkSession<
        S::WithRawCallbackMethod_InterruptSession<S::WithRawCallbackMethod_DeleteSession<S::Service>>>>>>>;

class SessionServiceImpl final : public RawService {
 public:
  explicit SessionServiceImpl(ServerCore& core) : core_(core) {}

  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kCreateSession, request, answer, &SessionServiceImpl::Create);
  }
  grpc::ServerUnaryReactor* GetSession(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kGetSession, request, answer, &SessionServiceImpl::Get);
  }
  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kListSessions, request, answer, &SessionServiceImpl::List);
  }
  grpc::ServerUnaryReactor* UpdateSession(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kUpdateSession, request, answer, &SessionServiceImpl::Update);
  }
  grpc::ServerUnaryReactor* ForkSession(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kForkSession, request, answer, &SessionServiceImpl::Fork);
  }
  grpc::ServerUnaryReactor* InterruptSession(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kInterruptSession, request, answer, &SessionServiceImpl::Interrupt);
  }
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kDeleteSession, request, answer, &SessionServiceImpl::Delete);
  }

 private:
  absl::Status Create(Call& call, const v1::CreateSessionRequest& request, v1::Session* response) {
    return Once(core_, call, methods::kCreateSession.name, request, response,
                [&](v1::Session* made) { return CreateOnce(request, call, made); });
  }

  absl::Status Get(Call& call, const v1::GetSessionRequest& request, v1::Session* response) {
    Violations violations;
    CheckName("name", "sessions", request.name(), &call.log.session, violations);
    if (!violations.empty()) return violations.ToStatus();
    absl::StatusOr<SessionInfo> session = core_.sessions.Get(call.owner(), call.log.session, SteadyNow());
    if (!session.ok()) return SessionError(session.status(), call.log.session);
    FillSession(*session, response);
    return absl::OkStatus();
  }

  absl::Status List(Call& call, const v1::ListSessionsRequest& request, v1::ListSessionsResponse* response) {
    Violations violations;
    int32_t limit = 0;
    CheckPageSize(request.page_size(), &limit, violations);
    if (!violations.empty()) return violations.ToStatus();
    PALIMPSEST_ASSIGN_OR_RETURN(const OwnerPage page, OwnerPage::Read(core_.pages, call.identity(), "sessions",
                                                                      request.owner(), request.page_token()));
    const auto& [owner, id] = page.after();
    // One more than asked for tells whether there is another page.
    std::vector<SessionInfo> sessions = page.all_owners() ? core_.sessions.ListAll(page.after(), limit + 1, SteadyNow())
                                                          : core_.sessions.List(owner, id, limit + 1, SteadyNow());
    if (static_cast<int32_t>(sessions.size()) > limit) {
      sessions.pop_back();
      response->set_next_page_token(page.TokenAfter(sessions.back()));
    }
    for (const SessionInfo& session : sessions) FillSession(session, response->add_sessions());
    return absl::OkStatus();
  }

  absl::Status Update(Call& call, const v1::UpdateSessionRequest& request, v1::Session* response) {
    const v1::Session& wanted = request.session();
    Violations violations;
    CheckName("session.name", "sessions", wanted.name(), &call.log.session, violations);
    absl::Duration ttl;
    bool change_ttl = !request.has_update_mask() && wanted.has_ttl();
    for (const std::string& path : request.update_mask().paths()) {
      if (path == "ttl" || path == "*") {
        change_ttl = true;
      } else {
        violations.Add("update_mask", absl::StrCat("names ", DoubleQuoted(path), "; accepted: \"ttl\", or no mask"));
      }
    }
    if (wanted.has_ttl()) {
      CheckTtl("session.ttl", wanted.ttl(), &ttl, violations);
    } else if (change_ttl) {
      violations.Add("session.ttl", "is named in update_mask but absent; accepted: a duration, 0 for no expiry");
    }
    if (!violations.empty()) return violations.ToStatus();

    absl::StatusOr<SessionInfo> session = absl::InternalError("");
    if (change_ttl) {
      session = core_.sessions.UpdateTtl(call.owner(), call.log.session, ttl, wanted.etag(), SteadyNow());
      if (!session.ok()) return WithEtag(session.status(), core_, call, wanted.etag());
    } else {
      session = core_.sessions.Get(call.owner(), call.log.session, SteadyNow());
      if (!session.ok()) return SessionError(session.status(), call.log.session);
      if (!wanted.etag().empty() && wanted.etag() != absl::StrCat(session->version)) {
        return WithEtag(absl::AbortedError(absl::StrCat("sessions/", call.log.session, " has changed: its etag is \"",
                                                        session->version, "\", not ", DoubleQuoted(wanted.etag()),
                                                        "; get it again and retry")),
                        core_, call, wanted.etag());
      }
    }
    FillSession(*session, response);
    return absl::OkStatus();
  }

  absl::Status Fork(Call& call, const v1::ForkSessionRequest& request, v1::ForkSessionResponse* response) {
    return Once(core_, call, methods::kForkSession.name, request, response,
                [&](v1::ForkSessionResponse* made) { return ForkOnce(request, call, made); });
  }

  absl::Status Interrupt(Call& call, const v1::InterruptSessionRequest& request, v1::Session* response) {
    Violations violations;
    CheckName("name", "sessions", request.name(), &call.log.session, violations);
    if (!violations.empty()) return violations.ToStatus();
    const std::string& id = call.log.session;
    absl::Status broken = core_.sessions.Break(call.owner(), id, SteadyNow());
    if (!broken.ok()) return SessionError(broken, id);
    absl::StatusOr<SessionInfo> session = core_.sessions.Get(call.owner(), id, SteadyNow());
    if (session.ok() && session->condition == SessionCondition::kActive) {
      // Tried again when it has ended.
      session = absl::AbortedError(absl::StrCat("the call that holds session \"", id, "\" has not ended yet; retry"));
    }
    if (!session.ok()) return SessionError(session.status(), id);
    FillSession(*session, response);
    return absl::OkStatus();
  }

  absl::Status Delete(Call& call, const v1::DeleteSessionRequest& request, google::protobuf::Empty*) {
    Violations violations;
    CheckName("name", "sessions", request.name(), &call.log.session, violations);
    if (!violations.empty()) return violations.ToStatus();
    return WithEtag(core_.sessions.Delete(call.owner(), call.log.session, request.etag(), SteadyNow(), request.force()),
                    core_, call, request.etag());
  }

  absl::Status CreateOnce(const v1::CreateSessionRequest& request, Call& call, v1::Session* response) {
    Violations violations;
    if (!request.session_id().empty()) CheckNewId("session_id", request.session_id(), /*dots=*/false, violations);
    std::string model_id;
    std::string source;
    CheckOptionalName("session.model", "models", request.session().model(), &model_id, violations);
    if (request.has_source_session()) {
      CheckName("source_session", "sessions", request.source_session(), &source, violations);
    } else if (request.has_source_snapshot()) {
      CheckName("source_snapshot", "snapshots", request.source_snapshot(), &source, violations);
    }
    SessionStore::NewSession session;
    if (request.session().has_ttl()) {
      absl::Duration ttl;
      CheckTtl("session.ttl", request.session().ttl(), &ttl, violations);
      session.ttl = ttl;
    }
    if (!violations.empty()) return violations.ToStatus();

    const absl::Time now = SteadyNow();
    std::string source_model;
    if (request.has_source_session()) {
      call.log.session = source;
      absl::StatusOr<SessionStore::Parked> parked = core_.sessions.Peek(call.owner(), source, now);
      if (!parked.ok()) return SessionError(parked.status(), source);
      source_model = parked->model;
      session.state = parked->state;
    } else if (request.has_source_snapshot()) {
      absl::StatusOr<SnapshotInfo> info = core_.sessions.GetSnapshot(call.owner(), source, now);
      if (!info.ok()) return SnapshotError(info.status(), source);
      absl::StatusOr<StatePtr> state = core_.sessions.SnapshotState(call.owner(), source, now);
      if (!state.ok()) return SnapshotError(state.status(), source);
      source_model = info->model;
      session.state = *state;
    }
    if (!source_model.empty() && !model_id.empty() && model_id != source_model) {
      return FieldViolation("session.model", absl::StrCat("is models/", model_id, ", but the source is of models/",
                                                          source_model, "; accepted: that, or nothing"));
    }
    if (model_id.empty()) model_id = source_model;
    const std::string fingerprint = session.state == nullptr ? "" : session.state->format.model_fingerprint;
    // The reference keeps the model from being unloaded until its session is in the store, where unloading finds it.
    PALIMPSEST_ASSIGN_OR_RETURN(ModelRef model,
                                model_id.empty() ? core_.models.FindOnly() : core_.models.Find(model_id, fingerprint));
    if (session.state != nullptr && session.state->format != model.engine().state_format()) {
      return WithReason(absl::FailedPreconditionError(
                            absl::StrCat("the source is of an earlier models/", model.id(), " with other weights")),
                        "MODEL_REPLACED");
    }
    call.log.model = model.id();
    session.id = request.session_id();
    session.model = model.id();
    session.state_bytes = model.engine().state_format().bytes;
    absl::StatusOr<SessionInfo> made = core_.sessions.Create(call.owner(), std::move(session), now);
    if (!made.ok()) return SessionError(made.status(), request.session_id());
    call.log.session = made->id;
    FillSession(*made, response);
    return absl::OkStatus();
  }

  absl::Status ForkOnce(const v1::ForkSessionRequest& request, Call& call, v1::ForkSessionResponse* response) {
    Violations violations;
    CheckName("name", "sessions", request.name(), &call.log.session, violations);
    const int32_t named = request.session_ids_size();
    const int32_t count = request.count() != 0 ? request.count() : named != 0 ? named : 1;
    if (count < 1 || count > kMaxForks) {
      const bool given = request.count() != 0;
      violations.Add(
          given ? "count" : "session_ids",
          absl::StrCat(given ? "is " : "has ", count, given ? "" : " entries", "; accepted: 1 to ", kMaxForks));
    } else if (named != 0 && named != count) {
      violations.Add("session_ids",
                     absl::StrCat("has ", named, " entries; accepted: none, or ", count, " as count says"));
    } else {
      for (int32_t i = 0; i < named; ++i) {
        CheckNewId(absl::StrCat("session_ids[", i, "]"), request.session_ids(i), /*dots=*/false, violations);
      }
    }
    std::optional<absl::Duration> ttl;
    if (request.has_ttl()) CheckTtl("ttl", request.ttl(), &ttl.emplace(), violations);
    if (!violations.empty()) return violations.ToStatus();

    std::vector<std::string> ids(request.session_ids().begin(), request.session_ids().end());
    ids.resize(count);
    absl::StatusOr<std::vector<SessionInfo>> made =
        core_.sessions.Fork(call.owner(), call.log.session, std::move(ids), ttl, SteadyNow());
    if (!made.ok()) return SessionError(made.status(), call.log.session);
    for (const SessionInfo& session : *made) FillSession(session, response->add_sessions());
    return absl::OkStatus();
  }

  ServerCore& core_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeSessionService(ServerCore& core) {
  return std::make_unique<SessionServiceImpl>(core);
}

}  // namespace palimpsest
