#pragma once

namespace palimpsest {

// The least multiple of `unit` > 0 that is not below `value` >= 0.
template <typename T>
constexpr T RoundUp(T value, T unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace palimpsest
