// What the tests of ops share: poisoned matrices, comparisons, and a run on every SIMD target of the machine. The same
// tests run on a device where one is linked in (TestDevice).
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "kernels/common/random_values.h"
#include "kernels/common/simd.h"
#include "kernels/common/test_device.h"
#include "kernels/common/thread_pool.h"

namespace palimpsest {

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The targets that UseSimdTarget accepts here, the one in use first; for a device, that one alone.
inline std::vector<std::string> SimdTargets() {
  const std::string current = SimdTargetName();
  std::vector<std::string> names = {current};
  if (TestDevice() != nullptr) return names;
  for (const char* name : {"AVX3_BF16", "AVX3", "AVX2", "PORTABLE"}) {
    if (name != current && UseSimdTarget(name)) names.push_back(name);
  }
  UseSimdTarget(current);
  return names;
}

// A TEST_P that runs once per target: INSTANTIATE_TEST_SUITE_P(Targets, FooTest, testing::ValuesIn(SimdTargets())).
class OpTest : public testing::TestWithParam<std::string> {
 protected:
  OpTest() { UseSimdTarget(GetParam()); }
  ~OpTest() override { UseSimdTarget(best_); }

 private:
  const std::string best_ = SimdTargetName();
};

// Rows of `width` values, `stride` apart. What lies between them, and each value not yet set, is NaN: a read or a write
// out of place shows in the comparison of the whole.
struct Matrix {
  int64_t rows = 0;
  int64_t width = 0;
  int64_t stride = 0;
  std::vector<float> values;

  static Matrix Poisoned(int64_t rows, int64_t width, int64_t padding = 3) {
    return {rows, width, width + padding, std::vector<float>(rows * (width + padding), kNaN)};
  }
  static Matrix Random(int64_t rows, int64_t width, uint32_t seed, float deviation = 1.0f, int64_t padding = 3) {
    Matrix m = Poisoned(rows, width, padding);
    const std::vector<float> random = Normal(rows * width, seed, deviation);
    for (int64_t r = 0; r < rows; ++r) std::copy_n(random.data() + r * width, width, m.row(r));
    return m;
  }

  float* data() { return values.data(); }
  const float* data() const { return values.data(); }
  float* row(int64_t r) { return values.data() + r * stride; }
  const float* row(int64_t r) const { return values.data() + r * stride; }
};

// Each value within `relative` of the expected one, or of `floor` where that is larger; NaN equals NaN.
inline testing::AssertionResult Near(std::span<const float> actual, std::span<const float> expected, double relative,
                                     double floor = 1e-30) {
  if (actual.size() != expected.size()) {
    return testing::AssertionFailure() << actual.size() << " values, expected " << expected.size();
  }
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::isnan(actual[i]) && std::isnan(expected[i])) continue;
    if (actual[i] == expected[i]) continue;
    const double allowed = relative * std::max(std::abs(double{expected[i]}), floor);
    if (!(std::abs(double{actual[i]} - double{expected[i]}) <= allowed)) {
      return testing::AssertionFailure() << "value " << i << " is " << actual[i] << ", expected " << expected[i];
    }
  }
  return testing::AssertionSuccess();
}

inline testing::AssertionResult Near(const Matrix& actual, const Matrix& expected, double relative,
                                     double floor = 1e-30) {
  return Near(std::span(actual.values), std::span(expected.values), relative, floor);
}

// Equality of bits: NaN equals itself, zero differs from minus zero.
inline testing::AssertionResult SameBits(std::span<const float> actual, std::span<const float> expected) {
  if (actual.size() != expected.size()) {
    return testing::AssertionFailure() << actual.size() << " values, expected " << expected.size();
  }
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::bit_cast<uint32_t>(actual[i]) != std::bit_cast<uint32_t>(expected[i])) {
      return testing::AssertionFailure() << "value " << i << " is " << actual[i] << ", expected " << expected[i];
    }
  }
  return testing::AssertionSuccess();
}

inline testing::AssertionResult SameBits(const Matrix& actual, const Matrix& expected) {
  return SameBits(std::span(actual.values), std::span(expected.values));
}

}  // namespace palimpsest
