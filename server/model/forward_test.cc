// The forward pass: against a direct evaluation in double precision, and its promise about bits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/testing/temporary_folder.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/common/device.h"
#include "kernels/common/test_device.h"
#include "kernels/common/thread_pool.h"
#include "server/model/model.h"
#include "server/model/testing/forward_reference.h"
#include "server/model/testing/model_runner.h"
#include "server/model/testing/random_checkpoint.h"

namespace palimpsest {
namespace {

using testing::RandomCheckpointSpec;

std::unique_ptr<Model> LoadRandom(const RandomCheckpointSpec& spec, const ModelOptions& options = {}) {
  const testing::TemporaryFolder folder;
  testing::WriteRandomCheckpoint(folder.path(), spec);
  ModelOptions there = options;
  there.device = OpenTestDevice();
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(folder.path(), there);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

std::vector<int32_t> RandomTokens(int32_t count, int32_t vocabulary, uint32_t seed) {
  std::vector<int32_t> tokens(count);
  uint32_t x = seed * 2654435761u + 12345;
  for (int32_t& token : tokens) {
    x = x * 1664525u + 1013904223u;
    token = static_cast<int32_t>((x >> 8) % static_cast<uint32_t>(vocabulary));
  }
  return tokens;
}

// Several sequences on one model, each in a slot of its own, fed in any way one likes. Keeps the logits of all rows.
class Player {
 public:
  Player(const Model& model, int32_t slots, int threads = 2)
      : vocabulary_(model.config().vocabulary), runner_(model, slots, threads), taken_(slots), logits_(slots) {}

  struct Piece {
    int32_t slot;
    std::vector<int32_t> tokens;
  };
  // One call with all pieces in the order given.
  void Call(const std::vector<Piece>& pieces) {
    std::vector<testing::ModelRunner::Piece> given;
    for (const Piece& piece : pieces) {
      given.push_back({.slot = piece.slot, .tokens = piece.tokens, .first_position = taken_[piece.slot]});
      taken_[piece.slot] += std::ssize(piece.tokens);
    }
    const std::vector<float> out = runner_.Forward(given);
    auto next = out.begin();
    for (const Piece& piece : pieces) {
      auto& kept = logits_[piece.slot];
      const int64_t values = std::ssize(piece.tokens) * vocabulary_;
      kept.insert(kept.end(), next, next + values);
      next += values;
    }
  }

  const std::vector<float>& logits(int32_t slot) const { return logits_[slot]; }
  std::vector<std::byte> state(int32_t slot) const { return runner_.State(slot); }
  // `taken`: tokens that the state has seen.
  void set_state(int32_t slot, const std::vector<std::byte>& state, int64_t taken) {
    taken_[slot] = taken;
    runner_.SetState(slot, state);
  }

 private:
  const int64_t vocabulary_;
  mutable testing::ModelRunner runner_;
  std::vector<int64_t> taken_;
  std::vector<std::vector<float>> logits_;
};

// One sequence's first call, with the logits in the caller's hands.
class FirstCall {
 public:
  FirstCall(const Model& model, std::vector<int32_t> tokens)
      : model_(model), tokens_(std::move(tokens)), pool_(2), state_(model.slot_bytes(), model.device()) {}

  // Forward into `logits`, which is copied to where the model is and back. Empty: none are asked for.
  void Forward(std::span<const int32_t> rows, std::span<const int32_t> targets, std::vector<float>& logits) {
    const int32_t row_begin[] = {0, static_cast<int32_t>(tokens_.size())}, slot[] = {0};
    const ForwardBatch batch{.tokens = tokens_,
                             .rows = {.num_sequences = 1, .row_begin = row_begin, .slot = slot},
                             .states = state_.data(),
                             .state_stride = state_.size(),
                             .logit_rows = rows,
                             .targets = targets};
    Device* const device = model_.device();
    if (device == nullptr) return model_.Forward(context(), batch, workspace_, logits.data());
    const int64_t bytes = std::ssize(logits) * int64_t{sizeof(float)};
    AlignedArray<float> there(std::ssize(logits), device);
    device->FillWithZeros(state_.data(), state_.size());
    if (bytes > 0) device->CopyToDevice(there.data(), logits.data(), bytes);
    model_.Forward(context(), batch, workspace_, there.data());
    if (bytes > 0) device->CopyToHost(logits.data(), there.data(), bytes);
    EXPECT_TRUE(device->Synchronize().ok());
  }

  // Draws from the logits of the last Forward, in host memory only.
  void Sample(std::span<SampleRow> answers, std::vector<float>& logits) {
    BeginSample(context(), answers, model_.config().vocabulary);
    model_.FinishSampling(context(), workspace_, answers, logits.data());
  }

 private:
  ExecContext context() { return {.pool = &pool_, .device = model_.device()}; }

  const Model& model_;
  const std::vector<int32_t> tokens_;
  ThreadPool pool_;
  AlignedBytes state_;
  Workspace workspace_;
};

// Bit equality, NaN included.
template <typename T>
bool SameBytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

void ExpectSame(const Player& a, int32_t slot_a, const Player& b, int32_t slot_b) {
  EXPECT_TRUE(SameBytes(a.logits(slot_a), b.logits(slot_b))) << "logits of slots " << slot_a << " and " << slot_b;
  EXPECT_TRUE(SameBytes(a.state(slot_a), b.state(slot_b))) << "states of slots " << slot_a << " and " << slot_b;
}

std::vector<int32_t> Slice(const std::vector<int32_t>& tokens, size_t begin, size_t end) {
  return {tokens.begin() + begin, tokens.begin() + std::min(end, tokens.size())};
}

// Each row changes one thing from the base.
struct Case {
  const char* name;
  RandomCheckpointSpec spec;

  friend void PrintTo(const Case& row, std::ostream* out) { *out << row.name; }
};

RandomCheckpointSpec DeltaNet() {
  RandomCheckpointSpec spec;
  spec.model_type = "delta_net";
  spec.use_gate = false;
  return spec;
}
RandomCheckpointSpec With(RandomCheckpointSpec spec, void (*change)(RandomCheckpointSpec&)) {
  change(spec);
  return spec;
}
RandomCheckpointSpec Gated(void (*change)(RandomCheckpointSpec&)) { return With(RandomCheckpointSpec(), change); }
RandomCheckpointSpec Delta(void (*change)(RandomCheckpointSpec&)) { return With(DeltaNet(), change); }

std::vector<Case> Cases() {
  using S = RandomCheckpointSpec;
  return {
      {"gated", RandomCheckpointSpec()},
      {"gated_shared_keys", Gated([](S& s) { s.value_heads = 6; })},
      {"gated_large_heads", Gated([](S& s) { s.heads = s.value_heads = 1, s.key_dim = 128, s.value_dim = 132; })},
      {"gated_without_output_gate", Gated([](S& s) { s.use_gate = false; })},
      {"gated_by_a_sigmoid", Gated([](S& s) { s.gate_activation = "sigmoid"; })},
      {"gated_negative_eigenvalues", Gated([](S& s) { s.allow_neg_eigval = true; })},
      {"gated_without_convolution", Gated([](S& s) { s.conv_size = 0; })},
      {"gated_convolution_of_one", Gated([](S& s) { s.conv_size = 1; })},
      {"gated_convolution_of_seven_with_bias", Gated([](S& s) { s.conv_size = 7, s.conv_bias = true; })},
      {"gated_tied", Gated([](S& s) { s.tied = true; })},
      {"gated_odd_sizes", Gated([](S& s) {
         s.hidden = 37, s.mlp_inner = 41, s.heads = 3, s.value_heads = 3, s.key_dim = 11, s.value_dim = 19;
         s.vocabulary = 301;
       })},
      {"gated_bf16_weights", Gated([](S& s) { s.dtype = DType::kBF16; })},
      {"gated_f16_weights", Gated([](S& s) { s.dtype = DType::kF16; })},
      {"delta", DeltaNet()},
      {"delta_with_output_gate", Delta([](S& s) { s.use_gate = true; })},
      {"delta_without_beta", Delta([](S& s) { s.use_beta = false; })},
      {"delta_negative_eigenvalues", Delta([](S& s) { s.allow_neg_eigval = true; })},
      {"delta_elu_sum", Delta([](S& s) { s.qk_activation = "elu", s.qk_norm = "sum"; })},
      {"delta_silu_sum", Delta([](S& s) { s.qk_norm = "sum"; })},
      {"delta_identity_sum", Delta([](S& s) { s.qk_activation = "identity", s.qk_norm = "sum"; })},
      {"delta_relu", Delta([](S& s) { s.qk_activation = "relu"; })},
      {"delta_identity", Delta([](S& s) { s.qk_activation = "identity"; })},
      {"delta_elu_without_convolution", Delta([](S& s) { s.qk_activation = "elu", s.conv_size = 0; })},
      {"delta_without_convolution", Delta([](S& s) { s.conv_size = 0; })},
      {"delta_wide_values", Delta([](S& s) { s.value_dim = 40, s.key_dim = 8; })},
      {"delta_large_epsilon", Delta([](S& s) { s.norm_eps = 1e-2f; })},
  };
}

// The systems of 2102.11174. Their numbers are held against the official code: golden_test.cc.
std::vector<Case> PaperCases() {
  const auto paper = [](const char* settings) {
    RandomCheckpointSpec spec;
    spec.model_type = "fwp";
    spec.tied = true;
    spec.settings = settings;
    return spec;
  };
  std::vector<Case> cases = {
      {"sum_elu", paper(R"({"update_rule": "sum", "attention_norm": "output", "scaled_denominator": true})")},
      {"sum_dpfp", paper(R"({"update_rule": "sum", "feature_map": "dpfp", "dpfp_nu": 3})")},
      {"sum_favor", paper(R"({"update_rule": "sum", "feature_map": "favor", "favor_features": 9,
                              "attention_norm": "output"})")},
      {"delta_elu", paper(R"({"qk_norm": "sum"})")},
      {"delta_favor", paper(R"({"feature_map": "favor", "favor_features": 8, "qk_norm": "sum"})")},
      {"delta_dpfp_normalised",
       paper(R"({"feature_map": "dpfp", "dpfp_nu": 2, "qk_norm": "sum", "attention_norm": "key_and_output"})")},
      {"positions", paper(R"({"qk_norm": "sum", "positions": "sinusoidal", "segment_length": 2000})")},
      {"pre_norm", paper(R"({"qk_norm": "sum", "norm_placement": "pre_normed_residual"})")},
      {"softmax", paper(R"({"mixer": "softmax", "segment_length": 40, "norm_placement": "pre_raw_query"})")},
      {"transformer_xl", paper(R"({"mixer": "softmax", "positions": "relative", "segment_length": 24,
                                   "memory_length": 17, "clamp_length": 30, "norm_placement": "pre"})")},
      {"clusters", paper(R"({"qk_norm": "sum", "cutoffs": [100, 180], "embedding_size": 20,
                             "tie_projections": [false, true, true]})")},
      {"clusters_narrowing", paper(R"({"qk_norm": "sum", "cutoffs": [50, 120], "embedding_size": 24, "div_val": 3})")},
  };
  cases.back().spec.tied = false;
  return cases;
}

// The rest of fla's family. Their numbers are held against fla's own code: golden_test.cc.
std::vector<Case> FamilyCases() {
  const auto model = [](const char* model_type, const char* settings) {
    RandomCheckpointSpec spec;
    spec.model_type = model_type;
    spec.settings = settings;
    return spec;
  };
  return {
      {"kda", model("kda", R"({"head_dim": 16})")},
      {"kda_grouped_bounded", model("kda", R"({"head_dim": 11, "num_v_heads": 6, "expand_v": 2.0, "lower_bound": -5.0,
                                               "allow_neg_eigval": true})")},
      {"gla", model("gla", "{}")},
      {"gla_grouped_clamped", model("gla", R"({"num_heads": 4, "num_kv_heads": 2, "use_short_conv": true,
                                               "clamp_min": -0.05, "feature_map": "relu"})")},
      {"gated_deltaproduct", model("gated_deltaproduct", R"({"head_dim": 16, "num_householder": 2,
                                                             "use_forget_gate": true, "allow_neg_eigval": true})")},
      {"deltaproduct_of_three", model("gated_deltaproduct", R"({"head_dim": 12, "num_householder": 3,
                                                                "use_short_conv": false})")},
      {"linear_attn", model("linear_attn", R"({"norm_q": true, "feature_map": "hedgehog", "norm_feature_map": true})")},
      {"linear_attn_product", model("linear_attn", R"({"num_heads": 4, "num_kv_heads": 1})")},
      {"linear_attn_dpfp", model("linear_attn", R"({"feature_map": "dpfp", "norm_k": true})")},
  };
}

// What the equations of the architecture say, written out for one sequence in double precision.
class EquationsOf : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Forward, EquationsOf, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

class EveryArchitecture : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Forward, EveryArchitecture, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Paper, EveryArchitecture, ::testing::ValuesIn(PaperCases()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Family, EveryArchitecture, ::testing::ValuesIn(FamilyCases()),
                         [](const auto& info) { return info.param.name; });

TEST_P(EquationsOf, LogitsAreThoseOfTheEquations) {
  const RandomCheckpointSpec& spec = GetParam().spec;
  const auto model = LoadRandom(spec, {.math = ModelOptions::Math::kF32});
  ASSERT_NE(model, nullptr);
  const auto tokens = RandomTokens(150, spec.vocabulary, 7);
  const std::vector<double> expected = testing::ReferenceLogits(spec, tokens);
  Player steps(*model, 1), chunks(*model, 1), mixture(*model, 1);
  for (int32_t token : tokens) steps.Call({{0, {token}}});
  chunks.Call({{0, tokens}});
  size_t at = 0;
  for (size_t length : {1, 63, 2, 1, 64, 7, 12}) mixture.Call({{0, Slice(tokens, at, at + length)}}), at += length;
  ASSERT_EQ(at, tokens.size());
  for (const Player* player : {&steps, &chunks, &mixture}) {
    const std::vector<float>& logits = player->logits(0);
    ASSERT_EQ(logits.size(), expected.size());
    double worst = 0;
    for (size_t i = 0; i < logits.size(); ++i) worst = std::max(worst, std::fabs(logits[i] - expected[i]));
    EXPECT_LT(worst, 5e-5) << (player == &steps ? "steps" : player == &chunks ? "chunks" : "mixture");
  }
}

TEST_P(EveryArchitecture, SequencesDoNotNoticeEachOther) {
  const RandomCheckpointSpec& spec = GetParam().spec;
  const auto model = LoadRandom(spec);
  ASSERT_NE(model, nullptr);
  constexpr int32_t kSequences = 9;
  std::vector<std::vector<int32_t>> prompts;
  for (int32_t s = 0; s < kSequences; ++s) prompts.push_back(RandomTokens(1 + 23 * s, spec.vocabulary, s));

  Player together(*model, kSequences), alone(*model, kSequences, /*threads=*/1);
  std::vector<Player::Piece> all;
  for (int32_t s : {4, 1, 8, 0, 7, 2, 6, 3, 5}) all.push_back({s, prompts[s]});
  together.Call(all);
  for (int32_t s = 0; s < kSequences; ++s) alone.Call({{s, prompts[s]}});
  // Then all step, with one that still takes its prompt.
  const auto more = RandomTokens(70, spec.vocabulary, 99);
  for (int32_t t = 0; t < 3; ++t) {
    std::vector<Player::Piece> batch;
    for (int32_t s = 0; s < kSequences; ++s) {
      batch.push_back({s, s == 5 ? more : std::vector<int32_t>{prompts[s][0]}});
      alone.Call({batch.back()});
    }
    together.Call(batch);
  }
  for (int32_t s = 0; s < kSequences; ++s) ExpectSame(together, s, alone, s);
}

TEST_P(EveryArchitecture, CallsMayBeCutAtMultiplesOfTheChunk) {
  const RandomCheckpointSpec& spec = GetParam().spec;
  const auto model = LoadRandom(spec);
  ASSERT_NE(model, nullptr);
  const auto tokens = RandomTokens(64 * 4 + 5, spec.vocabulary, 3);
  Player whole(*model, 1), cut(*model, 1), every_chunk(*model, 1);
  whole.Call({{0, tokens}});
  cut.Call({{0, Slice(tokens, 0, 192)}});
  cut.Call({{0, Slice(tokens, 192, 1000)}});
  for (size_t at = 0; at < tokens.size(); at += 64) every_chunk.Call({{0, Slice(tokens, at, at + 64)}});
  ExpectSame(whole, 0, cut, 0);
  ExpectSame(whole, 0, every_chunk, 0);
}

TEST_P(EveryArchitecture, TheNumberOfThreadsDoesNotMatter) {
  const RandomCheckpointSpec& spec = GetParam().spec;
  const auto model = LoadRandom(spec);
  ASSERT_NE(model, nullptr);
  Player one(*model, 3, 1), two(*model, 3, 2), five(*model, 3, 5);
  for (Player* player : {&one, &two, &five}) {
    player->Call({{0, RandomTokens(130, spec.vocabulary, 1)}, {2, RandomTokens(1, spec.vocabulary, 2)}});
    player->Call({{0, {1}}, {1, {2}}, {2, {0}}});
  }
  for (int32_t s = 0; s < 3; ++s) ExpectSame(one, s, two, s), ExpectSame(one, s, five, s);
}

TEST_P(EveryArchitecture, ACopiedStateGoesOnAsTheOriginal) {
  const RandomCheckpointSpec& spec = GetParam().spec;
  const auto model = LoadRandom(spec);
  ASSERT_NE(model, nullptr);
  Player original(*model, 1), copy(*model, 2);
  original.Call({{0, RandomTokens(77, spec.vocabulary, 1)}});
  const auto saved = original.state(0);
  const auto next = RandomTokens(70, spec.vocabulary, 2);
  copy.set_state(1, saved, 77);
  original.Call({{0, next}});
  copy.Call({{0, {1, 2, 3}}, {1, next}});
  EXPECT_TRUE(SameBytes(original.state(0), copy.state(1)));
  const std::vector<float>& all = original.logits(0);
  const std::vector<float> tail(all.end() - copy.logits(1).size(), all.end());
  EXPECT_TRUE(SameBytes(tail, copy.logits(1)));
}

TEST(Forward, Bf16ArithmeticStaysNearFloat32) {
  RandomCheckpointSpec spec;
  spec.dtype = DType::kBF16;
  spec.hidden = 64;
  const auto exact = LoadRandom(spec, {.math = ModelOptions::Math::kF32});
  const auto rounded = LoadRandom(spec, {.math = ModelOptions::Math::kBF16});
  ASSERT_NE(exact, nullptr);
  ASSERT_NE(rounded, nullptr);
  EXPECT_EQ(exact->math(), LinearMath::kF32);
  EXPECT_EQ(rounded->math(), LinearMath::kBF16);
  EXPECT_EQ(exact->fingerprint(), rounded->fingerprint());
  const auto tokens = RandomTokens(100, spec.vocabulary, 5);
  Player a(*exact, 1), chunks(*rounded, 1), steps(*rounded, 1);
  a.Call({{0, tokens}});
  chunks.Call({{0, tokens}});
  for (const int32_t token : tokens) steps.Call({{0, {token}}});
  for (const Player* b : {&chunks, &steps}) {
    SCOPED_TRACE(b == &steps ? "steps" : "chunks");
    double error = 0, size = 0;
    for (size_t i = 0; i < a.logits(0).size(); ++i) {
      error += std::pow(a.logits(0)[i] - b->logits(0)[i], 2);
      size += std::pow(a.logits(0)[i], 2);
    }
    EXPECT_GT(error, 0) << "the two are the same: bf16 was not used";
    EXPECT_LT(std::sqrt(error / size), 0.02);
  }
}

TEST(Forward, WritingStatesSeldomChangesNoBit) {
  RandomCheckpointSpec spec;
  const auto always = LoadRandom(spec), seldom = LoadRandom(spec, {.write_interval = 4});
  ASSERT_NE(always, nullptr);
  ASSERT_NE(seldom, nullptr);
  if (always->device() == nullptr) GTEST_SKIP() << "a device's form";
  EXPECT_GT(seldom->slot_bytes(), always->slot_bytes());
  Player a(*always, 3), b(*seldom, 3);
  for (int32_t call = 0; call < 30; ++call) {
    std::vector<Player::Piece> pieces;
    for (int32_t slot = 0; slot < 3; ++slot) {
      const int32_t length = call % 7 == slot ? 5 + 64 * slot : 1;  // now and then a chunk
      pieces.push_back({slot, RandomTokens(length, spec.vocabulary, call)});
    }
    a.Call(pieces);
    b.Call(pieces);
    if (call % 11 == 0) ExpectSame(a, 1, b, 1);  // looking makes a state whole, and changes nothing
  }
  for (int32_t slot = 0; slot < 3; ++slot) ExpectSame(a, slot, b, slot);
}

TEST(Forward, GivesLogitsOfTheRowsAskedForOnly) {
  const RandomCheckpointSpec spec;
  const auto model = LoadRandom(spec);
  ASSERT_NE(model, nullptr);
  const auto tokens = RandomTokens(6, spec.vocabulary, 1);
  Player player(*model, 1);
  player.Call({{0, tokens}});

  const std::vector<int32_t> wanted = {1, 5};
  std::vector<float> logits(3 * spec.vocabulary, -77.0f);
  FirstCall(*model, tokens).Forward(wanted, {}, logits);
  for (int32_t i = 0; i < 2; ++i) {
    const std::vector<float> got(logits.begin() + i * spec.vocabulary, logits.begin() + (i + 1) * spec.vocabulary);
    const auto begin = player.logits(0).begin() + wanted[i] * spec.vocabulary;
    EXPECT_TRUE(SameBytes(got, std::vector<float>(begin, begin + spec.vocabulary)));
  }
  EXPECT_THAT(std::vector<float>(logits.begin() + 2 * spec.vocabulary, logits.end()), ::testing::Each(-77.0f));

  std::vector<float> none;
  FirstCall(*model, tokens).Forward({}, {}, none);
}

TEST(Forward, ATargetNeedsItsClusterOnly) {
  RandomCheckpointSpec spec;
  spec.model_type = "fwp";
  spec.settings = R"({"qk_norm": "sum", "cutoffs": [100, 180, 200], "embedding_size": 20, "div_val": 2})";
  const auto model = LoadRandom(spec);
  ASSERT_NE(model, nullptr);
  if (model->device() != nullptr) GTEST_SKIP() << "a device leaves no cluster out";
  const std::vector<int32_t> tokens = {5, 250, 101, 199, 180, 99, 100};
  const std::vector<int32_t> targets = {99, 100, 179, -1, 199, 200, 255};
  Player player(*model, 1);
  player.Call({{0, tokens}});

  const std::vector<int32_t> rows = {0, 1, 2, 3, 4, 5, 6};
  std::vector<float> logits(7 * spec.vocabulary);
  FirstCall(*model, tokens).Forward(rows, targets, logits);
  for (int32_t r = 0; r < 7; ++r) {
    const float* const row = logits.data() + r * spec.vocabulary;
    double sum = 0;
    int32_t left_out = 0;
    for (int32_t i = 0; i < spec.vocabulary; ++i) sum += std::exp(row[i]), left_out += row[i] == kNoLogit;
    EXPECT_NEAR(sum, 1.0, 1e-5) << "row " << r;
    const float* const all = player.logits(0).data() + r * spec.vocabulary;
    EXPECT_EQ(row[101] == kNoLogit, targets[r] >= 0 && (targets[r] < 100 || targets[r] >= 180));
    if (targets[r] < 0) {
      EXPECT_TRUE(
          SameBytes(std::vector<float>(row, row + spec.vocabulary), std::vector<float>(all, all + spec.vocabulary)));
    } else {
      EXPECT_EQ(row[targets[r]], all[targets[r]]) << "row " << r;
      EXPECT_GT(left_out, 50) << "row " << r;
    }
  }
}

TEST(Forward, ClustersComeOnDemand) {
  RandomCheckpointSpec spec;
  spec.model_type = "fwp";
  spec.tied = true;
  spec.settings = R"({"qk_norm": "sum", "cutoffs": [100, 180, 181]})";
  const auto model = LoadRandom(spec);
  ASSERT_NE(model, nullptr);
  if (model->device() != nullptr) GTEST_SKIP() << "a device leaves no cluster out";
  const std::vector<int32_t> tokens = {5, 250, 101};
  Player player(*model, 1);
  player.Call({{0, tokens}});

  const std::vector<int32_t> rows = {0, 1, 2}, targets(3, kNoIdYet);
  const int32_t R = spec.vocabulary;
  std::vector<float> logits(3 * R);
  FirstCall call(*model, tokens);
  call.Forward(rows, targets, logits);
  EXPECT_EQ(logits[101], kNoLogit);
  EXPECT_EQ(logits[182], kNoLogit);
  EXPECT_NE(logits[180], kNoLogit) << "a cluster of one id is always there";
  // Draws that the whole row decides, and the clusters that they fall into.
  const std::vector<float>& all = player.logits(0);
  std::set<bool> seen;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const SamplingSettings settings{.seed = seed};
    std::vector<SampleRow> answers(3), expected(3);
    for (int32_t r = 0; r < 3; ++r) {
      answers[r].logits = logits.data() + r * R;
      expected[r].logits = all.data() + r * R;
      answers[r].settings = expected[r].settings = &settings;
      answers[r].position = expected[r].position = r;
    }
    call.Sample(answers, logits);
    call.Sample(expected, logits);
    for (int32_t r = 0; r < 3; ++r) {
      EXPECT_EQ(answers[r].token, expected[r].token);
      // A cluster of one id is one computation less, and so a rounding.
      EXPECT_NEAR(logits[r * R + answers[r].token], all[r * R + answers[r].token],
                  answers[r].token == 180 ? 1e-5 : 0.0);
      seen.insert(answers[r].token >= 100);
    }
  }
  EXPECT_EQ(seen.size(), 2) << "some draws fall into the first cluster, some into others";
}

TEST(Forward, WorkCountsWhatAnIterationCannotDoWithout) {
  const RandomCheckpointSpec spec;
  const auto model = LoadRandom(spec);
  ASSERT_NE(model, nullptr);
  const int64_t table = int64_t{spec.vocabulary} * spec.hidden;
  // Read, and written unless the device writes it seldom.
  const int64_t states = (model->write_interval() > 1 ? 1 : 2) * model->layout().bytes();
  const int64_t body = model->parameter_count() - 2 * table;
  const int64_t fast_weights = int64_t{spec.layers} * spec.value_heads * spec.key_dim * spec.value_dim;

  // A step of one sequence reads all weights but the table that a row is looked up in.
  EXPECT_EQ(model->Work(1, 1, 1).bytes, model->weight_bytes() - 4 * table + states);
  EXPECT_EQ(model->Work(1, 1, 1).flops, 2 * body + 6 * fast_weights + 2 * table);
  // Prompts need no head, more sequences more states, more rows more arithmetic.
  EXPECT_EQ(model->Work(64, 1, 0).bytes, model->weight_bytes() - 8 * table + states);
  EXPECT_EQ(model->Work(64, 1, 0).flops, 64 * (2 * body + 6 * fast_weights));
  EXPECT_EQ(model->Work(3, 3, 3).bytes - model->Work(2, 2, 2).bytes, states);

  RandomCheckpointSpec tied = spec;
  tied.tied = true;
  const auto alike = LoadRandom(tied);
  ASSERT_NE(alike, nullptr);
  EXPECT_EQ(alike->Work(1, 1, 1).flops, model->Work(1, 1, 1).flops);
  EXPECT_EQ(alike->Work(1, 1, 1).bytes, model->Work(1, 1, 1).bytes);
}

TEST(Forward, NumbersThatStopBeingFiniteStayInTheirSequence) {
  RandomCheckpointSpec spec;
  spec.poison_token = 200;
  const auto model = LoadRandom(spec);
  ASSERT_NE(model, nullptr);
  auto healthy = RandomTokens(80, 200, 4);
  auto poisoned = healthy;
  poisoned[40] = 200;
  Player together(*model, 2), alone(*model, 1);
  together.Call({{0, healthy}, {1, poisoned}});
  together.Call({{1, {1}}, {0, {2}}});
  alone.Call({{0, healthy}});
  alone.Call({{0, {2}}});
  ExpectSame(together, 0, alone, 0);
  const auto& logits = together.logits(1);
  EXPECT_TRUE(std::isfinite(logits[0]));
  EXPECT_TRUE(std::isnan(logits.back()));
  EXPECT_TRUE(std::ranges::all_of(alone.logits(0), [](float x) { return std::isfinite(x); }));
}

}  // namespace
}  // namespace palimpsest
