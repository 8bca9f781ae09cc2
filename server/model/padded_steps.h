// The sizes that a device's batches of steps are filled up to, so that few recordings serve all of them.
#pragma once

#include <cstdint>

namespace palimpsest {

// The least such size that `steps` >= 1 fits into: 1, 2, 4, 8, then eighths of the next power of two. At most a seventh
// more than asked for from 8 on.
constexpr int32_t PaddedSteps(int32_t steps) {
  int32_t power = 1;
  while (power < steps) power *= 2;
  if (power <= 8) return power;
  const int32_t unit = power / 16;
  return (steps + unit - 1) / unit * unit;
}

}  // namespace palimpsest
