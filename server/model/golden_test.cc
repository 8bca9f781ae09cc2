// The forward pass against the reference models of training/: logits of committed checkpoints over 512 tokens, however
// the tokens are fed. What the goldens are and how they are made: tests/golden/README.md.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/common/test_device.h"
#include "server/model/checkpoint/safetensors.h"
#include "server/model/model.h"
#include "server/model/testing/model_runner.h"

namespace palimpsest {
namespace {

constexpr double kTolerance = 1e-4;  // of float32 log-probabilities

// Those that are committed, and those of PALIMPSEST_GOLDENS, a folder of more that were made in the same form.
std::vector<std::string> GoldenFolders() {
  std::vector<std::string> sources = {PALIMPSEST_SOURCE_DIR "/tests/golden", PALIMPSEST_SOURCE_DIR "/tests/golden_fla"};
  if (const char* const more = std::getenv("PALIMPSEST_GOLDENS")) sources.emplace_back(more);
  std::vector<std::string> folders;
  for (const std::string& source : sources) {
    if (!std::filesystem::is_directory(source)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(source)) {
      if (entry.is_directory()) folders.push_back(entry.path().string());
    }
  }
  std::ranges::sort(folders);
  return folders;
}

template <typename T>
std::vector<T> Values(const TensorMap& tensors, const std::string& name, DType dtype) {
  const auto found = tensors.find(name);
  if (found == tensors.end() || found->second.dtype != dtype) {
    ADD_FAILURE() << "golden.safetensors: no " << name << " of type " << NameOf(dtype);
    return {};
  }
  std::vector<T> values(found->second.elements());
  std::memcpy(values.data(), found->second.data, values.size() * sizeof(T));
  return values;
}

struct Golden {
  std::vector<int32_t> tokens;
  std::vector<float> next_logprob;  // of tokens[t + 1] after tokens[.. t]
  std::vector<int32_t> rows;        // where all log-probabilities are given
  std::vector<float> row_logprobs;  // [rows, vocabulary]
};

class GoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string& folder = GetParam();
    const absl::StatusOr<WeightFiles> file = WeightFiles::OpenFile(folder + "/golden.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    golden_.tokens = Values<int32_t>(file->tensors(), "tokens", DType::kI32);
    golden_.next_logprob = Values<float>(file->tensors(), "next_logprob", DType::kF32);
    golden_.rows = Values<int32_t>(file->tensors(), "rows", DType::kI32);
    golden_.row_logprobs = Values<float>(file->tensors(), "row_logprobs", DType::kF32);
    absl::StatusOr<std::unique_ptr<Model>> model =
        Model::Load(folder, {.math = ModelOptions::Math::kF32, .device = OpenTestDevice()});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    ASSERT_EQ(golden_.tokens.size(), 512);
    ASSERT_EQ(golden_.next_logprob.size(), golden_.tokens.size() - 1);
    ASSERT_GE(golden_.rows.size(), 2);
    ASSERT_EQ(golden_.row_logprobs.size(), golden_.rows.size() * model_->config().vocabulary);
  }

  // Log-probabilities [tokens, vocabulary] of one sequence fed in pieces of these lengths, the last repeated.
  std::vector<double> LogProbabilities(const std::vector<int32_t>& lengths) {
    const int32_t vocabulary = model_->config().vocabulary;
    const auto count = static_cast<int32_t>(golden_.tokens.size());
    std::vector<double> result;
    testing::ModelRunner runner(*model_, 1);
    size_t piece = 0;
    for (int32_t at = 0; at < count;) {
      const int32_t length = std::min(lengths[std::min(piece++, lengths.size() - 1)], count - at);
      const testing::ModelRunner::Piece next{.tokens = std::span(golden_.tokens).subspan(at, length)};
      const std::vector<float> logits = runner.Forward({&next, 1});
      for (int32_t row = 0; row < length; ++row) {
        const auto begin = logits.begin() + int64_t{row} * vocabulary;
        const double largest = *std::max_element(begin, begin + vocabulary);
        double sum = 0;
        for (int32_t i = 0; i < vocabulary; ++i) sum += std::exp(begin[i] - largest);
        for (int32_t i = 0; i < vocabulary; ++i) result.push_back(begin[i] - largest - std::log(sum));
      }
      at += length;
    }
    return result;
  }

  void ExpectGolden(const std::vector<int32_t>& lengths) {
    const int32_t vocabulary = model_->config().vocabulary;
    const std::vector<double> logprobs = LogProbabilities(lengths);
    double worst_next = 0, worst_row = 0;
    for (size_t t = 0; t < golden_.next_logprob.size(); ++t) {
      const double got = logprobs[t * vocabulary + golden_.tokens[t + 1]];
      ASSERT_TRUE(std::isfinite(got)) << "after token " << t;
      worst_next = std::max(worst_next, std::fabs(got - golden_.next_logprob[t]));
    }
    for (size_t r = 0; r < golden_.rows.size(); ++r) {
      for (int32_t i = 0; i < vocabulary; ++i) {
        const double got = logprobs[int64_t{golden_.rows[r]} * vocabulary + i];
        worst_row = std::max(worst_row, std::fabs(got - golden_.row_logprobs[r * vocabulary + i]));
      }
    }
    EXPECT_LT(worst_next, kTolerance);
    EXPECT_LT(worst_row, kTolerance);
    RecordProperty("worst", absl::StrCat(std::max(worst_next, worst_row)));
  }

  std::unique_ptr<Model> model_;
  Golden golden_;
};

INSTANTIATE_TEST_SUITE_P(Golden, GoldenTest, ::testing::ValuesIn(GoldenFolders()), [](const auto& info) {
  const std::filesystem::path folder(info.param);
  std::string name = absl::StrCat(folder.parent_path().filename().string(), "_", folder.filename().string());
  std::ranges::replace(name, '-', '_');
  return name;
});

TEST_P(GoldenTest, BySteps) { ExpectGolden({1}); }
TEST_P(GoldenTest, ByChunks) { ExpectGolden({64}); }
TEST_P(GoldenTest, InOneCall) { ExpectGolden({512}); }
TEST_P(GoldenTest, ByPiecesThatAreNoChunks) { ExpectGolden({37}); }
TEST_P(GoldenTest, ByAMixture) { ExpectGolden({3, 1, 1, 64, 5, 128, 1, 63, 65, 2, 1}); }

TEST(GoldenModels, CoverEveryArchitectureOfTheFamilyAndEverySetting) {
  std::set<std::string> seen;
  for (const std::string& folder : GoldenFolders()) {
    const absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(folder);
    ASSERT_TRUE(model.ok()) << model.status();
    const ModelConfig& config = (*model)->config();
    const auto& mixer = std::get<FastWeightConfig>(config.layers[0].mixer);
    seen.insert(config.architecture);
    if (std::filesystem::exists(folder + "/model.safetensors.index.json")) seen.insert("shards");
    if (!mixer.conv) seen.insert("no convolution");
    if (config.hidden % 16 != 0 || mixer.shape.key_dim % 8 != 0) seen.insert("odd sizes");
    if ((*model)->weight_dtype() == DType::kBF16) seen.insert("bf16");
    if (mixer.shape.value_heads != mixer.shape.heads) seen.insert("more value heads");
    if (mixer.sub_steps > 1) seen.insert("several writes");
    if (mixer.attention_norm) seen.insert("a denominator");
    if (IsLearned(mixer.features.map)) seen.insert("learned maps");
  }
  EXPECT_THAT(seen, ::testing::IsSupersetOf({"delta_net", "gated_deltanet", "gated_deltaproduct", "gla", "kda",
                                             "linear_attn", "shards", "no convolution", "odd sizes", "bf16",
                                             "more value heads", "several writes", "a denominator", "learned maps"}));
}

}  // namespace
}  // namespace palimpsest
