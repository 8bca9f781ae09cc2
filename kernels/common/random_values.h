// Inputs for the tests and benchmarks of ops.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace palimpsest {

// `n` values of a normal distribution with mean 0; the same ones for the same seed.
inline std::vector<float> Normal(int64_t n, uint32_t seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

}  // namespace palimpsest
