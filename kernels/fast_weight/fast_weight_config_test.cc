// Shapes of launches, which no device is needed for.
#include "kernels/fast_weight/fast_weight_config.h"

#include <gtest/gtest.h>

#include <vector>

namespace palimpsest {
namespace {

TEST(FastWeightConfig, EveryRowOfAStateHasOneThreadGroup) {
  for (int32_t K = 1; K <= 300; ++K) {
    for (const int32_t V : {1, 5, 16, 40, 64, 128, 200, 256}) {
      const FastWeightShape shape{.heads = 1, .value_heads = 1, .key_dim = K, .value_dim = V};
      const FastWeightRowsConfig config = ChooseRowsConfig(shape);
      ASSERT_EQ(config.threads % 32, 0);
      ASSERT_LE(config.threads, FastWeightRowsConfig::kMostThreads);
      ASSERT_GE(config.rows_per_block * config.blocks_per_head, V);
      ASSERT_LT(config.rows_per_block * (config.blocks_per_head - 1), V) << "a block without work";
      const int32_t lanes = config.key_dim == 0 ? 32 : K / FastWeightRowsConfig::kRowFloats;
      const int32_t rows = config.key_dim == 0 ? 1 : FastWeightRowsConfig::kRowsPerThread;
      ASSERT_EQ(config.rows_per_block, config.threads / lanes * rows);
      ASSERT_EQ(config.key_dim, HasRegisterForm(K) ? K : 0);
    }
  }
}

TEST(FastWeightConfig, AChunksArraysLieApartAndFitTheDevicesTheyAreFor) {
  for (const int32_t K : {64, 128, 256}) {
    const FastWeightChunkLayout layout = ChunkLayoutOf(K);
    const std::vector<int32_t> begins = {layout.k, layout.q,    layout.state, layout.key_scores, layout.query_scores,
                                         layout.u, layout.beta, layout.decay};
    for (size_t i = 1; i < begins.size(); ++i) EXPECT_GT(begins[i], begins[i - 1]);
    EXPECT_EQ(layout.decay % 2, 0) << "of doubles";
    EXPECT_EQ(layout.key_stride % 32, 4) << "lanes of 8 rows and 4 columns meet no bank twice";
    EXPECT_LE(layout.bytes, 227 << 10) << "a block of compute capability 9.0";
  }
  EXPECT_TRUE(HasChunkForm(128, UpdateRule::kDelta, 163 << 10)) << "a block of compute capability 8.0";
  EXPECT_FALSE(HasChunkForm(256, UpdateRule::kDelta, 163 << 10));
  EXPECT_FALSE(HasChunkForm(48, UpdateRule::kDelta, 227 << 10));
  EXPECT_FALSE(HasChunkForm(128, UpdateRule::kChannelGatedDelta, 227 << 10));
}

}  // namespace
}  // namespace palimpsest
