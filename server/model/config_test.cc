#include "server/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/testing/temporary_folder.h"
#include "server/model/testing/safetensors_writer.h"

namespace palimpsest {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// The settings of a small good config with some keys changed; a key set to "<none>" is taken out.
std::string Config(const std::string& model_type, const nlohmann::json& changes) {
  nlohmann::json config = {{"model_type", model_type}, {"vocab_size", 512},      {"hidden_size", 64},
                           {"num_hidden_layers", 2},   {"num_heads", 4},         {"intermediate_size", 96},
                           {"eos_token_id", 2},        {"bos_token_id", nullptr}};
  if (model_type == "gated_deltanet") config["head_dim"] = 16;
  for (const auto& [key, value] : changes.items()) {
    if (value == "<none>") {
      config.erase(key);
    } else {
      config[key] = value;
    }
  }
  return config.dump();
}

ModelConfig Parsed(const std::string& text) {
  absl::StatusOr<ModelConfig> config = ModelConfig::FromJson(text);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig();
}

// Of the first layer.
const FastWeightConfig& MixerOf(const ModelConfig& config) {
  return std::get<FastWeightConfig>(config.layers.front().mixer);
}

TEST(ModelConfig, DeltaNetTakesTheDefaultsOfItsClass) {
  const ModelConfig config = Parsed(R"({"model_type": "delta_net"})");
  EXPECT_EQ(config.architecture, "delta_net");
  EXPECT_EQ(config.vocabulary, 32000);
  EXPECT_EQ(config.hidden, 2048);
  EXPECT_EQ(config.layers.size(), 24);
  EXPECT_EQ(std::get<MlpConfig>(config.layers[0].channel).inner, 5632);
  EXPECT_FLOAT_EQ(config.layers[0].norm.eps, 1e-6f);
  EXPECT_FALSE(config.head.tied);
  EXPECT_EQ(config.bos_token, 1);
  EXPECT_THAT(config.eos_tokens, ElementsAre(2));
  const FastWeightConfig& mixer = MixerOf(config);
  EXPECT_EQ(mixer.shape.heads, 16);
  EXPECT_EQ(mixer.shape.value_heads, 16);
  EXPECT_EQ(mixer.shape.key_dim, 128);
  EXPECT_EQ(mixer.shape.value_dim, 128);
  EXPECT_EQ(mixer.rule, UpdateRule::kDelta);
  EXPECT_EQ(mixer.features.map, FeatureMapKind::kSilu);
  EXPECT_EQ(mixer.features.key_norm, KeyNorm::kL2);
  EXPECT_TRUE(mixer.beta.learned);
  EXPECT_EQ(mixer.beta.scale, 1.0f);
  EXPECT_EQ(mixer.output.gate, GateActivation::kNone);
  EXPECT_EQ(mixer.conv, (ConvConfig{.width = 4, .bias = false}));
}

TEST(ModelConfig, GatedDeltaNetTakesTheDefaultsOfItsClass) {
  const ModelConfig config = Parsed(R"({"model_type": "gated_deltanet"})");
  EXPECT_EQ(config.layers.size(), 21);
  EXPECT_EQ(MixerOf(config).shape.heads, 6);
  EXPECT_EQ(MixerOf(config).shape.value_heads, 6);
  EXPECT_EQ(MixerOf(config).shape.key_dim, 256);
  EXPECT_EQ(MixerOf(config).shape.value_dim, 512);
  EXPECT_EQ(MixerOf(config).rule, UpdateRule::kGatedDelta);
  EXPECT_EQ(MixerOf(config).output.gate, GateActivation::kSilu);
}

TEST(ModelConfig, ReadsEverySettingOfDeltaNet) {
  const ModelConfig config = Parsed(Config("delta_net", {{"expand_k", 0.5},
                                                         {"expand_v", 2},
                                                         {"qk_norm", "sum"},
                                                         {"qk_activation", "elu"},
                                                         {"use_beta", false},
                                                         {"use_gate", true},
                                                         {"allow_neg_eigval", true},
                                                         {"conv_size", 7},
                                                         {"norm_eps", 1e-5},
                                                         {"tie_word_embeddings", true},
                                                         {"hidden_act", "silu"},
                                                         {"eos_token_id", {7, 3}},
                                                         {"bos_token_id", 0}}));
  EXPECT_EQ(MixerOf(config).shape.key_dim, 8);
  EXPECT_EQ(MixerOf(config).shape.value_dim, 32);
  EXPECT_EQ(MixerOf(config).features.key_norm, KeyNorm::kL1);
  EXPECT_EQ(MixerOf(config).features.map, FeatureMapKind::kElu1);
  EXPECT_FALSE(MixerOf(config).beta.learned);
  EXPECT_EQ(MixerOf(config).output.gate, GateActivation::kSilu);
  EXPECT_EQ(MixerOf(config).beta.scale, 2.0f);
  EXPECT_EQ(MixerOf(config).conv->width, 7);
  EXPECT_FLOAT_EQ(config.layers[0].norm.eps, 1e-5f);
  EXPECT_TRUE(config.head.tied);
  EXPECT_THAT(config.eos_tokens, ElementsAre(3, 7));
  EXPECT_EQ(config.bos_token, 0);
}

TEST(ModelConfig, ReadsEverySettingOfGatedDeltaNet) {
  const ModelConfig config = Parsed(Config("gated_deltanet", {{"num_v_heads", 8},
                                                              {"expand_v", 1.5},
                                                              {"use_gate", false},
                                                              {"allow_neg_eigval", true},
                                                              {"use_short_conv", false},
                                                              {"eos_token_id", nullptr}}));
  EXPECT_EQ(MixerOf(config).shape.heads, 4);
  EXPECT_EQ(MixerOf(config).shape.value_heads, 8);
  EXPECT_EQ(MixerOf(config).shape.key_dim, 16);
  EXPECT_EQ(MixerOf(config).shape.value_dim, 24);
  EXPECT_EQ(MixerOf(config).output.gate, GateActivation::kNone);
  EXPECT_EQ(MixerOf(config).beta.scale, 2.0f);
  EXPECT_EQ(MixerOf(config).conv, std::nullopt);
  EXPECT_THAT(config.eos_tokens, IsEmpty());
  EXPECT_EQ(config.bos_token, -1);
}

// The sizes of section 1 of fla's rule: two thirds of the ratio, cut to an integer, then up to a multiple of 256.
TEST(ModelConfig, DerivesTheInnerSize) {
  const auto inner = [](const nlohmann::json& changes) {
    nlohmann::json all = {{"intermediate_size", nullptr}, {"num_heads", 1}, {"expand_k", 0.01}, {"expand_v", 0.01}};
    all.update(changes);
    return std::get<MlpConfig>(Parsed(Config("delta_net", all)).layers[0].channel).inner;
  };
  EXPECT_EQ(inner({{"hidden_size", 768}}), 2048);
  EXPECT_EQ(inner({{"hidden_size", 1024}}), 2816);
  EXPECT_EQ(inner({{"hidden_size", 2048}, {"hidden_ratio", nullptr}}), 5632);
  EXPECT_EQ(inner({{"hidden_size", 2560}, {"hidden_ratio", 4}}), 6912);
  EXPECT_EQ(inner({{"hidden_size", 4096}, {"intermediate_size", "<none>"}}), 11008);
  EXPECT_EQ(inner({{"hidden_size", 768}, {"hidden_ratio", 1.5}}), 768);
  EXPECT_EQ(inner({{"hidden_size", 768}, {"intermediate_size", 100}}), 100);
}

TEST(ModelConfig, DefaultTokenIdsOutsideASmallVocabularyMeanNone) {
  const ModelConfig config =
      Parsed(Config("delta_net", {{"vocab_size", 2}, {"eos_token_id", "<none>"}, {"bos_token_id", "<none>"}}));
  EXPECT_EQ(config.bos_token, 1);
  EXPECT_THAT(config.eos_tokens, IsEmpty());
}

TEST(ModelConfig, AcceptsKeysThatDoNotChangeTheModel) {
  Parsed(Config("gated_deltanet", {{"architectures", {"GatedDeltaNetForCausalLM"}},
                                   {"torch_dtype", "bfloat16"},
                                   {"transformers_version", "4.51.3"},
                                   {"initializer_range", 0.006},
                                   {"fuse_norm", true},
                                   {"fuse_swiglu", true},
                                   {"fuse_cross_entropy", true},
                                   {"use_cache", true},
                                   {"attn_mode", "chunk"},
                                   {"use_l2warp", false},
                                   {"max_position_embeddings", 8192},
                                   {"pad_token_id", 100000},
                                   {"norm_first", false},
                                   {"attn", nullptr},
                                   {"attnres_block_size", nullptr},
                                   {"conv_bias", true}}));
}

// All of to_dict() of flash-linear-attention 0.6.0's classes with these versions of transformers, whose own keys are
// most of it.
TEST(ModelConfig, ReadsWhatTransformersWrites) {
  for (const char* const model_type :
       {"delta_net", "gated_deltanet", "gated_deltaproduct", "gla", "kda", "linear_attn"}) {
    const ModelConfig expected = Parsed(nlohmann::json({{"model_type", model_type}}).dump());
    for (const char* const version : {"4.57.6", "5.24.0"}) {
      SCOPED_TRACE(::testing::Message() << model_type << " " << version);
      const absl::StatusOr<std::string> text =
          ReadFile(absl::StrCat(PALIMPSEST_SOURCE_DIR "/server/model/testing/configs/", model_type, "-transformers-",
                                version, ".json"),
                   1 << 20);
      ASSERT_TRUE(text.ok()) << text.status();
      const ModelConfig config = Parsed(*text);
      EXPECT_EQ(config.Canonical(), expected.Canonical());
      EXPECT_EQ(config.eos_tokens, expected.eos_tokens);
      EXPECT_EQ(config.bos_token, expected.bos_token);
    }
  }
}

TEST(ModelConfig, AcceptsWhatTrainersAndConvertersLeave) {
  const std::string plain = Parsed(Config("gated_deltanet", {})).Canonical();
  const nlohmann::json changes[] = {{{"unsloth_version", "2026.1"}, {"unsloth_fixed", true}},
                                    {{"attn", nlohmann::json::array()}},
                                    {{"rope_scaling", nullptr}, {"pruned_heads", nlohmann::json::object()}},
                                    {{"hidden_size", 64.0}, {"num_heads", 4.0}, {"vocab_size", 512.0}},
                                    {{"output_gate_activation", "silu"}}};
  for (const nlohmann::json& change : changes) EXPECT_EQ(Parsed(Config("gated_deltanet", change)).Canonical(), plain);
  EXPECT_THAT(Parsed(Config("gated_deltanet", {{"eos_token_id", -1}})).eos_tokens, IsEmpty());
  EXPECT_THAT(Parsed(Config("gated_deltanet", {{"eos_token_id", {-1}}})).eos_tokens, IsEmpty());
  EXPECT_EQ(Parsed(Config("gated_deltanet", {{"bos_token_id", -1}})).bos_token, -1);
  EXPECT_THAT(Parsed(Config("gated_deltanet", {{"eos_token_id", 7.0}})).eos_tokens, ElementsAre(7));
}

TEST(ModelConfig, AGateMayBeASigmoid) {
  const ModelConfig silu = Parsed(Config("gated_deltanet", {}));
  const ModelConfig sigmoid = Parsed(Config("gated_deltanet", {{"output_gate_activation", "sigmoid"}}));
  EXPECT_EQ(MixerOf(silu).output.gate, GateActivation::kSilu);
  EXPECT_EQ(MixerOf(sigmoid).output.gate, GateActivation::kSigmoid);
  EXPECT_NE(silu.Canonical(), sigmoid.Canonical());
  const nlohmann::json none = {{"use_gate", false}, {"output_gate_activation", "sigmoid"}};
  EXPECT_EQ(Parsed(Config("gated_deltanet", none)).Canonical(),
            Parsed(Config("gated_deltanet", {{"use_gate", false}})).Canonical());
}

TEST(ModelConfig, WidthsAreRoundedWhereTheyAreIntegersButForTheirLastDigits) {
  const ModelConfig config =
      Parsed(Config("delta_net", {{"hidden_size", 200}, {"num_heads", 2}, {"expand_k", 0.29}, {"expand_v", 0.502}}));
  EXPECT_EQ(MixerOf(config).shape.key_dim, 29);    // 200 * 0.29 is a little less than 58
  EXPECT_EQ(MixerOf(config).shape.value_dim, 50);  // of 100.4; fla before 0.6 took it so
}

TEST(ModelConfig, GenerationConfigAddsEndOfTextIds) {
  ModelConfig config = Parsed(Config("delta_net", {}));
  EXPECT_TRUE(config.AddGenerationConfig(R"({"eos_token_id": [5, 2, 5], "temperature": 0.7, "top_p": [1]})").ok());
  EXPECT_THAT(config.eos_tokens, ElementsAre(2, 5));
  EXPECT_TRUE(config.AddGenerationConfig(R"({"eos_token_id": 9})").ok());
  EXPECT_TRUE(config.AddGenerationConfig("{}").ok());
  EXPECT_THAT(config.eos_tokens, ElementsAre(2, 5, 9));
  const absl::Status bad = config.AddGenerationConfig(R"({"eos_token_id": 512})");
  EXPECT_EQ(bad.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(bad.message()), HasSubstr("generation_config.json: 'eos_token_id' is 512, expected an id"));
  EXPECT_THAT(config.eos_tokens, ElementsAre(2, 5, 9));
  EXPECT_FALSE(config.AddGenerationConfig("[1]").ok());
}

TEST(ModelConfig, CanonicalTextIsTheSameForTheSameFunction) {
  const auto canonical = [](const nlohmann::json& changes) { return Parsed(Config("delta_net", changes)).Canonical(); };
  const std::string base = canonical({});
  EXPECT_EQ(base, canonical({{"qk_norm", "l2"}, {"expand_k", 1}, {"fuse_norm", false}, {"eos_token_id", 3}}));
  for (const nlohmann::json& change : std::initializer_list<nlohmann::json>{{{"qk_norm", "sum"}},
                                                                            {{"qk_activation", "relu"}},
                                                                            {{"use_beta", false}},
                                                                            {{"allow_neg_eigval", true}},
                                                                            {{"use_gate", true}},
                                                                            {{"use_short_conv", false}},
                                                                            {{"conv_size", 3}},
                                                                            {{"norm_eps", 2e-6}},
                                                                            {{"num_heads", 8}},
                                                                            {{"vocab_size", 513}},
                                                                            {{"tie_word_embeddings", true}}}) {
    EXPECT_NE(base, canonical(change)) << change;
  }
}

TEST(ModelConfig, ReadsKda) {
  const ModelConfig config = Parsed(Config("kda", {{"num_v_heads", 8}, {"head_dim", 16}, {"expand_v", 1.5}}));
  const FastWeightConfig& mixer = MixerOf(config);
  EXPECT_EQ(mixer.rule, UpdateRule::kChannelGatedDelta);
  EXPECT_EQ(mixer.shape.key_dim, 16);
  EXPECT_EQ(mixer.shape.value_dim, 24);
  EXPECT_EQ(mixer.decay, (DecayConfig{.rank = 24}));
  EXPECT_EQ(mixer.output.gate, GateActivation::kSigmoid);
  EXPECT_EQ(mixer.output.gate_rank, 24);
  const ModelConfig bounded = Parsed(Config("kda", {{"head_dim", 16}, {"safe_gate", true}, {"lower_bound", -5.0}}));
  EXPECT_EQ(MixerOf(bounded).decay.kind, DecayKind::kSigmoid);
  EXPECT_EQ(MixerOf(bounded).decay.lower_bound, -5.0f);
  EXPECT_NE(bounded.Canonical(), Parsed(Config("kda", {{"head_dim", 16}})).Canonical());
}

TEST(ModelConfig, ReadsGatedDeltaProduct) {
  const nlohmann::json two = {{"head_dim", 16}, {"num_householder", 2}, {"use_forget_gate", true}};
  const ModelConfig config = Parsed(Config("gated_deltaproduct", two));
  const FastWeightConfig& mixer = MixerOf(config);
  EXPECT_EQ(mixer.rule, UpdateRule::kGatedDelta);
  EXPECT_EQ(mixer.sub_steps, 2);
  EXPECT_EQ(mixer.betas(), 8);
  EXPECT_EQ(mixer.conv_channels(), 64 + 2 * 64 + 2 * 128);
  EXPECT_EQ(MixerOf(Parsed(Config("gated_deltaproduct", {{"head_dim", 16}}))).rule, UpdateRule::kDelta);
  // The model does not hand it to its layers.
  nlohmann::json ignored = two;
  ignored["num_v_heads"] = 8;
  EXPECT_EQ(Parsed(Config("gated_deltaproduct", ignored)).Canonical(), config.Canonical());
}

TEST(ModelConfig, ReadsGatedLinearAttention) {
  const ModelConfig config = Parsed(Config("gla", {{"num_kv_heads", 2}, {"clamp_min", -3.0}}));
  const FastWeightConfig& mixer = MixerOf(config);
  EXPECT_EQ(mixer.rule, UpdateRule::kChannelGatedSum);
  EXPECT_EQ(mixer.key_groups, 2);
  EXPECT_EQ(mixer.shape.key_dim, 8);
  EXPECT_EQ(mixer.shape.value_dim, 16);
  EXPECT_EQ(mixer.features.map, FeatureMapKind::kIdentity);
  EXPECT_EQ(mixer.decay.lower_bound, -3.0f);
  EXPECT_EQ(mixer.conv, std::nullopt);
  EXPECT_TRUE(MixerOf(Parsed(Config("gla", {{"use_short_conv", true}}))).conv->silu_keys);
}

TEST(ModelConfig, ReadsLinearAttention) {
  const auto mixer = [](const nlohmann::json& changes) { return MixerOf(Parsed(Config("linear_attn", changes))); };
  EXPECT_EQ(mixer({}).features.map, FeatureMapKind::kElementwiseProduct);
  EXPECT_EQ(mixer({{"feature_map", "hedgehog"}}).shape.key_dim, 32);
  EXPECT_EQ(mixer({{"feature_map", "dpfp"}}).shape.key_dim, 128);
  EXPECT_EQ(mixer({{"norm_q", true}}).features.query_norm, KeyNorm::kShiftedSum);
  EXPECT_EQ(mixer({{"norm_q", true}}).features.key_norm, KeyNorm::kNone);
  EXPECT_TRUE(mixer({{"norm_feature_map", true}}).attention_norm->scaled_denominator);
  EXPECT_FLOAT_EQ(mixer({{"feature_map", "hedgehog"}}).features.query_scale, 1.0f / std::sqrt(32.0f));
  EXPECT_FALSE(mixer({{"elementwise_affine", false}}).output.weight);
  EXPECT_FALSE(mixer({{"elementwise_affine", nullptr}}).output.weight) << "as in Python";
}

TEST(ModelConfig, ReadsTheSystemsOfThePaper) {
  const ModelConfig delta = Parsed(R"({"model_type": "fwp", "vocab_size": 1000, "hidden_size": 64, "num_heads": 4,
      "head_dim": 12, "num_hidden_layers": 3, "intermediate_size": 96, "feature_map": "dpfp", "dpfp_nu": 2,
      "qk_norm": "sum", "attention_norm": "key_and_output", "positions": "sinusoidal", "segment_length": 128,
      "cutoffs": [100, 400], "embedding_size": 40, "div_val": 2})");
  EXPECT_EQ(MixerOf(delta).shape.key_dim, 48);
  EXPECT_EQ(MixerOf(delta).shape.value_dim, 12);
  EXPECT_EQ(MixerOf(delta).query_width(), 48);
  EXPECT_EQ(MixerOf(delta).rule, UpdateRule::kDelta);
  EXPECT_FLOAT_EQ(MixerOf(delta).features.query_scale, 1.0f / std::sqrt(12.0f));
  EXPECT_EQ(delta.layers[0].norm.kind, NormConfig::Kind::kLayer);
  EXPECT_TRUE(delta.head.tied);
  EXPECT_EQ(delta.max_context(), 129);
  EXPECT_EQ(delta.clusters(), 3);
  EXPECT_EQ(delta.cluster_begin(2), 400);
  EXPECT_EQ(delta.cluster_end(2), 1000);
  EXPECT_EQ(delta.cluster_width(2), 10);

  const ModelConfig xl = Parsed(R"({"model_type": "fwp", "vocab_size": 100, "hidden_size": 64, "mixer": "softmax",
      "positions": "relative", "segment_length": 32, "memory_length": 48, "clamp_length": 60})");
  const auto& window = std::get<AttentionConfig>(xl.layers[0].mixer);
  EXPECT_EQ(window.capacity(), 80);
  EXPECT_EQ(window.largest_distance, 60);
  EXPECT_EQ(xl.max_context(), 0);
  EXPECT_NE(delta.Canonical(), xl.Canonical());
}

struct BadConfig {
  const char* name;
  std::string text;
  const char* words;

  friend void PrintTo(const BadConfig& row, std::ostream* out) { *out << row.name; }
};

std::vector<BadConfig> BadConfigs() {
  const auto delta = [](const nlohmann::json& changes) { return Config("delta_net", changes); };
  const auto gated = [](const nlohmann::json& changes) { return Config("gated_deltanet", changes); };
  // A small good config of the paper's family with some keys changed.
  const auto paper = [](const nlohmann::json& changes) {
    nlohmann::json config = {{"model_type", "fwp"},     {"vocab_size", 512}, {"hidden_size", 64},
                             {"num_hidden_layers", 2},  {"num_heads", 4},    {"head_dim", 16},
                             {"intermediate_size", 96}, {"qk_norm", "sum"},  {"bos_token_id", nullptr},
                             {"eos_token_id", nullptr}};
    config.update(changes);
    return config.dump();
  };
  nlohmann::json many;
  for (int i = 10; i < 30; ++i) many[absl::StrCat("k", i)] = 1;
  const std::string many_keys = delta(many);
  std::string deep = "{\"a\":" + std::string(40, '[') + std::string(40, ']') + "}";
  return {
      {"paper_mixer", paper({{"mixer", "rnn"}}), "'mixer' is 'rnn', expected 'fast_weight' or 'softmax'"},
      {"paper_rule", paper({{"update_rule", "gated"}}), "'update_rule' is 'gated', expected 'sum' or 'delta'"},
      {"paper_map", paper({{"feature_map", "silu"}}), "'feature_map' is 'silu'"},
      {"paper_nu", paper({{"feature_map", "dpfp"}, {"dpfp_nu", 32}}),
       "'dpfp_nu' is 32, expected an integer from 1 to 31"},
      {"paper_favor", paper({{"feature_map", "favor"}}), "feature_map 'favor' needs 'favor_features'"},
      {"paper_features", paper({{"feature_map", "favor"}, {"favor_features", 5000}}), "'favor_features' is 5000"},
      {"paper_wide_dpfp", paper({{"feature_map", "dpfp"}, {"head_dim", 1024}, {"dpfp_nu", 5}}),
       "the feature map gives 10240 features a head"},
      {"paper_keys_of_sum", paper({{"update_rule", "sum"}, {"attention_norm", "key_and_output"}}),
       "attention_norm 'key_and_output' needs update_rule 'delta'"},
      {"paper_no_denominator", paper({{"scaled_denominator", true}}), "'scaled_denominator' is true, but"},
      {"paper_positions", paper({{"positions", "sinusoidal"}}), "'positions' needs 'segment_length'"},
      {"paper_odd", paper({{"positions", "sinusoidal"}, {"segment_length", 8}, {"hidden_size", 63}}),
       "needs an even hidden_size, it is 63"},
      {"paper_relative", paper({{"positions", "relative"}, {"segment_length", 8}}), "need mixer 'softmax'"},
      {"paper_memory", paper({{"mixer", "softmax"}, {"segment_length", 8}, {"memory_length", 8}}),
       "'memory_length' needs positions 'relative'"},
      {"paper_no_window", paper({{"mixer", "softmax"}}), "mixer 'softmax' needs 'segment_length'"},
      {"paper_clamp", paper({{"positions", "sinusoidal"}, {"segment_length", 9}, {"clamp_length", 4}}),
       "'clamp_length' is 4, expected -1 or at least segment_length - 1, which is 8"},
      {"paper_cutoffs", paper({{"cutoffs", {100, 100}}}), "'cutoffs' is [100, 100], expected ascending ids above 0"},
      {"paper_cutoff_beyond", paper({{"cutoffs", {512}}}), "'cutoffs' is 512, expected an id from 0 to 511"},
      {"paper_div_val", paper({{"cutoffs", {10, 20, 30}}, {"div_val", 8}}), "leaves nothing"},
      {"paper_ties", paper({{"cutoffs", {100}}, {"tie_projections", {true}}}), "'tie_projections' has 1 values"},
      {"paper_ties_type", paper({{"tie_projections", {1}}}), "expected a list of true and false"},
      {"paper_norm", paper({{"norm_placement", "none"}}), "'norm_placement' is 'none'"},
      {"paper_state", paper({{"mixer", "softmax"}, {"segment_length", 1048576}, {"num_hidden_layers", 1000}}),
       "one state takes"},
      {"paper_fla_key", paper({{"use_gate", true}}), "unknown key 'use_gate'"},
      {"empty", "", "config.json: not valid JSON"},
      {"not_json", "{\"model_type\": delta_net}", "config.json: not valid JSON: parse error at line 1, column 16"},
      {"bytes_after_the_end", delta({}) + "}", "config.json: not valid JSON: parse error at line 1"},
      {"another_after_the_end", delta({}) + delta({}), "config.json: not valid JSON"},
      {"not_an_object", "[1, 2]", "config.json: expected an object, got array"},
      {"nested_too_deeply", deep, "config.json: nested deeper than 16, which is not read"},
      {"too_long", std::string((1 << 20) + 1, ' '), "config.json: has 1048577 bytes, at most 1048576 are read"},
      {"key_given_twice", R"({"model_type": "delta_net", "vocab_size": 5, "vocab_size": 6})",
       "names the key 'vocab_size' twice"},
      {"bytes_that_are_no_text", "{\"model_type\": \"\xff\xfe\"}", "not valid JSON"},
      {"no_model_type", "{}", "'model_type' is missing or not a string; palimpsest runs delta_net, gated_deltanet"},
      {"model_type_not_a_string", R"({"model_type": 3})", "'model_type' is missing or not a string"},
      {"model_type_not_known", delta({{"model_type", "llama"}}), "model_type 'llama' is not known; palimpsest runs"},
      {"hybrid_qwen3_next", delta({{"model_type", "qwen3_next"}}),
       "model_type 'qwen3_next' is not supported: it mixes in softmax attention over the whole context, so its state "
       "has no fixed size"},
      {"hybrid_qwen3_5", delta({{"model_type", "qwen3_5"}}), "'qwen3_5' is not supported: it mixes in softmax"},
      {"hybrid_kimi", delta({{"model_type", "kimi_linear"}}), "'kimi_linear' is not supported: it mixes in softmax"},
      {"rwkv7", delta({{"model_type", "rwkv7"}}), "'rwkv7' is not supported: its update is diagonal plus low rank"},
      {"kda_safe_without_a_bound", Config("kda", {{"head_dim", 16}, {"safe_gate", true}}),
       "'safe_gate' is true, but 'lower_bound' says no bound"},
      {"kda_bound_above_zero", Config("kda", {{"head_dim", 16}, {"lower_bound", 5.0}}),
       "'lower_bound' is 5.0, expected a number from -50 to -0.001"},
      {"gla_map", Config("gla", {{"feature_map", "gelu"}}), "'feature_map' is 'gelu', expected 'relu' or 'silu' or"},
      {"gla_groups", Config("gla", {{"num_kv_heads", 3}}),
       "'num_kv_heads' is 3, expected a divisor of num_heads, which is 4"},
      {"too_many_householders", Config("gated_deltaproduct", {{"head_dim", 16}, {"num_householder", 17}}),
       "'num_householder' is 17, expected an integer from 1 to 16"},
      {"linear_attn_map", Config("linear_attn", {{"feature_map", "taylor"}}),
       "'feature_map' is 'taylor', expected 'elementwise_product' or 'elu' or"},
      {"linear_attn_dpfp_of_two", Config("linear_attn", {{"feature_map", "dpfp"}, {"num_heads", 32}}),
       "so it needs heads of at least 3 channels"},
      {"attention_layers", gated({{"attn", {{"layers", {1}}, {"num_heads", 4}}}}),
       "'attn' has layers of softmax attention, which have no state of fixed size; only null and [] are supported"},
      {"attention_over_windows", gated({{"attn", {{{"layers", {1}}, {"num_heads", 4}, {"window_size", 512}}}}}),
       "'attn' has layers of softmax attention over a window, which are not run yet beside fast-weight layers"},
      {"residual_attention", gated({{"attnres_block_size", 4}}), "'attnres_block_size' is 4, only null is supported"},
      {"hidden_act_gelu", delta({{"hidden_act", "gelu"}}), "'hidden_act' is 'gelu', expected 'swish' or 'silu'"},
      {"hidden_act_powlu", delta({{"hidden_act", "powlu"}}), "'hidden_act' is 'powlu', expected"},
      {"hidden_act_null", delta({{"hidden_act", nullptr}}), "'hidden_act' is null, expected a string"},
      {"shared_convolution", delta({{"share_conv_kernel", true}}),
       "'share_conv_kernel' is true, only false or null is supported"},
      {"encoder", delta({{"is_encoder_decoder", true}}),
       "'is_encoder_decoder' is true, only false or null is supported: a decoder alone is run"},
      {"cross_attention", delta({{"add_cross_attention", true}}), "'add_cross_attention' is true, only false or null"},
      {"pruned_heads", delta({{"pruned_heads", {{"0", {1}}}}}), "'pruned_heads' is of type object, only {} or null"},
      {"rope_scaling", delta({{"rope_scaling", {{"type", "linear"}}}}), "'rope_scaling' is of type object, only null"},
      {"gate_gelu", gated({{"output_gate_activation", "gelu"}}),
       "'output_gate_activation' is 'gelu', expected 'swish' or 'silu' or 'sigmoid'"},
      {"mamba2", delta({{"model_type", "mamba2"}}), "'mamba2' is not supported: it is a state-space model"},
      {"olmo_hybrid", delta({{"model_type", "olmo_hybrid"}}), "'olmo_hybrid' is not supported: it mixes in softmax"},
      {"quantised", delta({{"quantization_config", {{"bits", 4}}}}), "'quantization_config' is of type object, only"},
      {"unknown_key", delta({{"use_mva", true}}),
       "unknown key 'use_mva': palimpsest does not know what the model computes where this is set, so it would compute "
       "something else"},
      {"unknown_keys", delta({{"use_mva", true}, {"zeta", 1}, {"beta_max", 2}}),
       "unknown keys 'beta_max', 'use_mva', 'zeta': palimpsest"},
      {"unknown_keys_without_number", many_keys, "'k16', 'k17' and 12 more: palimpsest"},
      {"key_of_the_other_architecture", gated({{"qk_norm", "sum"}}), "unknown key 'qk_norm'"},
      {"unknown_key_that_is_hostile", delta({{std::string("a\n\x1b[2J") + std::string(500, 'x'), 1}}),
       "unknown key 'a\\n\\x1b[2Jxxx"},
      {"no_heads", delta({{"num_heads", 0}}), "'num_heads' is 0, expected an integer from 1 to 4096"},
      {"heads_negative", delta({{"num_heads", -4}}), "'num_heads' is -4, expected an integer from 1 to 4096"},
      {"heads_not_an_integer", delta({{"num_heads", 4.5}}), "'num_heads' is 4.5, expected an integer"},
      {"heads_a_string", delta({{"num_heads", "4"}}), "'num_heads' is '4', expected an integer"},
      {"heads_a_huge_number", delta({{"num_heads", 18446744073709551615u}}), "'num_heads' is 18446744073709551615"},
      {"heads_do_not_divide", delta({{"num_heads", 5}}),
       "hidden_size 64 times expand_k 1 is 64, which num_heads 5 does not divide into head sizes"},
      {"heads_wider_than_the_keys", delta({{"expand_k", 0.01}}), "hidden_size 64 times expand_k 0.01 is 0"},
      {"value_heads_not_a_multiple", gated({{"num_v_heads", 6}}),
       "'num_v_heads' is 6, expected a multiple of num_heads, which is 4"},
      {"head_too_wide", gated({{"head_dim", 2048}}), "'head_dim' is 2048, expected an integer from 1 to 1024"},
      {"value_head_too_wide", gated({{"head_dim", 1024}, {"expand_v", 2.0}}),
       "head_dim 1024 times expand_v 2 is 2048, expected a value head size from 1 to 1024"},
      {"value_head_empty", gated({{"expand_v", 0.01}}), "head_dim 16 times expand_v 0.01 is 0, expected"},
      {"expand_infinite", "{\"model_type\": \"delta_net\", \"expand_k\": 1e999}", "not valid JSON"},
      {"expand_negative", delta({{"expand_v", -1}}), "'expand_v' is -1, expected a number from"},
      {"hidden_size_too_large", delta({{"hidden_size", 1 << 20}}), "'hidden_size' is 1048576, expected an integer"},
      {"vocabulary_too_large", delta({{"vocab_size", 1 << 22}}), "'vocab_size' is 4194304, expected an integer"},
      {"layers_too_many", delta({{"num_hidden_layers", 2000}}), "'num_hidden_layers' is 2000, expected an integer"},
      {"layers_null", delta({{"num_hidden_layers", nullptr}}), "'num_hidden_layers' is null, expected an integer"},
      {"inner_size_zero", delta({{"intermediate_size", 0}}), "'intermediate_size' is 0, expected an integer from 1"},
      {"inner_size_too_large", delta({{"intermediate_size", nullptr}, {"hidden_size", 131072}, {"num_heads", 128}}),
       "gives an intermediate size of 349696, expected 1 to 131072"},
      {"state_too_large", gated({{"num_hidden_layers", 1024}, {"num_heads", 64}, {"head_dim", 512}, {"expand_v", 2.0}}),
       "one state takes 139049566208 bytes, expected at most 1073741824"},
      {"heads_together_too_wide", gated({{"num_heads", 4096}, {"head_dim", 64}, {"expand_v", 1}}),
       "all heads together are 262144 wide for keys and 262144 for values, expected at most 131072"},
      {"convolution_of_none", delta({{"conv_size", 0}}), "'conv_size' is 0, expected an integer from 1 to 64"},
      {"convolution_too_wide", delta({{"conv_size", 65}}), "'conv_size' is 65, expected an integer from 1 to 64"},
      {"epsilon_zero", delta({{"norm_eps", 0}}), "'norm_eps' is 0, expected a number from"},
      {"epsilon_a_string", delta({{"norm_eps", "1e-6"}}), "'norm_eps' is '1e-6', expected a number"},
      {"norm_of_keys_unknown", delta({{"qk_norm", "l1"}}), "'qk_norm' is 'l1', expected 'l2' or 'sum'"},
      {"activation_unknown", delta({{"qk_activation", "gelu"}}),
       "'qk_activation' is 'gelu', expected 'silu' or 'relu' or 'elu' or 'identity'"},
      {"gate_a_number", delta({{"use_gate", 1}}), "'use_gate' is 1, expected true or false"},
      {"tied_null", delta({{"tie_word_embeddings", nullptr}}), "'tie_word_embeddings' is null, expected true or false"},
      {"end_of_text_outside", delta({{"eos_token_id", 512}}),
       "'eos_token_id' is 512, expected an id from 0 to 511 (vocab_size is 512), a list of ids, or -1 or null for "
       "none"},
      {"end_of_text_negative", delta({{"eos_token_id", {1, -1}}}), "'eos_token_id' is -1, expected an id"},
      {"end_of_text_a_string", delta({{"eos_token_id", "</s>"}}), "'eos_token_id' is '</s>', expected an id"},
      {"end_of_text_too_many", delta({{"eos_token_id", std::vector<int>(2000, 1)}}), "lists 2000 ids, at most 1024"},
      {"beginning_of_text_a_list", delta({{"bos_token_id", {1, 2}}}), "'bos_token_id' is a list, expected one id"},
  };
}

class BadConfigTest : public ::testing::TestWithParam<BadConfig> {};
INSTANTIATE_TEST_SUITE_P(ModelConfig, BadConfigTest, ::testing::ValuesIn(BadConfigs()),
                         [](const auto& info) { return info.param.name; });

TEST_P(BadConfigTest, IsRefusedWithTheKeyNamed) {
  const absl::StatusOr<ModelConfig> config = ModelConfig::FromJson(GetParam().text);
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(config.status().message()), HasSubstr(GetParam().words));
  EXPECT_LT(config.status().message().size(), 400);
}

TEST(ModelConfig, FromFolderReadsBothFilesAndNamesTheFolder) {
  const testing::TemporaryFolder parent;
  const std::string folder = parent.path() + "/checkpoint";
  EXPECT_EQ(ModelConfig::FromFolder(folder).status().code(), absl::StatusCode::kNotFound);
  std::filesystem::create_directories(folder);
  EXPECT_EQ(ModelConfig::FromFolder(folder).status().code(), absl::StatusCode::kNotFound);
  testing::WriteFile(folder + "/config.json", Config("delta_net", {}));
  ASSERT_TRUE(ModelConfig::FromFolder(folder).ok());
  EXPECT_THAT(ModelConfig::FromFolder(folder)->eos_tokens, ElementsAre(2));
  testing::WriteFile(folder + "/generation_config.json", R"({"eos_token_id": 11})");
  EXPECT_THAT(ModelConfig::FromFolder(folder)->eos_tokens, ElementsAre(2, 11));
  testing::WriteFile(folder + "/generation_config.json", "{");
  EXPECT_THAT(std::string(ModelConfig::FromFolder(folder).status().message()),
              HasSubstr(folder + "/generation_config.json: not valid JSON"));
  testing::WriteFile(folder + "/config.json", Config("delta_net", {{"num_heads", 0}}));
  EXPECT_THAT(std::string(ModelConfig::FromFolder(folder).status().message()),
              HasSubstr(folder + "/config.json: 'num_heads' is 0"));
  std::filesystem::remove(folder + "/config.json");
  std::filesystem::create_directory(folder + "/config.json");
  EXPECT_THAT(std::string(ModelConfig::FromFolder(folder).status().message()), HasSubstr("not a regular file"));
}

}  // namespace
}  // namespace palimpsest
