#include "server/model/config.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "server/json/json.h"
#include "server/model/architectures/architecture.h"
#include "server/model/architectures/common_keys.h"
#include "server/model/architectures/config_keys.h"
#include "server/model/checkpoint/safetensors.h"

namespace palimpsest {
namespace {

using nlohmann::json;

void CheckWidth(ConfigKeys& keys, int64_t query_width, int64_t value_width) {
  if (query_width <= kMaxWidth && value_width <= kMaxWidth) return;
  keys.Fail(absl::StrCat("all heads together are ", query_width, " wide for keys and ", value_width,
                         " for values, expected at most ", kMaxWidth));
}

// As real numbers: nothing has bounded the products yet.
double StateFloats(ConfigKeys& keys, const FastWeightConfig& c) {
  CheckWidth(keys, std::max(c.key_width(), c.mapped_key_width()), c.value_width());
  double floats = static_cast<double>(c.mapped_query_width()) * c.shape.value_dim * c.shape.value_heads / c.shape.heads;
  if (c.conv) floats += static_cast<double>((c.conv->width - 1) * c.conv_channels());
  if (c.attention_norm) floats += static_cast<double>(c.mapped_query_width());
  return floats;
}

double StateFloats(ConfigKeys& keys, const AttentionConfig& c) {
  CheckWidth(keys, c.width(), c.width());
  return 2.0 * c.capacity() * static_cast<double>(c.width());
}

void CheckSizes(ConfigKeys& keys, const ModelConfig& config) {
  double floats = 0;
  for (const LayerConfig& layer : config.layers) {
    floats += std::visit([&](const auto& mixer) { return StateFloats(keys, mixer); }, layer.mixer);
  }
  if (4.0 * floats <= static_cast<double>(kMaxStateBytes)) return;
  keys.Fail(absl::StrCat("one state takes ", static_cast<int64_t>(4.0 * floats), " bytes, expected at most ",
                         kMaxStateBytes));
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::FromJson(std::string_view text) {
  absl::StatusOr<json> object = ParseJsonObject(text, "config.json", {.max_bytes = kMaxConfigBytes});
  if (!object.ok()) return object.status();
  absl::StatusOr<const Architecture*> architecture = ArchitectureOf(*object);
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
  CheckSizes(keys, config);
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
  for (; i > 0 && divisor <= embedding.size; --i) divisor *= embedding.div_val;
  return static_cast<int32_t>(embedding.size / divisor);
}

bool ModelConfig::counts_tokens() const {
  return embedding.sinusoids || std::ranges::any_of(layers, [](const LayerConfig& layer) {
           return std::holds_alternative<AttentionConfig>(layer.mixer);
         });
}

}  // namespace palimpsest
