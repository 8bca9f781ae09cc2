#include "server/rpc/prepare.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/random.h"
#include "base/status_macros.h"
#include "server/errors/errors.h"
#include "server/rpc/call.h"
#include "server/rpc/checks.h"

namespace palimpsest {
namespace {

// What both requests have: names, context and what is appended.
template <class Wire>
struct Context {
  ServerCore& core;
  const Wire& wire;
  Call& call;

  std::string model_id;
  std::string session_id;

  void CheckNames(Violations& violations) {
    CheckOptionalName("model", "models", wire.model(), &model_id, violations);
    if (wire.has_session()) CheckName("session", "sessions", wire.session(), &session_id, violations);
    CheckCallId(wire.call_id(), violations);
    CheckTopLogprobs(wire.top_logprobs(), violations);
  }

  absl::Status FindModel(ModelRef* model) {
    absl::StatusOr<ModelRef> found = absl::InternalError("");
    if (wire.has_session()) {
      call.log.session = session_id;
      absl::StatusOr<SessionInfo> session = core.sessions.Get(call.owner(), session_id, SteadyNow());
      if (!session.ok()) return SessionError(session.status(), session_id);
      if (!model_id.empty() && model_id != session->model) {
        return FieldViolation("model", absl::StrCat("is models/", model_id, ", but sessions/", session_id, " is of ",
                                                    "models/", session->model, "; accepted: that, or nothing"));
      }
      found = core.models.Find(session->model, session->model_fingerprint);
    } else {
      found = model_id.empty() ? core.models.FindOnly() : core.models.Find(model_id);
    }
    if (!found.ok()) return found.status();
    *model = std::move(*found);
    call.log.model = model->id();
    return absl::OkStatus();
  }

  // After ReadState: whether the text begins the context decides on SentencePiece's dummy prefix.
  // `unknown_tokens` may be null.
  absl::Status ReadTokens(const ModelRef& model, EngineRequest* request, int64_t* unknown_tokens) {
    std::vector<int32_t>* const tokens = &request->prompt;
    if (!wire.text().empty()) {
      PALIMPSEST_RETURN_IF_ERROR(CheckPromptBytes("text", wire.text().size(), core.limits));
      *tokens = model.tokenizer().Encode(wire.text(), /*first=*/request->initial == nullptr, unknown_tokens,
                                         core.limits.max_prompt_tokens);
    } else if (wire.has_tokens()) {
      Violations violations;
      CheckIds("tokens.ids", wire.tokens().ids(), model.vocabulary(), violations);
      if (!violations.empty()) return violations.ToStatus();
      tokens->assign(wire.tokens().ids().begin(), wire.tokens().ids().end());
    }
    return CheckPromptTokens(wire.has_tokens() ? "tokens.ids" : "text", tokens->size(), core.limits);
  }

  // The state to go on from. A session is leased from here on.
  absl::Status ReadState(const ModelRef& model, EngineRequest* request) {
    if (wire.has_state()) {
      absl::StatusOr<StatePtr> state = ParseSnapshot(wire.state(), model.engine().state_format());
      if (!state.ok()) {
        const std::string message(state.status().message());
        if (state.status().code() == absl::StatusCode::kInvalidArgument) return FieldViolation("state", message);
        return WithReason(absl::Status(state.status().code(), absl::StrCat("state: ", message)), "STATE_REFUSED");
      }
      request->initial = std::move(*state);
    } else if (wire.has_session()) {
      absl::StatusOr<SessionLease> lease = core.sessions.Acquire(call.owner(), session_id, SteadyNow());
      if (!lease.ok()) return SessionError(lease.status(), session_id);
      const bool replaced = lease->model() != model.id() ||
                            (lease->state() != nullptr && lease->state()->format != model.engine().state_format());
      if (replaced) {
        return WithReason(absl::AbortedError(absl::StrCat("sessions/", session_id, " was replaced meanwhile; retry")),
                          "SESSION_REPLACED");
      }
      request->initial = lease->state();
      request->lease = std::move(*lease);
    }
    // A state that has seen nothing says no more than none.
    if (request->initial != nullptr && request->initial->head.position == 0) request->initial = nullptr;
    return absl::OkStatus();
  }
};

// By what TakeLimit says; without it, an allocation failed.
const char* ReasonOfLimit(absl::string_view limit) {
  absl::ConsumePrefix(&limit, "share.");
  if (limit == "max_sessions") return "SESSION_LIMIT";
  if (limit == "max_snapshots") return "SNAPSHOT_LIMIT";
  if (limit == "max_state_bytes") return "STATE_BYTES_LIMIT";
  return "NO_MEMORY";
}

template <class Wire>
void Begin(const Wire& wire, const Call& call, EngineRequest* request) {
  request->id = call.id();
  request->owner = call.owner();
  request->arrival = call.arrival();
  request->deadline = call.deadline();
  request->top_logprobs = wire.top_logprobs();
  request->want_state = wire.return_state();
  request->want_digest = wire.return_state_digest();
}

}  // namespace

absl::Status SessionError(absl::Status status, const std::string& id) {
  const std::string limit = TakeLimit(status);
  const std::string name = absl::StrCat("sessions/", id);
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return WithReason(WithResource(status, "palimpsest.dev/Session", name), "SESSION_NOT_FOUND", {{"session", name}});
    case absl::StatusCode::kAborted:
      return WithReason(status, "SESSION_BUSY", {{"session", name}});
    case absl::StatusCode::kFailedPrecondition:
      return WithReason(status, "SESSION_QUARANTINED", {{"session", name}});
    case absl::StatusCode::kAlreadyExists:
      return WithReason(status, "SESSION_EXISTS");
    case absl::StatusCode::kResourceExhausted:
      return WithRetryAfter(WithReason(status, ReasonOfLimit(limit), {{"limit", limit}}), absl::Seconds(10));
    default:
      return status;
  }
}

absl::Status SnapshotError(absl::Status status, const std::string& id) {
  const std::string limit = TakeLimit(status);
  const std::string name = absl::StrCat("snapshots/", id);
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return WithReason(WithResource(status, "palimpsest.dev/Snapshot", name), "SNAPSHOT_NOT_FOUND",
                        {{"snapshot", name}});
    case absl::StatusCode::kAlreadyExists:
      return WithReason(status, "SNAPSHOT_EXISTS");
    case absl::StatusCode::kResourceExhausted:
      return WithRetryAfter(WithReason(status, ReasonOfLimit(limit), {{"limit", limit}}), absl::Seconds(10));
    default:
      return status;
  }
}

absl::Status Prepare(ServerCore& core, const v1::GenerateRequest& wire, Call& call, ModelRef* model,
                     EngineRequest* request) {
  Context<v1::GenerateRequest> context{core, wire, call, "", ""};
  Begin(wire, call, request);
  Violations violations;
  context.CheckNames(violations);
  CheckSampling(wire.sampling(), &request->sampling, violations);
  CheckStop(wire.stop(), core.limits, request, violations);
  if (!violations.empty()) return violations.ToStatus();

  PALIMPSEST_RETURN_IF_ERROR(context.FindModel(model));
  CheckIds("stop.token_ids", request->stop_tokens, model->vocabulary(), violations);
  for (const auto& [id, bias] : request->sampling.logit_bias) {
    if (id >= 0 && id < model->vocabulary()) continue;
    violations.Add(absl::StrCat("sampling.logit_bias[", id, "]"),
                   absl::StrCat("names a token that is not there; accepted: 0 to ", model->vocabulary() - 1));
    break;
  }
  if (!violations.empty()) return violations.ToStatus();

  PALIMPSEST_RETURN_IF_ERROR(context.ReadState(*model, request));
  PALIMPSEST_RETURN_IF_ERROR(context.ReadTokens(*model, request, nullptr));
  if (request->prompt.empty() && request->initial == nullptr && request->max_tokens > 0) {
    return WithReason(absl::FailedPreconditionError("there is nothing to continue from: the context and the prompt are "
                                                    "empty; give text or tokens"),
                      "NOTHING_TO_CONTINUE");
  }
  request->kind = EngineRequest::Kind::kGenerate;
  if (wire.commit() == v1::COMMIT_DELIVERED) request->commit = EngineRequest::Commit::kDelivered;
  request->want_logprobs = wire.logprobs() || wire.top_logprobs() > 0;
  if (!wire.sampling().has_seed()) request->sampling.seed = RandomNumber();
  return absl::OkStatus();
}

absl::Status Prepare(ServerCore& core, const v1::ScoreRequest& wire, Call& call, ModelRef* model,
                     EngineRequest* request, int64_t* unknown_tokens) {
  Context<v1::ScoreRequest> context{core, wire, call, "", ""};
  Begin(wire, call, request);
  Violations violations;
  context.CheckNames(violations);
  if (wire.text().empty() && wire.tokens().ids().empty()) {
    violations.Add("input", "is empty; accepted: text or tokens to score");
  }
  if (!violations.empty()) return violations.ToStatus();

  PALIMPSEST_RETURN_IF_ERROR(context.FindModel(model));
  PALIMPSEST_RETURN_IF_ERROR(context.ReadState(*model, request));
  PALIMPSEST_RETURN_IF_ERROR(context.ReadTokens(*model, request, unknown_tokens));
  const auto tokens = static_cast<int64_t>(request->prompt.size());
  int64_t scored = tokens;
  if (wire.has_score_last()) CheckScoreLast(wire.score_last(), tokens, &scored, violations);
  if (!violations.empty()) return violations.ToStatus();
  const int64_t values = scored * (1 + wire.top_logprobs());
  if ((wire.return_tokens() || wire.top_logprobs() > 0) && values > core.limits.max_scored_values) {
    return WithoutRetry(WithReason(absl::ResourceExhaustedError(absl::StrCat(
                                       "the answer would hold ", values, " log-probabilities; accepted: at ", "most ",
                                       core.limits.max_scored_values, " (--max_scored_values). Ask ",
                                       "for fewer alternatives, or score in pieces through a session")),
                                   "ANSWER_TOO_LONG"));
  }
  request->kind = EngineRequest::Kind::kScore;
  request->first_scored = tokens - scored;
  request->max_tokens = 0;
  request->want_logprobs = true;
  return absl::OkStatus();
}

}  // namespace palimpsest
