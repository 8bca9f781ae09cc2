#include "server/rpc/call.h"

#include <grpcpp/server_context.h>

#include <algorithm>
#include <chrono>
#include <memory>
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

Call::Call(ServerCore& core, grpc::CallbackServerContext* context, const char* method, const std::string& id)
    : core_(core), method_(method), arrival_(absl::Now()) {
  const std::chrono::system_clock::time_point deadline = context->deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) deadline_ = absl::FromChrono(deadline);
  log.id = IsRequestId(id) ? id : MakeRequestId();
  log.method = method;
  log.peer = context->peer();
  context->AddInitialMetadata("x-request-id", log.id);
  TraceContext trace = ContinueTrace(Values(*context, "traceparent"), Values(*context, "tracestate"));
  context->AddInitialMetadata("traceresponse", trace.ToString());
  log.trace_id = std::move(trace.trace_id);
  log.span_id = std::move(trace.span_id);
  log.parent_span_id = std::move(trace.parent_id);
  log.trace_state = std::move(trace.trace_state);
  admitted_ = core_.call_rate.Admit(log.peer);
  if (admitted_.ok()) admitted_ = core_.door.Enter();
}

Call::~Call() { PALIMPSEST_CHECK(ended_); }

void Call::End(const absl::Status& status) {
  ended_ = true;
  // A deadline that passes reaches the server as a cancellation.
  const absl::Time now = absl::Now();
  const bool late = status.code() == absl::StatusCode::kCancelled && now >= deadline_;
  log.code = std::string(CodeName(late ? absl::StatusCode::kDeadlineExceeded : status.code()));
  log.error = std::string(status.message());
  log.total_time = now - arrival_;
  LogCall(log);
  core_.metrics.CountRequest(method_, log.code, log.total_time);
  if (admitted_.ok()) core_.door.Leave();
}

grpc::ServerUnaryReactor* RunUnary(ServerCore& core, grpc::CallbackServerContext* context, const char* method,
                                   const std::function<absl::Status(CallLog& log)>& handle) {
  Call call(core, context, method);
  const absl::Status status = call.admitted().ok() ? handle(call.log) : call.admitted();
  call.End(status);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* RunSlowUnary(ServerCore& core, grpc::CallbackServerContext* context, const char* method,
                                       std::function<absl::Status(CallLog& log)> handle) {
  auto call = std::make_shared<Call>(core, context, method);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!call->admitted().ok()) {
    call->End(call->admitted());
    reactor->Finish(ToGrpc(call->admitted()));
    return reactor;
  }
  core.tasks.Run([call, reactor, handle = std::move(handle)] {
    const absl::Status status = handle(call->log);
    call->End(status);
    reactor->Finish(ToGrpc(status));
  });
  return reactor;
}

}  // namespace palimpsest
