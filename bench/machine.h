// What this machine can do: the bounds that the benchmarks compare with.
#pragma once

#include "kernels/common/thread_pool.h"

namespace palimpsest {

struct Machine {
  double read_bytes_per_second = 0;  // streaming reads from memory, all threads of the pool
  double f32_flops_per_second = 0;   // independent multiply-adds in registers, all threads of the pool
};

// Takes the best of several short runs, about a second in all.
Machine MeasureMachine(ThreadPool& pool);

}  // namespace palimpsest
