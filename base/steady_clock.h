// The clock that durations are measured on: times to live, deadlines, ages. A wall clock that is set, by hours even,
// neither shortens nor prolongs any of them.
#pragma once

#include "absl/time/time.h"

namespace palimpsest {

// The wall clock's time when the process began, plus what a clock that never jumps has counted since. Comparable within
// this process only. Thread-safe.
absl::Time SteadyNow();

// A steady time as the wall clock has it now, for what people and other machines read. The same time gives the same
// answer until the wall clock is set: it follows steps of a tenth of a second and more. Thread-safe.
absl::Time ToWallTime(absl::Time steady);

}  // namespace palimpsest
