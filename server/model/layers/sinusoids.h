// The sinusoids that tell positions (1706.03762).
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/common/aligned_buffer.h"

namespace palimpsest {

// 10000^(-2j/D) for j < D / 2, rounded as the toolkit of 2102.11174 has them.
inline AlignedArray<float> SinusoidFrequencies(int64_t hidden) {
  AlignedArray<float> frequencies(hidden / 2);
  for (int64_t j = 0; j < frequencies.size(); ++j) {
    frequencies[j] = 1.0f / std::pow(10000.0f, static_cast<float>(2 * j) / static_cast<float>(hidden));
  }
  return frequencies;
}

}  // namespace palimpsest
