// The canonical text of a configuration. It is part of every fingerprint: what is written for a setting that a released
// version had never changes, and what comes later is named only where it is not at its default.
#include <string_view>
#include <type_traits>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/model/config.h"

namespace palimpsest {
namespace {

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
    case UpdateRule::kChannelGatedSum:
      return "channel_gated_sum";
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
    case FeatureMapKind::kElementwiseProduct:
      return "elementwise_product";
    case FeatureMapKind::kT2r:
      return "t2r";
    case FeatureMapKind::kHedgehog:
      return "hedgehog";
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
    case KeyNorm::kShiftedSum:
      return "shifted_sum";
  }
  return "?";
}

const char* NameOf(DecayKind kind) {
  switch (kind) {
    case DecayKind::kSoftplus:
      return "softplus";
    case DecayKind::kSigmoid:
      return "sigmoid";
    case DecayKind::kLogSigmoid:
      return "log_sigmoid";
  }
  return "?";
}

// Settings one after the other: "name=value".
class Text {
 public:
  template <typename T>
  void Add(const char* name, const T& value) {
    absl::StrAppend(&text_, text_.empty() ? "" : " ", name, "=");
    if constexpr (std::is_same_v<T, std::string_view>) {
      text_.append(value);  // Abseil's string_view need not be the standard one
    } else if constexpr (std::is_same_v<T, float>) {
      absl::StrAppendFormat(&text_, "%a", value);
    } else {
      absl::StrAppend(&text_, value);
    }
  }
  // Named only where it is not at its default.
  template <typename T>
  void AddUnless(const T& absent, const char* name, const T& value) {
    if (value != absent) Add(name, value);
  }
  std::string Take() && { return std::move(text_); }

 private:
  std::string text_;
};

// What is written of a mixer of any kind first.
void AddMixer(const FastWeightConfig& c, Text& text) {
  text.Add("heads", c.shape.heads);
  text.Add("value_heads", c.shape.value_heads);
  text.Add("key_dim", c.shape.key_dim);
  text.Add("value_dim", c.shape.value_dim);
  text.Add("rule", NameOf(c.rule));
  text.Add("feature_map", NameOf(c.features.map));
  text.Add("key_norm", NameOf(c.features.key_norm));
  text.Add("learned_beta", c.beta.learned);
  text.Add("beta_scale", c.beta.scale);
  text.Add("output_gate", c.output.gate != GateActivation::kNone);
  text.Add("conv_width", c.conv ? c.conv->width : 0);
  text.Add("conv_bias", c.conv && c.conv->bias);
}

void AddDecay(const DecayConfig& c, Text& text) {
  text.AddUnless(std::string_view(NameOf(DecayKind::kSoftplus)), "decay", std::string_view(NameOf(c.kind)));
  text.AddUnless(0, "decay_rank", c.rank);
  text.AddUnless(true, "decay_rate", c.rate);
  text.AddUnless(DecayConfig().lower_bound, "decay_lower_bound", c.lower_bound);
  text.AddUnless(1.0f, "decay_divisor", c.divisor);
}

void AddMixerDetails(const FastWeightConfig& c, Text& text) {
  text.AddUnless(c.shape.key_dim, "head_dim", c.head_dim);
  text.AddUnless(0, "dpfp_rolls", c.features.dpfp_rolls);
  text.AddUnless(0, "favor_projections", c.features.favor_projections);
  if (c.attention_norm) {
    text.Add("attention_norm", c.attention_norm->keys_too ? 2 : 1);
    text.AddUnless(false, "scaled_denominator", c.attention_norm->scaled_denominator);
  }
  text.AddUnless(std::string_view(NameOf(c.features.key_norm)), "query_norm",
                 std::string_view(NameOf(c.features.query_norm)));
  text.AddUnless(false, "tied_maps", c.features.tied);
  text.AddUnless(false, "silu_keys", c.conv && c.conv->silu_keys);
  text.AddUnless(1, "sub_steps", c.sub_steps);
  text.AddUnless(1, "key_groups", c.key_groups);
  AddDecay(c.decay, text);
  text.AddUnless(true, "norm_weight", c.output.weight);
  text.AddUnless(0, "gate_rank", c.output.gate_rank);
  text.AddUnless(false, "gate_bias", c.output.gate_bias);
  text.AddUnless(false, "sigmoid_gate", c.output.gate == GateActivation::kSigmoid);
  text.AddUnless(true, "silu_values", c.silu_values);
  text.AddUnless(true, "output_norm", c.output.norm);
}

// Attention over a window was once described as a fast-weight mixer that is none, and is so still.
void AddMixer(const AttentionConfig& c, Text& text) {
  AddMixer(FastWeightConfig{.shape = {c.heads, c.heads, c.head_dim, c.head_dim},
                            .features = {.map = FeatureMapKind::kIdentity, .key_norm = KeyNorm::kNone},
                            .beta = {.learned = false}},
           text);
}

void AddMixerDetails(const AttentionConfig& c, Text& text) {
  text.Add("window", true);
  text.AddUnless(0, "window_segment", c.segment);
  text.AddUnless(0, "window_memory", c.memory);
  text.AddUnless(false, "relative_positions", c.relative_positions);
  text.AddUnless(AttentionConfig().largest_distance, "largest_distance", c.largest_distance);
  text.Add("silu_values", false);
  text.Add("output_norm", false);
}

// Numbers once stood for these.
int32_t PlacementNumber(const LayerConfig& layer) {
  const bool raw_query = std::visit([](const auto& mixer) { return mixer.raw_query; }, layer.mixer);
  switch (layer.placement) {
    case NormPlacement::kPre:
      return raw_query ? 2 : 0;
    case NormPlacement::kPost:
      return 1;
    case NormPlacement::kPreNormedResidual:
      return 3;
  }
  return -1;
}

void AddChannelMixer(const LayerConfig& layer, Text& text) {
  text.Add("mlp_inner", std::get<MlpConfig>(layer.channel).inner);
  text.Add("norm_eps", layer.norm.eps);
}

void AddLayerDetails(const LayerConfig& layer, Text& text) {
  std::visit([&](const auto& mixer) { AddMixerDetails(mixer, text); }, layer.mixer);
  text.AddUnless(false, "layer_norm", layer.norm.kind == NormConfig::Kind::kLayer);
  text.AddUnless(0, "norm_placement", PlacementNumber(layer));
  text.AddUnless(true, "swiglu", std::get<MlpConfig>(layer.channel).kind == MlpConfig::Kind::kSwiglu);
}

}  // namespace

std::string ModelConfig::Canonical() const {
  Text text;
  const LayerConfig& first = layers.front();
  const auto add_mixer = [&](const LayerConfig& layer) {
    std::visit([&](const auto& mixer) { AddMixer(mixer, text); }, layer.mixer);
  };
  text.Add("architecture", architecture);
  text.Add("vocabulary", vocabulary);
  text.Add("hidden", hidden);
  text.Add("layers", layers.size());
  AddChannelMixer(first, text);
  text.Add("tied", head.tied);
  add_mixer(first);
  AddLayerDetails(first, text);
  text.AddUnless(true, "final_norm", head.norm.has_value());
  text.AddUnless(hidden, "embedding_size", embedding.size);
  text.AddUnless(1, "div_val", embedding.div_val);
  for (const int32_t cutoff : embedding.cutoffs) text.Add("cutoff", cutoff);
  text.AddUnless(false, "sinusoidal_positions", embedding.sinusoids);
  text.AddUnless(0, "segment_length", segment_length);
  // A run of equal layers is written once.
  for (size_t i = 1; i < layers.size(); ++i) {
    if (layers[i] == layers[i - 1]) continue;
    text.Add("layer", i);
    AddChannelMixer(layers[i], text);
    add_mixer(layers[i]);
    AddLayerDetails(layers[i], text);
  }
  return std::move(text).Take();
}

}  // namespace palimpsest
