#include "clients/cpp/attempts.h"

#include <grpc/support/time.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "clients/cpp/status.h"

namespace palimpsest::client {
namespace {

constexpr absl::Duration kShortestWait = absl::Milliseconds(10);

absl::Status WithCure(const absl::Status& status, absl::string_view cure) {
  absl::Status result(status.code(), absl::StrCat(status.message(), "\n  ", cure));
  status.ForEachPayload(
      [&result](absl::string_view url, const absl::Cord& payload) { result.SetPayload(url, payload); });
  return result;
}

// Whether the server says that it has done nothing, and when to come back.
bool IsRefusal(const absl::Status& status) {
  return (absl::IsAborted(status) || absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) &&
         RetryDelay(status).has_value();
}

}  // namespace

void Cancellation::Cancel() {
  std::vector<std::shared_ptr<CallInProgress>> calls;
  {
    absl::MutexLock lock(&mu_);
    cancelled_ = true;
    calls = calls_;
  }
  // Without the lock: gRPC may run the end of a call, and with it Remove, inside.
  for (const auto& call : calls) call->Cancel();
}

bool Cancellation::cancelled() const {
  absl::MutexLock lock(&mu_);
  return cancelled_;
}

void Cancellation::Add(const std::shared_ptr<CallInProgress>& call) {
  absl::MutexLock lock(&mu_);
  calls_.push_back(call);
  if (cancelled_) call->Cancel();  // before the call has begun there is nothing to run
}

void Cancellation::Remove(const std::shared_ptr<CallInProgress>& call) {
  absl::MutexLock lock(&mu_);
  calls_.erase(std::remove(calls_.begin(), calls_.end(), call), calls_.end());
}

void CallInProgress::Cancel() {
  std::shared_ptr<grpc::ClientContext> context;
  {
    absl::MutexLock lock(&mu_);
    cancelled_ = true;
    context = context_;
  }
  if (context != nullptr) context->TryCancel();
}

bool CallInProgress::cancelled() const {
  absl::MutexLock lock(&mu_);
  return cancelled_;
}

void CallInProgress::Begin(std::shared_ptr<grpc::ClientContext> context) {
  absl::MutexLock lock(&mu_);
  context_ = std::move(context);
  if (cancelled_) context_->TryCancel();
}

void CallInProgress::Sleep(absl::Duration time) {
  absl::MutexLock lock(&mu_);
  mu_.AwaitWithTimeout(absl::Condition(&cancelled_), time);
}

Attempts::Attempts(const Peer& peer, const CallOptions& options, std::string session)
    : peer_(peer), options_(options), session_(std::move(session)) {
  if (options_.cancellation != nullptr) options_.cancellation->Add(call_);
}

Attempts::~Attempts() {
  if (options_.cancellation != nullptr) options_.cancellation->Remove(call_);
}

grpc::ClientContext* Attempts::Next() {
  ++made_;
  context_ = std::make_shared<grpc::ClientContext>();
  if (options_.timeout != absl::InfiniteDuration()) {
    // On the steady clock, which nobody sets.
    const gpr_timespec left = gpr_time_from_nanos(absl::ToInt64Nanoseconds(TimeLeft()), GPR_TIMESPAN);
    context_->set_deadline(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), left));
  }
  if (!session_.empty()) AddMetadata("x-goog-request-params", absl::StrCat("session=", session_));
  AddMetadata("traceparent", options_.traceparent);
  AddMetadata("tracestate", options_.tracestate);
  AddMetadata("authorization", peer_.authorization);
  call_->Begin(context_);
  return context_.get();
}

void Attempts::AddMetadata(const char* key, const std::string& value) {
  const bool printable = std::all_of(value.begin(), value.end(), [](char c) { return c >= ' ' && c <= '~'; });
  if (printable && !value.empty()) context_->AddMetadata(key, value);
}

absl::Status Attempts::ToStatus(const grpc::Status& grpc_status) const {
  const absl::Status status = FromGrpc(grpc_status);
  // What the server says of itself has a reason; only what the connection says may be the proxy's doing.
  if (absl::IsUnavailable(status) && !peer_.proxy.empty() && ErrorReason(status).empty()) {
    return WithCure(status, peer_.proxy);
  }
  if (absl::IsUnauthenticated(status)) {
    return WithCure(status,
                    peer_.authorization.empty() ? "no token was sent" : "the token that was sent is not accepted");
  }
  return status;
}

bool Attempts::WaitToRetry(absl::Status& status) {
  if (!IsRefusal(status) || made_ >= options_.retry.max_attempts) return false;
  absl::BitGen gen;
  const absl::Duration wait =
      std::max(*RetryDelay(status), kShortestWait) * std::ldexp(1.0, made_ - 1) * absl::Uniform(gen, 1.0, 1.25);
  const absl::Duration next = Elapsed() + wait;
  if (next > options_.retry.max_time || next >= options_.timeout) return false;
  call_->Sleep(wait);
  if (!call_->cancelled()) return true;
  status = absl::CancelledError("cancelled while waiting to try again");
  return false;
}

}  // namespace palimpsest::client
