// How much elementwise work is worth a thread.
#pragma once

#include <algorithm>
#include <cstdint>

namespace palimpsest {

// The grain for ThreadPool::ParallelFor over rows of `row_floats` values: fewer rows than that cost more to hand to
// another thread than to do.
inline int64_t RowsPerTask(int64_t row_floats) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, row_floats));
}

}  // namespace palimpsest
