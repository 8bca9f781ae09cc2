// Whether the threads that a server needs can be had.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace palimpsest {

// RESOURCE_EXHAUSTED, with the limits that it may be (of the user, of a control group): the system gives no thread.
absl::StatusOr<std::thread> StartThread(std::function<void()> run);

// Whether `count` more threads can be had now: it starts so many at once, and ends them. Libraries that find no thread
// end the process, so this is asked before they need theirs. RESOURCE_EXHAUSTED, with how many there were.
absl::Status CheckThreads(int32_t count);

// "RLIMIT_NPROC 17 (ulimit -u), pids.max 100 of its control group": what bounds the threads of this process.
std::string ThreadLimits();

}  // namespace palimpsest
