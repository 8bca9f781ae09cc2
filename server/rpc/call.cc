#include "server/rpc/call.h"

#include <grpcpp/server_context.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <new>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "kernels/common/check.h"
#include "server/rpc/checks.h"
#include "server/rpc/status.h"
#include "server/rpc/trace_context.h"

namespace palimpsest {
namespace {

std::string MakeRequestId() {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  return absl::StrFormat("%016x", generator());
}

std::vector<absl::string_view> Values(const grpc::CallbackServerContext& context, const char* key) {
  std::vector<absl::string_view> values;
  const auto [begin, end] = context.client_metadata().equal_range(key);
  for (auto it = begin; it != end; ++it) values.emplace_back(it->second.data(), it->second.size());
  return values;
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
  last_event_ = absl::Now();
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
  last_event_ = absl::Now();
}

bool Door::AwaitEmpty(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithDeadline(absl::Condition(
                                   +[](int64_t* inside) { return *inside == 0; }, &inside_),
                               deadline);
}

void Door::AwaitQuiet(absl::Duration time, absl::Time deadline) {
  for (;;) {
    absl::Time until;
    {
      absl::MutexLock lock(&mu_);
      until = std::min(last_event_ + time, deadline);
    }
    const absl::Duration left = until - absl::Now();
    if (left <= absl::ZeroDuration()) return;
    absl::SleepFor(left);
  }
}

absl::Status Guarded(const std::function<absl::Status()>& act) {
  try {
    return act();
  } catch (const std::bad_alloc&) {
    return WithReason(absl::ResourceExhaustedError("there is no memory for this request; retry later, or ask for less"),
                      "OUT_OF_MEMORY");
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("unexpected: ", error.what()));
  }
}

absl::Status ServerCore::RunBySize(size_t bytes, std::function<void()> work) {
  if (!IsShort(bytes)) return workers.Run(std::move(work));
  work();
  return absl::OkStatus();
}

Call::Call(ServerCore& core, grpc::CallbackServerContext* context, const Method& method)
    : core_(core),
      context_(context),
      method_(method.name),
      limits_(LimitsOf(method.size, core.limits)),
      arrival_(absl::Now()),
      watch_(core.stalls, context->c_call()) {
  const std::chrono::system_clock::time_point deadline = context->deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) deadline_ = absl::FromChrono(deadline);
  log.id = MakeRequestId();
  log.method = method.name;
  log.peer = context->peer();
  TraceContext trace = ContinueTrace(Values(*context, "traceparent"), Values(*context, "tracestate"));
  context->AddInitialMetadata("traceresponse", trace.ToString());
  log.trace_id = std::move(trace.trace_id);
  log.span_id = std::move(trace.span_id);
  log.parent_span_id = std::move(trace.parent_id);
  log.trace_state = std::move(trace.trace_state);
  admitted_ = core_.door.Enter();
}

void Call::NoteRead() { log.read_time = absl::Now() - arrival_; }

Call::~Call() { PALIMPSEST_CHECK(ended_); }

void Call::SetId(const std::string& id) {
  if (IsRequestId(id)) log.id = id;
  context_->AddInitialMetadata("x-request-id", log.id);
}

void Call::BeginWait(int64_t bytes) { watch_.Begin(bytes, absl::Now()); }
void Call::EndWait(int64_t bytes) { watch_.End(bytes, absl::Now()); }

absl::Status Call::HoldReply(int64_t bytes) { return core_.replies.Take(log.peer, bytes, &reply_); }

void Call::End(const absl::Status& told) {
  ended_ = true;
  const absl::Status status = watch_.cut() ? absl::ResourceExhaustedError(core_.stalls.Reason()) : told;
  // A deadline that passes reaches the server as a cancellation.
  const absl::Time now = absl::Now();
  const bool late = status.code() == absl::StatusCode::kCancelled && now >= deadline_;
  log.code = std::string(CodeName(late ? absl::StatusCode::kDeadlineExceeded : status.code()));
  log.error = std::string(status.message());
  log.total_time = now - arrival_;
  LogCall(log);
  core_.metrics.CountRequest(method_, log.code, log.total_time);
  if (log.read_time > absl::ZeroDuration()) core_.metrics.ObserveRead(method_, log.read_time);
  if (admitted_.ok()) core_.door.Leave();
}

}  // namespace palimpsest
