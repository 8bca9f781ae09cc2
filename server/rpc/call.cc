#include "server/rpc/call.h"

#include <grpc/support/time.h>
#include <grpcpp/server_context.h>

#include <algorithm>
#include <exception>
#include <new>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "base/random.h"
#include "base/status_macros.h"
#include "base/steady_clock.h"
#include "server/errors/errors.h"
#include "server/rpc/checks.h"
#include "server/rpc/trace_context.h"

namespace palimpsest {
namespace {

std::string MakeCallId() { return absl::StrFormat("%016x", RandomNumber()); }

std::vector<absl::string_view> Values(const grpc::CallbackServerContext& context, const char* key) {
  std::vector<absl::string_view> values;
  const auto [begin, end] = context.client_metadata().equal_range(key);
  for (auto it = begin; it != end; ++it) values.emplace_back(it->second.data(), it->second.size());
  return values;
}

// gRPC's deadline, which is on a clock of its choice.
absl::Time SteadyDeadline(gpr_timespec deadline) {
  if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0) return absl::InfiniteFuture();
  const gpr_timespec left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
  return SteadyNow() + absl::Seconds(left.tv_sec) + absl::Nanoseconds(left.tv_nsec);
}

}  // namespace

void Door::Open() {
  absl::MutexLock lock(&mu_);
  if (condition_ == Condition::kClosed) condition_ = Condition::kOpen;
}

void Door::Shut() {
  absl::MutexLock lock(&mu_);
  condition_ = Condition::kShut;
}

absl::Status Door::Enter() {
  absl::MutexLock lock(&mu_);
  last_event_ = SteadyNow();
  switch (condition_) {
    case Condition::kClosed:
      return WithReason(absl::UnavailableError("the server is starting; wait until its health is SERVING"),
                        "SERVER_STARTING");
    case Condition::kShut:
      return WithReason(absl::UnavailableError("the server is draining; retry on another replica"), "SERVER_DRAINING");
    case Condition::kOpen:
      break;
  }
  ++inside_;
  return absl::OkStatus();
}

void Door::Leave() {
  absl::MutexLock lock(&mu_);
  --inside_;
  last_event_ = SteadyNow();
}

bool Door::AwaitEmpty(absl::Time deadline) {
  // Looked at again and again: a wait of Abseil's ends when the wall clock says so, which may be set meanwhile.
  for (;;) {
    {
      absl::MutexLock lock(&mu_);
      if (inside_ == 0) return true;
    }
    if (SteadyNow() >= deadline) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
}

void Door::AwaitQuiet(absl::Duration time, absl::Time deadline) {
  for (;;) {
    absl::Time until;
    {
      absl::MutexLock lock(&mu_);
      until = std::min(last_event_ + time, deadline);
    }
    const absl::Duration left = until - SteadyNow();
    if (left <= absl::ZeroDuration()) return;
    absl::SleepFor(left);
  }
}

absl::Status Guarded(const std::function<absl::Status()>& act) {
  try {
    return act();
  } catch (const std::bad_alloc&) {
    return WithReason(absl::ResourceExhaustedError("there is no memory for this request; retry later, or ask for less"),
                      "NO_MEMORY");
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("unexpected: ", error.what()));
  }
}

absl::Status ServerCore::RunBySize(const std::string& connection, size_t bytes, std::function<void()> work) {
  if (!IsShort(bytes)) return workers.Run(connection, std::move(work));
  work();
  return absl::OkStatus();
}

Call::Call(ServerCore& core, grpc::CallbackServerContext* context, const Method& method)
    : core_(core),
      context_(context),
      method_(method.name),
      limits_(LimitsOf(method.size, core.limits)),
      arrival_(SteadyNow()),
      watch_(core.stalls, context->c_call()) {
  deadline_ = SteadyDeadline(context->raw_deadline());
  log.id = MakeCallId();
  log.method = method.name;
  log.peer = context->peer();
  TraceContext trace = ContinueTrace(Values(*context, "traceparent"), Values(*context, "tracestate"));
  context->AddInitialMetadata("traceresponse", trace.ToString());
  log.trace_id = std::move(trace.trace_id);
  log.span_id = std::move(trace.span_id);
  log.parent_span_id = std::move(trace.parent_id);
  log.trace_state = std::move(trace.trace_state);
  admitted_ = Admit(method);
}

absl::Status Call::Admit(const Method& method) {
  PALIMPSEST_RETURN_IF_ERROR(core_.call_rate.Admit(log.peer));
  PALIMPSEST_ASSIGN_OR_RETURN(identity_, IdentityOf(*core_.authenticator, *context_));
  log.owner = identity_.owner;
  PALIMPSEST_RETURN_IF_ERROR(CheckRole(identity_, method.who, method.name));
  return core_.door.Enter();
}

void Call::NoteRead() { log.read_time = SteadyNow() - arrival_; }

Call::~Call() { PALIMPSEST_CHECK(ended_); }

void Call::SetId(const std::string& id) {
  if (std::exchange(id_set_, true)) return;  // a call that is tried again has told it already
  if (IsCallId(id)) log.id = id;
  context_->AddInitialMetadata("x-call-id", log.id);
}

void Call::BeginWait(int64_t bytes) { watch_.Begin(bytes, SteadyNow()); }
void Call::EndWait(int64_t bytes) { watch_.End(bytes, SteadyNow()); }

bool Call::AwaitSession(const absl::Status& status, std::function<void(absl::Status)> then) {
  // The engine lets a session go within one batch; a long prompt's is the longest.
  constexpr absl::Duration kPatience = absl::Seconds(1);
  if (!absl::IsAborted(status) || log.session.empty() || std::exchange(waited_, true)) return false;
  const absl::Time until = SteadyNow() + kPatience;
  // The store calls on whatever thread ends the lease, the engine's as a rule, which has no time for this.
  core_.sessions.AwaitEnding(owner(), log.session, until, [this, then = std::move(then)] {
    const absl::Status taken = core_.workers.Run(log.peer, [then] { then(absl::OkStatus()); });
    if (!taken.ok()) then(taken);
  });
  return true;
}

absl::Status Call::HoldReply(int64_t bytes) { return core_.replies.Take(log.peer, bytes, &reply_); }

void Call::End(const absl::Status& told) {
  ended_ = true;
  const absl::Status status = watch_.cut() ? absl::ResourceExhaustedError(core_.stalls.Reason()) : told;
  // A deadline that passes reaches the server as a cancellation.
  const absl::Time now = SteadyNow();
  const bool late = status.code() == absl::StatusCode::kCancelled && now >= deadline_;
  log.code = std::string(CodeName(late ? absl::StatusCode::kDeadlineExceeded : status.code()));
  log.error = std::string(status.message());
  log.total_time = now - arrival_;
  LogCall(log);
  core_.metrics.CountRequest(method_, log.code, log.total_time);
  if (!log.owner.empty()) {
    core_.metrics.CountOwner(core_.authenticator->LabelOf(log.owner), log.code, log.generated_tokens);
  }
  if (log.read_time > absl::ZeroDuration()) core_.metrics.ObserveRead(method_, log.read_time);
  if (admitted_.ok()) core_.door.Leave();
}

}  // namespace palimpsest
