// The device that a test program runs on. Each program links one definition or the other (palimpsest_device_test in
// cmake/palimpsest.cmake): on the processor, both are null.
#pragma once

#include <memory>

#include "kernels/common/device.h"
#include "kernels/common/thread_pool.h"

namespace palimpsest {

// For tests of ops, the same for all: it sees all that is on the heap, and an op's results are there when it returns.
Device* TestDevice();

// A device of one's own, which does not wait: for tests of what uses one. Ends the program if there is none.
std::shared_ptr<Device> OpenTestDevice();

// Where the op under test runs.
inline ExecContext On(ThreadPool& pool) { return {.pool = &pool, .device = TestDevice()}; }

}  // namespace palimpsest
