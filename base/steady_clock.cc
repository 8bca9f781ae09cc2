#include "base/steady_clock.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>

#include "absl/time/clock.h"

namespace palimpsest {
namespace {

// What the two clocks may drift apart before times are told anew.
constexpr int64_t kStepNanoseconds = 100'000'000;

}  // namespace

absl::Time SteadyNow() {
  using Clock = std::chrono::steady_clock;
  static const Clock::time_point begin = Clock::now();
  static const absl::Time wall = absl::Now();
  return wall + absl::FromChrono(Clock::now() - begin);
}

absl::Time ToWallTime(absl::Time steady) {
  static std::atomic<int64_t> told{0};
  const int64_t offset = absl::ToInt64Nanoseconds(absl::Now() - SteadyNow());
  if (std::abs(offset - told.load()) >= kStepNanoseconds) told.store(offset);
  return steady + absl::Nanoseconds(told.load());
}

}  // namespace palimpsest
