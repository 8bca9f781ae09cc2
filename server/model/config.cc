#include "server/model/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "server/model/checkpoint/json.h"
#include "server/model/checkpoint/mapped_file.h"
#include "server/model/config_keys.h"

namespace palimpsest {
namespace {

using nlohmann::json;

// Bounds of what a file may ask for: wide of every published model, far below what would overflow or exhaust memory.
constexpr int32_t kMaxVocabulary = 1 << 21;
constexpr int32_t kMaxWidth = 1 << 17;  // of the residual stream, the MLP, all heads together
constexpr int32_t kMaxLayers = 1024;
constexpr int32_t kMaxHeads = 4096;
constexpr int32_t kMaxHeadDim = 1024;
constexpr int32_t kMaxConvWidth = 64;
constexpr int64_t kMaxStateBytes = int64_t{1} << 30;
constexpr int64_t kMaxConfigBytes = 1 << 20;

// What an architecture is: how its keys become the settings of the one mixer, and its own defaults.
struct Architecture {
  const char* model_type;
  int32_t default_layers;
  MixerConfig (*read_mixer)(ConfigKeys& keys, int32_t hidden);
};

// head size = trunc(total) / heads, which must come out even.
int32_t HeadDim(ConfigKeys& keys, const char* ratio_key, int32_t hidden, int32_t heads) {
  const double ratio = keys.Real(ratio_key, 1.0, 1e-4, 64.0);
  const auto total = static_cast<int64_t>(hidden * ratio);
  if (total % heads != 0 || total / heads < 1 || total / heads > kMaxHeadDim) {
    keys.Fail(absl::StrCat("hidden_size ", hidden, " times ", ratio_key, " ", ratio, " is ", total,
                           ", which num_heads ", heads, " does not divide into head sizes from 1 to ", kMaxHeadDim));
    return 1;
  }
  return static_cast<int32_t>(total / heads);
}

void ReadConv(ConfigKeys& keys, MixerConfig& mixer) {
  const bool use = keys.Bool("use_short_conv", true);
  const int32_t width = keys.Int("conv_size", 4, 1, kMaxConvWidth);
  mixer.conv_width = use ? width : 0;
  mixer.conv_bias = keys.Bool("conv_bias", false) && use;
}

MixerConfig ReadDeltaNet(ConfigKeys& keys, int32_t hidden) {
  static constexpr ConfigKeys::Word<FeatureMapKind> kActivations[] = {{"silu", FeatureMapKind::kSilu},
                                                                      {"relu", FeatureMapKind::kRelu},
                                                                      {"elu", FeatureMapKind::kElu1},
                                                                      {"identity", FeatureMapKind::kIdentity}};
  static constexpr ConfigKeys::Word<KeyNorm> kNorms[] = {{"l2", KeyNorm::kL2}, {"sum", KeyNorm::kSum}};
  MixerConfig mixer;
  mixer.rule = UpdateRule::kDelta;
  mixer.shape.heads = mixer.shape.value_heads = keys.Int("num_heads", 16, 1, kMaxHeads);
  mixer.shape.key_dim = HeadDim(keys, "expand_k", hidden, mixer.shape.heads);
  mixer.shape.value_dim = HeadDim(keys, "expand_v", hidden, mixer.shape.heads);
  mixer.feature_map = keys.OneOf<FeatureMapKind>("qk_activation", "silu", kActivations);
  mixer.key_norm = keys.OneOf<KeyNorm>("qk_norm", "l2", kNorms);
  mixer.learned_beta = keys.Bool("use_beta", true);
  mixer.output_gate = keys.Bool("use_gate", false);
  keys.Accept("use_output_norm");  // the class reads it and normalises all the same
  ReadConv(keys, mixer);
  return mixer;
}

MixerConfig ReadGatedDeltaNet(ConfigKeys& keys, int32_t) {
  MixerConfig mixer;
  mixer.rule = UpdateRule::kGatedDelta;
  FastWeightShape& shape = mixer.shape;
  shape.heads = keys.Int("num_heads", 6, 1, kMaxHeads);
  shape.value_heads = keys.OptionalInt("num_v_heads", 1, kMaxHeads).value_or(shape.heads);
  if (shape.value_heads % shape.heads != 0) {
    keys.Fail(absl::StrCat("'num_v_heads' is ", shape.value_heads, ", expected a multiple of num_heads, which is ",
                           shape.heads));
  }
  shape.key_dim = keys.Int("head_dim", 256, 1, kMaxHeadDim);
  const double expand = keys.Real("expand_v", 2.0, 1e-4, 64.0);
  shape.value_dim = static_cast<int32_t>(shape.key_dim * expand);
  if (shape.value_dim < 1 || shape.value_dim > kMaxHeadDim) {
    keys.Fail(absl::StrCat("head_dim ", shape.key_dim, " times expand_v ", expand, " is ", shape.value_dim,
                           ", expected a value head size from 1 to ", kMaxHeadDim));
    shape.value_dim = 1;
  }
  mixer.feature_map = FeatureMapKind::kSilu;
  mixer.key_norm = KeyNorm::kL2;
  mixer.output_gate = keys.Bool("use_gate", true);
  ReadConv(keys, mixer);
  return mixer;
}

constexpr Architecture kArchitectures[] = {
    {"delta_net", 24, &ReadDeltaNet},
    {"gated_deltanet", 21, &ReadGatedDeltaNet},
};

// Model types that one might try, and why they cannot run.
struct Refused {
  const char* model_type;
  const char* reason;
};
constexpr const char* kUnbounded =
    "it mixes in softmax attention over the whole context, so its state has no fixed size";
constexpr const char* kVectorDecay = "its decay is per key channel, which the mixer does not have yet";
constexpr Refused kRefused[] = {
    {"qwen3_next", kUnbounded},
    {"qwen3_5", kUnbounded},
    {"qwen3_5_text", kUnbounded},
    {"qwen3_5_moe", kUnbounded},
    {"qwen3_5_moe_text", kUnbounded},
    {"kimi_linear", kUnbounded},
    {"kda", kVectorDecay},
    {"gla", kVectorDecay},
    {"rwkv7", "its update is diagonal plus low rank with token shift, which the mixer does not have yet"},
    {"gated_deltaproduct", "it writes several times per token, which the mixer does not do yet"},
    {"linear_attn", "its feature maps and normalisers are not in the mixer yet"},
};

// Keys of Hugging Face configs that do not change what the model computes. Everything else that is not read is refused.
constexpr const char* kHarmless[] = {
    // Which code made or runs it, and in which type.
    "_name_or_path", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version",
    "_attn_implementation_autoset", "attn_mode", "torchscript", "use_bfloat16", "return_dict", "output_attentions",
    "output_hidden_states", "use_cache", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy",
    // Only training looks at them.
    "initializer_range", "use_l2warp", "gradient_checkpointing",
    // The state has no length, so neither has the text.
    "max_position_embeddings",
    // Where the norms' weights are in old files; weights.cc finds them by name.
    "norm_first",
    // Token ids that generation does not use.
    "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id", "tokenizer_class"};

absl::StatusOr<const Architecture*> FindArchitecture(const json& object) {
  std::vector<const char*> supported;
  for (const Architecture& architecture : kArchitectures) supported.push_back(architecture.model_type);
  const std::string expected = absl::StrCat("; palimpsest runs ", absl::StrJoin(supported, ", "));
  const auto found = object.find("model_type");
  if (found == object.end() || !found->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: 'model_type' is missing or not a string", expected));
  }
  const auto& name = found->get_ref<const std::string&>();
  for (const Architecture& architecture : kArchitectures) {
    if (name == architecture.model_type) return &architecture;
  }
  for (const Refused& refused : kRefused) {
    if (name == refused.model_type) {
      return absl::InvalidArgumentError(
          absl::StrCat("config.json: model_type '", name, "' is not supported: ", refused.reason, expected));
    }
  }
  return absl::InvalidArgumentError(absl::StrCat("config.json: model_type ", Quoted(name), " is not known", expected));
}

// fla's rule: two thirds of hidden_ratio times the hidden size, rounded up to a multiple of 256.
int32_t ReadMlpInner(ConfigKeys& keys, int32_t hidden) {
  const double ratio = keys.OptionalReal("hidden_ratio", 0.01, 64.0).value_or(4.0);
  if (const auto given = keys.OptionalInt("intermediate_size", 1, kMaxWidth)) return *given;
  const double inner = 256 * std::ceil(std::trunc(hidden * ratio * 2 / 3) / 256);
  if (inner < 1 || inner > kMaxWidth) {
    keys.Fail(absl::StrCat("hidden_size ", hidden, " with hidden_ratio ", ratio, " gives an intermediate size of ",
                           inner, ", expected 1 to ", kMaxWidth));
    return 1;
  }
  return static_cast<int32_t>(inner);
}

void CheckWidths(ConfigKeys& keys, const ModelConfig& config) {
  const MixerConfig& mixer = config.mixer;
  if (mixer.key_width() > kMaxWidth || mixer.value_width() > kMaxWidth) {
    keys.Fail(absl::StrCat("all heads together are ", mixer.key_width(), " wide for keys and ", mixer.value_width(),
                           " for values, expected at most ", kMaxWidth));
    return;
  }
  const int64_t tail = std::max(mixer.conv_width - 1, 0) * mixer.conv_channels();
  const int64_t state_bytes = int64_t{4} * config.layers * (mixer.shape.state_floats() + tail);
  if (state_bytes > kMaxStateBytes) {
    keys.Fail(absl::StrCat("one state takes ", state_bytes, " bytes, expected at most ", kMaxStateBytes));
  }
}

const char* NameOf(UpdateRule rule) {
  switch (rule) {
    case UpdateRule::kSum:
      return "sum";
    case UpdateRule::kDelta:
      return "delta";
    case UpdateRule::kGatedDelta:
      return "gated_delta";
  }
  return "?";
}

const char* NameOf(FeatureMapKind map) {
  switch (map) {
    case FeatureMapKind::kIdentity:
      return "identity";
    case FeatureMapKind::kElu1:
      return "elu1";
    case FeatureMapKind::kRelu:
      return "relu";
    case FeatureMapKind::kSilu:
      return "silu";
  }
  return "?";
}

const char* NameOf(KeyNorm norm) {
  switch (norm) {
    case KeyNorm::kNone:
      return "none";
    case KeyNorm::kSum:
      return "sum";
    case KeyNorm::kL2:
      return "l2";
  }
  return "?";
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::FromJson(std::string_view text) {
  absl::StatusOr<json> object = ParseJsonObject(text, "config.json", {.max_bytes = kMaxConfigBytes});
  if (!object.ok()) return object.status();
  absl::StatusOr<const Architecture*> architecture = FindArchitecture(*object);
  if (!architecture.ok()) return architecture.status();

  ConfigKeys keys(*object, "config.json");
  keys.Accept("model_type");
  for (const char* key : kHarmless) keys.Accept(key);
  keys.AcceptOnly("attn", nullptr, "softmax attention layers have no state of fixed size");
  keys.AcceptOnly("attnres_block_size", nullptr, "residual attention changes the residual stream");
  keys.AcceptOnly("share_conv_kernel", false, "one convolution before the projections is another model");
  keys.AcceptOnly("elementwise_affine", true, "norms without weights are not supported");
  keys.AcceptOnly("quantization_config", nullptr, "only f32, bf16 and f16 weights are read");

  ModelConfig config;
  config.architecture = (*architecture)->model_type;
  config.vocabulary = keys.Int("vocab_size", 32000, 2, kMaxVocabulary);
  config.hidden = keys.Int("hidden_size", 2048, 1, kMaxWidth);
  config.layers = keys.Int("num_hidden_layers", (*architecture)->default_layers, 1, kMaxLayers);
  config.mlp_inner = ReadMlpInner(keys, config.hidden);
  config.norm_eps = static_cast<float>(keys.Real("norm_eps", 1e-6, 1e-12, 0.1));
  config.tied_embeddings = keys.Bool("tie_word_embeddings", false);
  static constexpr ConfigKeys::Word<bool> kHiddenActs[] = {{"swish", true}, {"silu", true}};
  keys.OneOf<bool>("hidden_act", "swish", kHiddenActs);
  config.mixer = (*architecture)->read_mixer(keys, config.hidden);
  config.mixer.beta_scale = keys.Bool("allow_neg_eigval", false) ? 2.0f : 1.0f;
  config.mixer.gate_activation = config.mixer.output_gate ? GateActivation::kSilu : GateActivation::kNone;

  const std::vector<int32_t> bos = keys.TokenIds("bos_token_id", 1, config.vocabulary);
  if (bos.size() > 1) keys.Fail("'bos_token_id' is a list, expected one id or null");
  if (!bos.empty()) config.bos_token = bos[0];
  config.eos_tokens = keys.TokenIds("eos_token_id", 2, config.vocabulary);
  std::ranges::sort(config.eos_tokens);
  CheckWidths(keys, config);
  if (absl::Status status = keys.Finish(); !status.ok()) return status;
  return config;
}

absl::Status ModelConfig::AddGenerationConfig(std::string_view text) {
  const std::string where = "generation_config.json";
  absl::StatusOr<json> object = ParseJsonObject(text, where, {.max_bytes = kMaxConfigBytes});
  if (!object.ok()) return object.status();
  ConfigKeys keys(*object, where);
  for (const auto& [key, value] : object->items()) keys.Accept(key.c_str());
  const std::vector<int32_t> added = keys.TokenIds("eos_token_id", -1, vocabulary);
  if (absl::Status status = keys.Finish(); !status.ok()) return status;
  eos_tokens.insert(eos_tokens.end(), added.begin(), added.end());
  std::ranges::sort(eos_tokens);
  eos_tokens.erase(std::unique(eos_tokens.begin(), eos_tokens.end()), eos_tokens.end());
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ModelConfig::FromFolder(const std::string& folder) {
  const auto in_folder = [&](const absl::Status& status) {
    return absl::Status(status.code(), absl::StrCat(folder, "/", status.message()));
  };
  absl::StatusOr<std::string> text = ReadSmallFile(folder + "/config.json", kMaxConfigBytes);
  if (!text.ok()) return text.status();
  absl::StatusOr<ModelConfig> config = FromJson(*text);
  if (!config.ok()) return in_folder(config.status());
  absl::StatusOr<std::string> generation = ReadSmallFile(folder + "/generation_config.json", kMaxConfigBytes);
  if (absl::IsNotFound(generation.status())) return config;
  if (!generation.ok()) return generation.status();
  if (absl::Status status = config->AddGenerationConfig(*generation); !status.ok()) return in_folder(status);
  return config;
}

std::string ModelConfig::Canonical() const {
  return absl::StrCat("architecture=", architecture, " vocabulary=", vocabulary, " hidden=", hidden, " layers=", layers,
                      " mlp_inner=", mlp_inner, " norm_eps=", absl::StrFormat("%a", norm_eps),
                      " tied=", tied_embeddings, " heads=", mixer.shape.heads, " value_heads=", mixer.shape.value_heads,
                      " key_dim=", mixer.shape.key_dim, " value_dim=", mixer.shape.value_dim,
                      " rule=", NameOf(mixer.rule), " feature_map=", NameOf(mixer.feature_map),
                      " key_norm=", NameOf(mixer.key_norm), " learned_beta=", mixer.learned_beta,
                      " beta_scale=", absl::StrFormat("%a", mixer.beta_scale), " output_gate=", mixer.output_gate,
                      " conv_width=", mixer.conv_width, " conv_bias=", mixer.conv_bias);
}

}  // namespace palimpsest
