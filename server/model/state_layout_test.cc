#include "server/model/state_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace palimpsest {
namespace {

using ::testing::ElementsAre;

ModelConfig Parsed(const std::string& text) {
  absl::StatusOr<ModelConfig> config = ModelConfig::FromJson(text);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig();
}

TEST(StateLayout, NamesAndPlacesThePieces) {
  const StateLayout layout = StateLayout::FromConfig(
      Parsed(R"({"model_type": "gated_deltanet", "num_hidden_layers": 2, "hidden_size": 32, "num_heads": 1,
                 "num_v_heads": 3, "head_dim": 5, "expand_v": 1.5, "conv_size": 3})"));
  // Values are trunc(5 * 1.5) = 7 wide. 3 * 7 * 5 floats are 420 bytes; 2 * (5 + 5 + 21) floats are 248 bytes.
  ASSERT_EQ(layout.pieces().size(), 4);
  const StatePieceSpec& weights = layout.pieces()[0];
  EXPECT_EQ(weights.name, "layers.0.fast_weight");
  EXPECT_EQ(weights.dtype, DType::kF32);
  EXPECT_THAT(weights.shape, ElementsAre(3, 7, 5));
  EXPECT_EQ(weights.offset, 0);
  EXPECT_EQ(weights.bytes, 420);
  const StatePieceSpec& tail = layout.pieces()[1];
  EXPECT_EQ(tail.name, "layers.0.conv_tail");
  EXPECT_THAT(tail.shape, ElementsAre(2, 31));
  EXPECT_EQ(tail.offset, 448);
  EXPECT_EQ(tail.bytes, 248);
  EXPECT_EQ(layout.pieces()[2].name, "layers.1.fast_weight");
  EXPECT_EQ(layout.pieces()[2].offset, 704);
  EXPECT_EQ(layout.pieces()[3].name, "layers.1.conv_tail");
  EXPECT_EQ(layout.pieces()[3].offset, 1152);
  EXPECT_EQ(layout.bytes(), 1408);
}

TEST(StateLayout, HasTheSizesOfPublishedModels) {
  // 24 layers of 16 heads of 128 x 128, and tails of 3 rows of 6144 channels, all float32.
  EXPECT_EQ(StateLayout::FromConfig(Parsed(R"({"model_type": "delta_net"})")).bytes(), 25'165'824 + 2 * 884'736);
  EXPECT_EQ(StateLayout::FromConfig(Parsed(R"({"model_type": "gated_deltanet"})")).bytes(), 66'060'288 + 2 * 774'144);
}

TEST(StateLayout, KeepsFastWeightsAsBFloat16IfAsked) {
  const ModelConfig config = Parsed(R"({"model_type": "delta_net"})");
  const StateLayout floats = StateLayout::FromConfig(config), halves = StateLayout::FromConfig(config, DType::kBF16);
  EXPECT_EQ(halves.pieces()[0].dtype, DType::kBF16);
  EXPECT_EQ(halves.pieces()[1].dtype, DType::kF32) << halves.pieces()[1].name;
  EXPECT_EQ(halves.bytes(), 25'165'824 / 2 + 2 * 884'736);
  EXPECT_NE(halves.hash(), floats.hash());
}

TEST(StateLayout, HasNoTailWithoutPastInputs) {
  for (const char* text :
       {R"({"model_type": "delta_net", "use_short_conv": false})", R"({"model_type": "delta_net", "conv_size": 1})"}) {
    const StateLayout layout = StateLayout::FromConfig(Parsed(text));
    EXPECT_EQ(layout.pieces().size(), 24);
    EXPECT_EQ(layout.bytes(), 25'165'824);
  }
}

TEST(StateLayout, PiecesAreAlignedAndDoNotOverlap) {
  const StateLayout layout = StateLayout::FromConfig(
      Parsed(R"({"model_type": "delta_net", "hidden_size": 9, "num_heads": 3, "intermediate_size": 4})"));
  int64_t end = 0;
  for (const StatePieceSpec& piece : layout.pieces()) {
    EXPECT_EQ(piece.offset % 64, 0);
    EXPECT_GE(piece.offset, end);
    EXPECT_LT(piece.offset - end, 64);
    end = piece.offset + piece.bytes;
  }
  EXPECT_EQ(layout.bytes() % 64, 0);
  EXPECT_GE(layout.bytes(), end);
}

// Snapshots carry the hash: another value for the same layout would orphan every snapshot taken before.
TEST(StateLayout, HashStaysWhatItIs) {
  const StateLayout layout = StateLayout::FromConfig(
      Parsed(R"({"model_type": "delta_net", "hidden_size": 8, "num_heads": 1, "num_hidden_layers": 1,
                 "use_short_conv": false})"));
  // By hand: FNV-1a over 1, "layers.0.fast_weight" and "f32" with their lengths, 3, 1, 8, 8, 0, 256.
  EXPECT_EQ(layout.hash(), 0x8FF6D8A2547A7B40u);
}

TEST(StateLayout, HashTellsLayoutsApart) {
  std::set<uint64_t> hashes;
  const std::vector<std::string> keys = {R"("hidden_size": 64)",
                                         R"("hidden_size": 128)",
                                         R"("hidden_size": 64, "num_heads": 8)",
                                         R"("hidden_size": 64, "expand_k": 0.5)",
                                         R"("hidden_size": 64, "expand_v": 0.5)",
                                         R"("hidden_size": 64, "conv_size": 3)",
                                         R"("hidden_size": 64, "use_short_conv": false)",
                                         R"("hidden_size": 64, "num_hidden_layers": 23)"};
  for (const std::string& key : keys) {
    hashes.insert(StateLayout::FromConfig(Parsed(R"({"model_type": "delta_net", )" + key + "}")).hash());
  }
  EXPECT_EQ(hashes.size(), keys.size());
  // What is not part of a state does not change the layout.
  EXPECT_EQ(StateLayout::FromConfig(Parsed(R"({"model_type": "delta_net", "hidden_size": 64, "vocab_size": 300,
                                              "qk_norm": "sum", "use_gate": true})"))
                .hash(),
            StateLayout::FromConfig(Parsed(R"({"model_type": "delta_net", "hidden_size": 64})")).hash());
}

}  // namespace
}  // namespace palimpsest
