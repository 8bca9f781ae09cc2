#include "server/model/testing/random_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "server/model/architectures/architecture.h"
#include "server/model/layers/attention.h"
#include "server/model/layers/fast_weight.h"
#include "server/model/layers/mlp.h"

namespace palimpsest::testing {
namespace {

// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): the same numbers on every machine, unlike <random>'s distributions.
class Uniform {
 public:
  explicit Uniform(uint64_t seed) : state_(seed) {}

  float operator()(float low, float high) {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return low + (high - low) * (static_cast<float>(z >> 40) * 0x1p-24f);
  }

 private:
  uint64_t state_;
};

// delta_net gives head sizes as a ratio to the hidden size that is multiplied out and truncated.
double ExpandRatio(int64_t width, int64_t hidden) {
  const double ratio = static_cast<double>(width) / static_cast<double>(hidden);
  if (std::trunc(static_cast<double>(hidden) * ratio) == static_cast<double>(width)) return ratio;
  return (static_cast<double>(width) + 0.25) / static_cast<double>(hidden);
}

// Whether the spec has a field for each setting.
bool IsSpelledOut(const RandomCheckpointSpec& spec) {
  return spec.model_type == "gated_deltanet" || spec.model_type == "delta_net";
}

class Maker {
 public:
  explicit Maker(const RandomCheckpointSpec& spec) : spec_(spec), uniform_(spec.seed) {}

  std::vector<TensorToWrite> Make() {
    if (spec_.model_type == "fwp") return MakePaper();
    if (!IsSpelledOut(spec_)) return MakeFromConfig();
    const int64_t d = spec_.hidden, inner = spec_.mlp_inner;
    const int64_t keys = int64_t{spec_.heads} * spec_.key_dim, values = int64_t{spec_.value_heads} * spec_.value_dim;
    Embeddings();
    for (int32_t i = 0; i < spec_.layers; ++i) {
      const std::string layer = absl::StrCat("model.layers.", i, "."), attn = layer + "attn.";
      AttnNorm(layer, /*first=*/i == 0);
      Matrix(attn + "q_proj.weight", keys, d);
      Matrix(attn + "k_proj.weight", keys, d);
      Matrix(attn + "v_proj.weight", values, d);
      if (spec_.use_gate) Matrix(attn + "g_proj.weight", values, d);
      if (spec_.use_beta || Gated()) Matrix(attn + "b_proj.weight", spec_.value_heads, d);
      if (Gated()) {
        Matrix(attn + "a_proj.weight", spec_.value_heads, d);
        Vector(attn + "A_log", spec_.value_heads, -2.0f, 1.5f);
        Vector(attn + "dt_bias", spec_.value_heads, -4.0f, -1.0f);
      }
      if (spec_.conv_size > 0) {
        Conv(attn + "q_conv1d", keys);
        Conv(attn + "k_conv1d", keys);
        Conv(attn + "v_conv1d", values);
      }
      Vector(attn + "o_norm.weight", spec_.value_dim, 0.7f, 1.3f);
      Matrix(attn + "o_proj.weight", d, values, /*writes_residual=*/true);
      Vector(layer + "mlp_norm.weight", d, 0.7f, 1.3f);
      Matrix(layer + "mlp.gate_proj.weight", inner, d);
      Matrix(layer + "mlp.up_proj.weight", inner, d);
      Matrix(layer + "mlp.down_proj.weight", d, inner, /*writes_residual=*/true);
    }
    Vector("model.norm.weight", d, 0.7f, 1.3f);
    if (!spec_.tied) Matrix("lm_head.weight", spec_.vocabulary, d);
    return std::move(tensors_);
  }

  // What the model asks for, under the names that it asks for first.
  std::vector<TensorToWrite> MakeFromConfig() {
    const absl::StatusOr<ModelConfig> config = ModelConfig::FromJson(RandomCheckpointConfig(spec_));
    PALIMPSEST_CHECK(config.ok());
    const Architecture& architecture = *FindArchitecture(config->architecture);
    const int64_t d = config->hidden;
    const auto make = [&](const std::vector<TensorSpec>& specs, size_t index) {
      for (const TensorSpec& spec : specs) MakeRole(architecture.NameOf(spec.role, index), spec);
    };
    make({{Role::kEmbedding, {config->vocabulary, d}}}, 0);
    for (size_t i = 0; i < config->layers.size(); ++i) {
      const LayerConfig& layer = config->layers[i];
      const auto tensors = [&](const auto& of_kind) { return Tensors(of_kind, d); };
      make(Tensors(layer.norm, Role::kMixerNorm, Role::kMixerNormBias, d), i);
      make(std::visit(tensors, layer.mixer), i);
      make(Tensors(layer.norm, Role::kChannelNorm, Role::kChannelNormBias, d), i);
      make(std::visit(tensors, layer.channel), i);
    }
    make(Tensors(*config->head.norm, Role::kFinalNorm, Role::kFinalNormBias, d), 0);
    if (!config->head.tied) make({{Role::kHead, {config->vocabulary, d}}}, 0);
    return std::move(tensors_);
  }

  // The systems of 2102.11174: server/model/README.md.
  std::vector<TensorToWrite> MakePaper() {
    const nlohmann::json settings = nlohmann::json::parse(spec_.settings);
    const int64_t d = spec_.hidden, width = int64_t{spec_.heads} * spec_.key_dim;
    const bool softmax = settings.value("mixer", "") == "softmax";
    const bool relative = settings.value("positions", "") == "relative";
    PaperEnds(settings);
    if (relative) {
      for (const char* name : {"model.content_bias", "model.position_bias"}) Matrix(name, spec_.heads, spec_.key_dim);
    }
    for (int32_t i = 0; i < spec_.layers; ++i) {
      const std::string layer = absl::StrCat("model.layers.", i, "."), attn = layer + "attn.";
      for (const char* name : {"q_proj", "k_proj", "v_proj"}) Matrix(absl::StrCat(attn, name, ".weight"), width, d);
      if (!softmax && settings.value("update_rule", "delta") == "delta") Matrix(attn + "b_proj.weight", spec_.heads, d);
      if (relative) Matrix(attn + "r_proj.weight", width, d);
      if (settings.value("feature_map", "") == "favor") {
        Matrix(attn + "feature_projection", settings.at("favor_features").get<int64_t>(), spec_.key_dim);
      }
      Matrix(attn + "o_proj.weight", d, width);
      for (const char* name : {"attn_norm", "mlp_norm"}) {
        Vector(absl::StrCat(layer, name, ".weight"), d, 0.7f, 1.3f);
        Vector(absl::StrCat(layer, name, ".bias"), d, -0.2f, 0.2f);
      }
      Matrix(layer + "mlp.up_proj.weight", spec_.mlp_inner, d);
      Vector(layer + "mlp.up_proj.bias", spec_.mlp_inner, -0.2f, 0.2f);
      Matrix(layer + "mlp.down_proj.weight", d, spec_.mlp_inner);
      Vector(layer + "mlp.down_proj.bias", d, -0.2f, 0.2f);
    }
    return std::move(tensors_);
  }

 private:
  void PaperEnds(const nlohmann::json& settings) {
    std::vector<int64_t> ends = settings.value("cutoffs", std::vector<int64_t>());
    ends.push_back(spec_.vocabulary);
    const int64_t embedding = settings.value("embedding_size", int64_t{spec_.hidden});
    const int64_t div_val = settings.value("div_val", int64_t{1});
    const auto clusters = std::ssize(ends);
    const int64_t tables = div_val == 1 ? 1 : clusters;
    const bool projected = div_val > 1 || embedding != spec_.hidden;
    const auto tied = settings.value("tie_projections", std::vector<bool>(clusters, false));
    int64_t width = embedding;
    for (int64_t i = 0; i < clusters; ++i, width /= div_val) {
      const int64_t ids = tables == 1 ? spec_.vocabulary : ends[i] - (i == 0 ? 0 : ends[i - 1]);
      if (i < tables) {
        Matrix(absl::StrCat("model.embeddings.", i, ".weight"), ids, width);
        if (projected) Matrix(absl::StrCat("model.embedding_projections.", i, ".weight"), spec_.hidden, width);
        if (!spec_.tied) Matrix(absl::StrCat("lm_head.", i, ".weight"), ids, width);
        Vector(absl::StrCat("lm_head.", i, ".bias"), ids, -0.5f, 0.5f);
      }
      if (projected && !tied[i]) Matrix(absl::StrCat("lm_head.projections.", i, ".weight"), width, spec_.hidden);
    }
    if (clusters == 1) return;
    Matrix("lm_head.clusters.weight", clusters - 1, embedding);
    Vector("lm_head.clusters.bias", clusters - 1, -0.5f, 0.5f);
  }

  void MakeRole(const std::string& name, const TensorSpec& spec) {
    if (spec.shape.size() == 3) return Add(name, spec.shape, Draw(spec.shape[0] * spec.shape[2], -0.7f, 0.7f));
    if (spec.shape.size() == 2) return Matrix(name, spec.shape[0], spec.shape[1]);
    switch (spec.role) {
      case Role::kMixerNorm:
      case Role::kChannelNorm:
      case Role::kFinalNorm:
      case Role::kOutputNorm:
        return Vector(name, spec.shape[0], 0.7f, 1.3f);
      case Role::kDecayRate:
        return Vector(name, spec.shape[0], -2.0f, 1.5f);
      case Role::kDecayBias:
        return Vector(name, spec.shape[0], -4.0f, -1.0f);
      default:
        return Vector(name, spec.shape[0], -0.2f, 0.2f);
    }
  }

  bool Gated() const { return spec_.model_type == "gated_deltanet"; }
  bool Poisoned() const { return spec_.poison_token >= 0; }

  std::vector<float> Draw(int64_t count, float low, float high) {
    std::vector<float> values(count);
    for (float& value : values) value = uniform_(low, high);
    return values;
  }
  void Add(std::string name, std::vector<int64_t> shape, const std::vector<float>& values) {
    tensors_.push_back(MakeTensor(std::move(name), spec_.dtype, std::move(shape), values));
  }

  // The poison is a channel of the residual stream that is zero for all tokens but one and that no layer writes; the
  // first norm multiplies it beyond the range of float32.
  void Embeddings() {
    std::vector<float> values = Draw(int64_t{spec_.vocabulary} * spec_.hidden, -1.0f, 1.0f);
    if (Poisoned()) {
      for (int64_t token = 0; token < spec_.vocabulary; ++token) {
        values[token * spec_.hidden] = token == spec_.poison_token ? 4.0f : 0.0f;
      }
    }
    Add("model.embeddings.weight", {spec_.vocabulary, spec_.hidden}, values);
  }
  void AttnNorm(const std::string& layer, bool first) {
    std::vector<float> values = Draw(spec_.hidden, 0.7f, 1.3f);
    if (first && Poisoned()) values[0] = 3.0e38f;
    Add(layer + "attn_norm.weight", {spec_.hidden}, values);
  }
  void Matrix(std::string name, int64_t out, int64_t in, bool writes_residual = false) {
    const float bound = 1.2f / std::sqrt(static_cast<float>(in));
    std::vector<float> values = Draw(out * in, -bound, bound);
    if (writes_residual && Poisoned()) std::fill_n(values.begin(), in, 0.0f);
    Add(std::move(name), {out, in}, values);
  }
  void Vector(std::string name, int64_t size, float low, float high) {
    Add(std::move(name), {size}, Draw(size, low, high));
  }
  void Conv(const std::string& name, int64_t channels) {
    Add(name + ".weight", {channels, 1, spec_.conv_size}, Draw(channels * spec_.conv_size, -0.7f, 0.7f));
    if (spec_.conv_bias) Vector(name + ".bias", channels, -0.2f, 0.2f);
  }

  const RandomCheckpointSpec& spec_;
  Uniform uniform_;
  std::vector<TensorToWrite> tensors_;
};

}  // namespace

std::string RandomCheckpointConfig(const RandomCheckpointSpec& spec) {
  if (spec.model_type == "fwp") {
    nlohmann::json config = nlohmann::json::parse(spec.settings);
    config.update({{"model_type", "fwp"},
                   {"vocab_size", spec.vocabulary},
                   {"hidden_size", spec.hidden},
                   {"num_hidden_layers", spec.layers},
                   {"intermediate_size", spec.mlp_inner},
                   {"num_heads", spec.heads},
                   {"head_dim", spec.key_dim},
                   {"tie_word_embeddings", spec.tied},
                   {"bos_token_id", nullptr},
                   {"eos_token_id", nullptr}});
    if (spec.eos_token >= 0) config["eos_token_id"] = spec.eos_token;
    return config.dump(2);
  }
  if (!IsSpelledOut(spec)) {
    nlohmann::json config = {{"model_type", spec.model_type},
                             {"vocab_size", spec.vocabulary},
                             {"hidden_size", spec.hidden},
                             {"num_hidden_layers", spec.layers},
                             {"intermediate_size", spec.mlp_inner},
                             {"num_heads", spec.heads},
                             {"tie_word_embeddings", spec.tied},
                             {"bos_token_id", nullptr},
                             {"eos_token_id", nullptr}};
    config.update(nlohmann::json::parse(spec.settings));
    if (spec.eos_token >= 0) config["eos_token_id"] = spec.eos_token;
    return config.dump(2);
  }
  nlohmann::json config = {{"model_type", spec.model_type},
                           {"vocab_size", spec.vocabulary},
                           {"hidden_size", spec.hidden},
                           {"num_hidden_layers", spec.layers},
                           {"intermediate_size", spec.mlp_inner},
                           {"num_heads", spec.heads},
                           {"use_short_conv", spec.conv_size > 0},
                           {"conv_size", std::max(spec.conv_size, 1)},
                           {"use_gate", spec.use_gate},
                           {"allow_neg_eigval", spec.allow_neg_eigval},
                           {"tie_word_embeddings", spec.tied},
                           {"norm_eps", spec.norm_eps},
                           {"bos_token_id", nullptr},
                           {"eos_token_id", nullptr}};
  if (spec.eos_token >= 0) config["eos_token_id"] = spec.eos_token;
  if (spec.model_type == "gated_deltanet") {
    config["num_v_heads"] = spec.value_heads;
    config["output_gate_activation"] = spec.gate_activation;
    config["head_dim"] = spec.key_dim;
    config["expand_v"] = ExpandRatio(spec.value_dim, spec.key_dim);
  } else {
    PALIMPSEST_CHECK(spec.model_type == "delta_net" && spec.heads == spec.value_heads);
    config["expand_k"] = ExpandRatio(int64_t{spec.heads} * spec.key_dim, spec.hidden);
    config["expand_v"] = ExpandRatio(int64_t{spec.value_heads} * spec.value_dim, spec.hidden);
    config["use_beta"] = spec.use_beta;
    config["qk_activation"] = spec.qk_activation;
    config["qk_norm"] = spec.qk_norm;
  }
  return config.dump(2);
}

std::vector<TensorToWrite> RandomCheckpointTensors(const RandomCheckpointSpec& spec) {
  PALIMPSEST_CHECK(IsSpelledOut(spec) || spec.poison_token < 0);
  PALIMPSEST_CHECK(spec.model_type != "fwp" || spec.key_dim == spec.value_dim);
  PALIMPSEST_CHECK(spec.poison_token < 0 || spec.dtype != DType::kF16);
  return Maker(spec).Make();
}

void WriteRandomCheckpoint(const std::string& folder, const RandomCheckpointSpec& spec) {
  std::filesystem::create_directories(folder);
  WriteFile(folder + "/config.json", RandomCheckpointConfig(spec));
  WriteShards(folder, RandomCheckpointTensors(spec), spec.shards);
}

}  // namespace palimpsest::testing
