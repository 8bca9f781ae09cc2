// Shapes of launches, which no device is needed for.
#include "kernels/fast_weight/fast_weight_config.h"

#include <gtest/gtest.h>

#include <utility>
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
  for (const auto& [K, values] : {std::pair{64, 64}, {128, 32}, {128, 64}, {256, 32}}) {
    const FastWeightChunkLayout layout = ChunkLayoutOf(K, values);
    const std::vector<int32_t> begins = {layout.k,       layout.q,    layout.state,      layout.v,      layout.u,
                                         layout.inverse, layout.beta, layout.from_start, layout.to_end, layout.sum};
    for (size_t i = 1; i < begins.size(); ++i) {
      EXPECT_GT(begins[i], begins[i - 1]);
      EXPECT_EQ(begins[i] % 4, 0) << "read 16 bytes at a time";
    }
    EXPECT_EQ(layout.key_stride % 32, 4) << "lanes of 8 rows and 4 columns meet no bank twice";
    EXPECT_EQ(layout.value_stride % 32, 8) << "nor do those of 4 rows and 4 pairs";
    EXPECT_LE(layout.bytes, 227 << 10) << "a block of compute capability 9.0";
  }
  EXPECT_TRUE(HasChunkForm(128, UpdateRule::kDelta, 1, 163 << 10)) << "a block of compute capability 8.0";
  EXPECT_FALSE(HasChunkForm(256, UpdateRule::kDelta, 1, 163 << 10));
  EXPECT_FALSE(HasChunkForm(48, UpdateRule::kDelta, 1, 227 << 10));
  EXPECT_FALSE(HasChunkForm(128, UpdateRule::kChannelGatedDelta, 1, 227 << 10));
  EXPECT_FALSE(HasChunkForm(128, UpdateRule::kChannelGatedSum, 1, 227 << 10));
}

TEST(FastWeightConfig, SeveralWritesToARowGoRowByRowAndAreWrittenAtEveryStep) {
  EXPECT_FALSE(HasChunkForm(128, UpdateRule::kGatedDelta, 2, 227 << 10));
  const FastWeightShape shape{.heads = 1, .value_heads = 1, .key_dim = 128, .value_dim = 128};
  EXPECT_TRUE(HasReplayForm(shape, UpdateRule::kGatedDelta, 1));
  EXPECT_FALSE(HasReplayForm(shape, UpdateRule::kGatedDelta, 2));
}

TEST(FastWeightConfig, ManyHeadsHaveMoreValuesToABlock) {
  const FastWeightShape few{.heads = 16, .value_heads = 16, .key_dim = 128, .value_dim = 128};
  const FastWeightShape many{.heads = 16, .value_heads = 64, .key_dim = 128, .value_dim = 128};
  EXPECT_EQ(ChunkValuesOf(few, 1), 32);
  EXPECT_EQ(ChunkValuesOf(few, 8), 64);
  EXPECT_EQ(ChunkValuesOf(many, 1), 64);
}

}  // namespace
}  // namespace palimpsest
