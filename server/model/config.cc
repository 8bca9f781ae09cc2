#include "server/model/config.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "server/json/json.h"
#include "server/model/architectures.h"
#include "server/model/checkpoint/safetensors.h"
#include "server/model/common_keys.h"
#include "server/model/config_keys.h"

namespace palimpsest {
namespace {

using nlohmann::json;

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
    {"olmo_hybrid", kUnbounded},
    {"kda", kVectorDecay},
    {"gla", kVectorDecay},
    {"rwkv7", "its update is diagonal plus low rank with token shift, which the mixer does not have yet"},
    {"gated_deltaproduct", "it writes several times per token, which the mixer does not do yet"},
    {"linear_attn", "its feature maps and normalisers are not in the mixer yet"},
    {"comba", "it corrects its queries with its keys, which the mixer does not do"},
    {"gsa", "it has two chained memories with slots of their own, which the mixer does not have"},
    {"hgrn2", "its gates take the place of its keys, which the mixer does not do"},
    {"mamba2", "it is a state-space model: its projections, convolution and skip connections are not the mixer's"},
    {"retnet", "its decays are fixed for each head and its keys are rotated, which the mixer does not do"},
};

absl::StatusOr<const Architecture*> FindArchitecture(const json& object) {
  std::vector<const Architecture*> known;
  for (const auto family : {FlaArchitectures(), PaperArchitectures()}) {
    for (const Architecture& architecture : family) known.push_back(&architecture);
  }
  std::vector<const char*> supported;
  for (const Architecture* architecture : known) supported.push_back(architecture->model_type);
  const std::string expected = absl::StrCat("; palimpsest runs ", absl::StrJoin(supported, ", "));
  const auto found = object.find("model_type");
  if (found == object.end() || !found->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: 'model_type' is missing or not a string", expected));
  }
  const auto& name = found->get_ref<const std::string&>();
  for (const Architecture* architecture : known) {
    if (name == architecture->model_type) return architecture;
  }
  for (const Refused& refused : kRefused) {
    if (name == refused.model_type) {
      return absl::InvalidArgumentError(
          absl::StrCat("config.json: model_type '", name, "' is not supported: ", refused.reason, expected));
    }
  }
  return absl::InvalidArgumentError(absl::StrCat("config.json: model_type ", Quoted(name), " is not known", expected));
}

void CheckWidths(ConfigKeys& keys, const ModelConfig& config) {
  const MixerConfig& mixer = config.mixer;
  if (mixer.key_width() > kMaxWidth || mixer.value_width() > kMaxWidth) {
    keys.Fail(absl::StrCat("all heads together are ", mixer.key_width(), " wide for keys and ", mixer.value_width(),
                           " for values, expected at most ", kMaxWidth));
    return;
  }
  // As a real number: nothing has bounded the product yet.
  double floats = 0;
  if (mixer.is_window()) {
    floats = 2.0 * mixer.window_capacity() * static_cast<double>(mixer.key_width());
  } else {
    floats =
        static_cast<double>(mixer.key_width()) * mixer.shape.value_dim * mixer.shape.value_heads / mixer.shape.heads;
    floats += static_cast<double>(std::max(mixer.conv_width - 1, 0) * mixer.conv_channels());
    if (mixer.attention_norm != AttentionNormKind::kNone) floats += static_cast<double>(mixer.key_width());
  }
  const double state_bytes = 4.0 * config.layers * floats;
  if (state_bytes > static_cast<double>(kMaxStateBytes)) {
    keys.Fail(absl::StrCat("one state takes ", static_cast<int64_t>(state_bytes), " bytes, expected at most ",
                           kMaxStateBytes));
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
    case UpdateRule::kChannelGatedDelta:
      return "channel_gated_delta";
    case UpdateRule::kLowRank:
      return "low_rank";
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
    case FeatureMapKind::kDpfp:
      return "dpfp";
    case FeatureMapKind::kFavor:
      return "favor";
  }
  return "?";
}

const char* NameOf(KeyNorm norm) {
  switch (norm) {
    case KeyNorm::kNone:
      return "none";
    case KeyNorm::kSum:
    case KeyNorm::kL1:  // the sum of fla, of which there is one, too
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
  AcceptCommonKeys(keys);

  ModelConfig config;
  config.architecture = (*architecture)->model_type;
  config.vocabulary = keys.Int("vocab_size", 32000, 2, kMaxVocabulary);
  config.hidden = keys.Int("hidden_size", 2048, 1, kMaxWidth);
  (*architecture)->read(keys, config);
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
  absl::StatusOr<std::string> text = ReadFile(folder + "/config.json", kMaxConfigBytes);
  if (!text.ok()) return text.status();
  if (absl::Status status = CheckIsNoPointer(*text, folder + "/config.json"); !status.ok()) return status;
  absl::StatusOr<ModelConfig> config = FromJson(*text);
  if (!config.ok()) return in_folder(config.status());
  absl::StatusOr<std::string> generation = ReadFile(folder + "/generation_config.json", kMaxConfigBytes);
  if (absl::IsNotFound(generation.status())) return config;
  if (!generation.ok()) return generation.status();
  if (absl::Status status = config->AddGenerationConfig(*generation); !status.ok()) return in_folder(status);
  return config;
}

int32_t ModelConfig::cluster_width(int32_t i) const {
  int64_t divisor = 1;
  for (; i > 0 && divisor <= embedding_size; --i) divisor *= div_val;
  return static_cast<int32_t>(embedding_size / divisor);
}

std::string ModelConfig::Canonical() const {
  std::string text = absl::StrCat(
      "architecture=", architecture, " vocabulary=", vocabulary, " hidden=", hidden, " layers=", layers,
      " mlp_inner=", mlp_inner, " norm_eps=", absl::StrFormat("%a", norm_eps), " tied=", tied_embeddings,
      " heads=", mixer.shape.heads, " value_heads=", mixer.shape.value_heads, " key_dim=", mixer.shape.key_dim,
      " value_dim=", mixer.shape.value_dim, " rule=", NameOf(mixer.rule), " feature_map=", NameOf(mixer.feature_map),
      " key_norm=", NameOf(mixer.key_norm), " learned_beta=", mixer.learned_beta,
      " beta_scale=", absl::StrFormat("%a", mixer.beta_scale), " output_gate=", mixer.output_gate,
      " conv_width=", mixer.conv_width, " conv_bias=", mixer.conv_bias);
  // What other architectures have besides is named only where it is there.
  const auto add = [&text](const char* name, int64_t value, int64_t absent) {
    if (value != absent) absl::StrAppend(&text, " ", name, "=", value);
  };
  add("window", mixer.is_window(), 0);
  add("window_segment", mixer.window_segment, 0);
  add("window_memory", mixer.window_memory, 0);
  add("relative_positions", mixer.relative_positions, 0);
  add("largest_distance", mixer.largest_distance, MixerConfig().largest_distance);
  add("head_dim", mixer.head_dim, mixer.shape.key_dim);
  add("dpfp_rolls", mixer.dpfp_rolls, 0);
  add("favor_projections", mixer.favor_projections, 0);
  add("attention_norm", static_cast<int64_t>(mixer.attention_norm), 0);
  add("scaled_denominator", mixer.scaled_denominator, 0);
  add("sigmoid_gate", mixer.gate_activation == GateActivation::kSigmoid, 0);
  add("silu_values", mixer.silu_values, 1);
  add("output_norm", mixer.output_norm, 1);
  add("layer_norm", layer_norm, 0);
  add("norm_placement", static_cast<int64_t>(norm_placement), 0);
  add("swiglu", swiglu, 1);
  add("final_norm", final_norm, 1);
  add("embedding_size", embedding_size, hidden);
  add("div_val", div_val, 1);
  for (const int32_t cutoff : cutoffs) absl::StrAppend(&text, " cutoff=", cutoff);
  add("sinusoidal_positions", sinusoidal_positions, 0);
  add("segment_length", segment_length, 0);
  return text;
}

}  // namespace palimpsest
