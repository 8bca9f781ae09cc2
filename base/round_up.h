// Sizes in whole units.
#pragma once

#include <type_traits>

namespace palimpsest {

// The least multiple of `unit` > 0 that is not below `value` >= 0.
template <typename T>
constexpr T RoundUp(T value, std::type_identity_t<T> unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace palimpsest
