#include "server/model/padded_steps.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace palimpsest {
namespace {

TEST(PaddedSteps, FitsAndWastesLittle) {
  for (int32_t steps = 1; steps <= 5000; ++steps) {
    const int32_t padded = PaddedSteps(steps);
    ASSERT_GE(padded, steps);
    ASSERT_GE(padded, PaddedSteps(std::max(1, steps - 1)));
    ASSERT_EQ(PaddedSteps(padded), padded) << "a size is its own";
    if (steps > 8) {
      ASSERT_LE(7 * padded, 8 * steps + 7) << steps;
    }
  }
}

TEST(PaddedSteps, AFewSizesServeManyBatches) {
  std::set<int32_t> sizes;
  for (int32_t steps = 1; steps <= 1024; ++steps) sizes.insert(PaddedSteps(steps));
  EXPECT_EQ(*sizes.begin(), 1);
  EXPECT_LE(sizes.size(), 64);
}

}  // namespace
}  // namespace palimpsest
