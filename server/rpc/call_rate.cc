#include "server/rpc/call_rate.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/steady_clock.h"
#include "server/errors/errors.h"

namespace palimpsest {

absl::Status CallRate::Admit(const std::string& peer) {
  if (per_second_ <= 0) return absl::OkStatus();
  absl::Duration wait;
  {
    absl::MutexLock lock(&mu_);
    const absl::Time now = SteadyNow();
    if (rates_.Take(peer, now)) return absl::OkStatus();
    wait = rates_.UntilNext(peer, now);
  }
  return WithRetryAfter(
      WithReason(absl::ResourceExhaustedError(absl::StrCat("this connection has begun more than ", per_second_,
                                                           " calls a second (--max_calls_per_second)")),
                 "CALL_RATE"),
      std::max(wait, absl::Milliseconds(100)));
}

}  // namespace palimpsest
