// How many calls one connection may begin in a second. What is over it is refused before any work is done.
#pragma once

#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "server/net/rate_by_name.h"

namespace palimpsest {

// Thread-safe.
class CallRate {
 public:
  // Twice `per_second` may come at once. 0: not bounded.
  explicit CallRate(double per_second) : per_second_(per_second), rates_(per_second, 2 * per_second) {}

  // Asked at the beginning of each call, before anything is done for it. `peer` is grpc::ServerContext::peer(), which
  // names one connection; those over a unix socket have one name, and so one rate together.
  // RESOURCE_EXHAUSTED (CALL_RATE): too many, with the time after which to try again.
  absl::Status Admit(const std::string& peer);

 private:
  const double per_second_;
  absl::Mutex mu_;
  RateByName rates_ ABSL_GUARDED_BY(mu_);
};

}  // namespace palimpsest
