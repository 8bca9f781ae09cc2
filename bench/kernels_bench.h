// What the benchmarks of ops share.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdint>
#include <vector>

#include "bench/machine_bounds.h"
#include "kernels/common/random_values.h"
#include "kernels/common/thread_pool.h"

namespace palimpsest {

struct Machine {
  ThreadPool pool;
  MachineBounds bounds;
  explicit Machine(int threads)
      : pool(threads), bounds(MeasureMachineBounds(pool, threads == 1 ? BenchClock::kThread : BenchClock::kWall)) {}
};

inline void Count(benchmark::State& state, const MachineBounds& bounds, double bytes, double bytes_per_second,
                  double flops) {
  using benchmark::Counter;
  const auto rate = Counter::kIsIterationInvariantRate;
  state.counters["bytes_per_second"] = Counter(bytes, rate, Counter::kIs1000);
  state.counters["memory_share"] = Counter(bytes / bytes_per_second, rate);
  state.counters["flops_per_second"] = Counter(flops, rate, Counter::kIs1000);
  state.counters["f32_share"] = Counter(flops / bounds.f32_flops_per_second, rate);
}

// The mixers of 2102.11174: mixers_bench.cc.
void RegisterMixers(Machine& machine);

}  // namespace palimpsest
