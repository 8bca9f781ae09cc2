#include "server/rpc/stalls.h"

#include <grpc/grpc.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"

namespace palimpsest {
namespace {

constexpr int64_t kProgressBytes = int64_t{64} << 10;
constexpr int64_t kLongMessageBytes = int64_t{1} << 20;

}  // namespace

Stalls::Watch::Watch(Stalls& stalls, grpc_call* call) : stalls_(stalls), call_(call) {
  absl::MutexLock lock(&stalls_.mu_);
  stalls_.watches_.insert(this);
}

Stalls::Watch::~Watch() {
  absl::MutexLock lock(&stalls_.mu_);
  stalls_.watches_.erase(this);
}

void Stalls::Watch::Begin(int64_t bytes, absl::Time now) {
  absl::MutexLock lock(&stalls_.mu_);
  since_ = now;
  allowed_ = stalls_.most_ * std::max<int64_t>(1, bytes / kLongMessageBytes);
}

void Stalls::Watch::End(int64_t bytes, absl::Time now) {
  absl::MutexLock lock(&stalls_.mu_);
  waited_ += now - since_;
  moved_ += bytes;
  since_ = absl::InfiniteFuture();
  if (moved_ < kProgressBytes) return;
  waited_ = absl::ZeroDuration();
  moved_ = 0;
}

bool Stalls::Watch::cut() const {
  absl::MutexLock lock(&stalls_.mu_);
  return cut_;
}

int32_t Stalls::Cut(absl::Time now) {
  std::vector<grpc_call*> calls;
  {
    absl::MutexLock lock(&mu_);
    for (Watch* watch : watches_) {
      if (watch->cut_ || watch->since_ > now || watch->waited_ + (now - watch->since_) < watch->allowed_) continue;
      watch->cut_ = true;
      grpc_call_ref(watch->call_);  // it may end as soon as the lock is released
      calls.push_back(watch->call_);
    }
  }
  const std::string reason = Reason();
  for (grpc_call* call : calls) {
    grpc_call_cancel_with_status(call, GRPC_STATUS_RESOURCE_EXHAUSTED, reason.c_str(), nullptr);
    grpc_call_unref(call);
  }
  return static_cast<int32_t>(calls.size());
}

std::string Stalls::Reason() const {
  return absl::StrCat("nothing was read or sent for ", absl::FormatDuration(most_),
                      " (--max_stall); read replies as they come, or cancel");
}

}  // namespace palimpsest
