// The systems of 2102.11174 against their official code: log-probabilities of imported checkpoints that the toolkit
// trained, over 512 tokens, however the tokens are fed. How the goldens are made: tests/golden_paper/README.md.
#include "server/model/testing/paper_golden.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/common/test_device.h"
#include "server/model/model.h"
#include "server/model/testing/model_runner.h"

namespace palimpsest {
namespace {

class PaperGoldenTest : public ::testing::TestWithParam<testing::PaperGolden> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Model>> model =
        Model::Load(GetParam().folder, {.math = ModelOptions::Math::kF32, .device = OpenTestDevice()});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    ASSERT_GE(next_logprob_.size(), 511);
    ASSERT_EQ(tokens_.size(), next_logprob_.size() + 1);
  }

  // Log-probabilities of tokens_[1 ..], fed in pieces of these lengths, the last repeated, from a fresh state for each
  // segment.
  std::vector<double> LogProbabilities(const std::vector<int32_t>& lengths) {
    const int32_t vocabulary = model_->config().vocabulary;
    const auto count = static_cast<int32_t>(next_logprob_.size());
    std::vector<double> result;
    auto runner = std::make_unique<testing::ModelRunner>(*model_, 1);
    size_t piece = 0;
    int64_t taken = 0;
    for (int32_t at = 0; at < count;) {
      int32_t length = std::min(lengths[std::min(piece++, lengths.size() - 1)], count - at);
      if (segment_ > 0) {
        if (at % segment_ == 0) {
          runner = std::make_unique<testing::ModelRunner>(*model_, 1);
          taken = 0;
        }
        length = std::min(length, segment_ - at % segment_);
      }
      // All log-probabilities in every second piece, only those of the targets in the others.
      const bool all = piece % 2 == 0;
      const std::vector<int32_t> targets(tokens_.begin() + at + 1, tokens_.begin() + at + 1 + length);
      testing::ModelRunner::Piece next{.tokens = std::span(tokens_).subspan(at, length), .first_position = taken};
      if (!all) next.targets = targets;
      const std::vector<float> logits = runner->Forward({&next, 1});
      for (int32_t row = 0; row < length; ++row) {
        const auto begin = logits.begin() + int64_t{row} * vocabulary;
        const double largest = *std::max_element(begin, begin + vocabulary);
        double sum = 0;
        for (int32_t i = 0; i < vocabulary; ++i) sum += std::exp(begin[i] - largest);
        result.push_back(begin[targets[row]] - largest - std::log(sum));
      }
      at += length;
      taken += length;
    }
    return result;
  }

  void ExpectGolden(const std::vector<int32_t>& lengths) {
    // DPFP under the sum rule divides by numbers of the order of eps at a text's first positions.
    const auto* const mixer = std::get_if<FastWeightConfig>(&model_->config().layers[0].mixer);
    const bool ill =
        mixer != nullptr && mixer->features.map == FeatureMapKind::kDpfp && mixer->rule == UpdateRule::kSum;
    const std::vector<double> logprobs = LogProbabilities(lengths);
    double worst = 0;
    for (size_t t = 0; t < next_logprob_.size(); ++t) {
      ASSERT_TRUE(std::isfinite(logprobs[t])) << "after token " << t;
      worst = std::max(worst, std::fabs(logprobs[t] - next_logprob_[t]));
    }
    EXPECT_LT(worst, ill ? 5e-3 : 1e-4);
    RecordProperty("worst", absl::StrCat(worst));
  }

  std::unique_ptr<Model> model_;
  const std::vector<int32_t>& tokens_ = GetParam().tokens;
  const std::vector<float>& next_logprob_ = GetParam().next_logprob;
  const int32_t segment_ = GetParam().segment;
};

INSTANTIATE_TEST_SUITE_P(Paper, PaperGoldenTest, ::testing::ValuesIn(testing::PaperGoldens(PALIMPSEST_SOURCE_DIR)),
                         [](const auto& info) { return info.param.name; });

TEST_P(PaperGoldenTest, BySteps) { ExpectGolden({1}); }
TEST_P(PaperGoldenTest, ByChunks) { ExpectGolden({64}); }
TEST_P(PaperGoldenTest, InOneCall) { ExpectGolden({512}); }
TEST_P(PaperGoldenTest, ByAMixture) { ExpectGolden({3, 1, 1, 64, 5, 128, 1, 37, 65, 2, 1}); }

TEST(PaperGoldens, CoverEverySystem) {
  std::set<std::string> seen;
  for (const testing::PaperGolden& golden : testing::PaperGoldens(PALIMPSEST_SOURCE_DIR)) {
    const absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(golden.folder);
    ASSERT_TRUE(model.ok()) << model.status();
    const ModelConfig& config = (*model)->config();
    const LayerConfig& layer = config.layers[0];
    if (const auto* const attention = std::get_if<AttentionConfig>(&layer.mixer)) {
      seen.insert(attention->relative_positions ? "transformer_xl" : "softmax");
    } else {
      const auto& mixer = std::get<FastWeightConfig>(layer.mixer);
      const auto& norm = mixer.attention_norm;
      seen.insert(absl::StrCat(mixer.rule == UpdateRule::kSum ? "sum" : "delta", " ",
                               static_cast<int>(mixer.features.map), " ",
                               !norm            ? 0
                               : norm->keys_too ? 2
                                                : 1,
                               norm && norm->scaled_denominator ? " A" : ""));
    }
    if (config.embedding.sinusoids) seen.insert("positions");
    if (config.clusters() > 1) seen.insert(config.embedding.div_val > 1 ? "narrowing clusters" : "clusters");
    if (layer.placement != NormPlacement::kPost) seen.insert("pre-norm");
  }
  // Softmax and Transformer-XL; the sum rule with three maps in form A, three in form B, one without a denominator; the
  // delta rule with three maps and three normalisations each; and the four others.
  EXPECT_EQ(seen.size(), 2 + 7 + 9 + 4) << ::testing::PrintToString(seen);
}

}  // namespace
}  // namespace palimpsest
