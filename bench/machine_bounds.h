// What this machine can do at best, measured: the bounds that benchmarks are held against.
#pragma once

#include "kernels/common/thread_pool.h"

namespace palimpsest {

struct MachineBounds {
  double read_bytes_per_second = 0.0;    // all threads of the pool together, from memory
  double update_bytes_per_second = 0.0;  // the same, each byte read and written back counting two
  double f32_flops_per_second = 0.0;     // multiply-adds count two; all threads together, from registers
};

// What a second is: of the wall clock, or of the calling thread's processor time. The second leaves out the time in
// which others had the processor; it means something for a pool of one thread only. Compare figures and bounds by one
// clock.
enum class BenchClock { kWall, kThread };

// Takes about a second; the best of several rounds, since whatever else runs on the machine only takes away.
MachineBounds MeasureMachineBounds(ThreadPool& pool, BenchClock clock = BenchClock::kWall);

}  // namespace palimpsest
