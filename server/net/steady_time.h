// Time that only goes forward, whatever the clock on the wall does.
#pragma once

#include <chrono>

#include "absl/time/time.h"

namespace palimpsest {

// A point on a scale of its own: good for differences between two of them only.
inline absl::Time SteadyTime() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace palimpsest
