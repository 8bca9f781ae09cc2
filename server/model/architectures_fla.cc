#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "server/model/architectures.h"

namespace palimpsest {
namespace {

// What fla does with a width that is a product: since 0.6 it must be an integer but for its last digits, as 200 * 0.29
// is; before, what is behind the point was dropped.
int64_t Width(double product) {
  const double rounded = std::round(product);
  return static_cast<int64_t>(std::abs(product - rounded) <= 1e-9 * std::abs(product) ? rounded : product);
}

// head size = total / heads, which must come out even.
int32_t HeadDim(ConfigKeys& keys, const char* ratio_key, int32_t hidden, int32_t heads) {
  const double ratio = keys.Real(ratio_key, 1.0, 1e-4, 64.0);
  const int64_t total = Width(hidden * ratio);
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
  static constexpr ConfigKeys::Word<KeyNorm> kNorms[] = {{"l2", KeyNorm::kL2}, {"sum", KeyNorm::kL1}};
  MixerConfig mixer;
  mixer.rule = UpdateRule::kDelta;
  mixer.shape.heads = mixer.shape.value_heads = keys.Int("num_heads", 16, 1, kMaxHeads);
  mixer.shape.key_dim = HeadDim(keys, "expand_k", hidden, mixer.shape.heads);
  mixer.shape.value_dim = HeadDim(keys, "expand_v", hidden, mixer.shape.heads);
  mixer.feature_map = keys.OneOf<FeatureMapKind>("qk_activation", "silu", kActivations);
  mixer.key_norm = keys.OneOf<KeyNorm>("qk_norm", "l2", kNorms);
  mixer.learned_beta = keys.Bool("use_beta", true);
  mixer.output_gate = keys.Bool("use_gate", false);
  mixer.gate_activation = GateActivation::kSilu;
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
  static constexpr ConfigKeys::Word<GateActivation> kGates[] = {
      {"swish", GateActivation::kSilu}, {"silu", GateActivation::kSilu}, {"sigmoid", GateActivation::kSigmoid}};
  mixer.output_gate = keys.Bool("use_gate", true);
  mixer.gate_activation = keys.OneOf<GateActivation>("output_gate_activation", "swish", kGates);
  ReadConv(keys, mixer);
  return mixer;
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

// Layers of softmax attention among the others.
void ReadAttention(ConfigKeys& keys) {
  const nlohmann::json* const attn = keys.Get("attn");
  if (attn == nullptr || attn->is_null() || (attn->is_structured() && attn->empty())) return;
  const auto has_window = [](const nlohmann::json& layers) {
    return layers.is_object() && layers.contains("window_size") && !layers["window_size"].is_null();
  };
  const bool windows = attn->is_array() ? std::ranges::all_of(*attn, has_window) : has_window(*attn);
  keys.Fail(absl::StrCat("'attn' has layers of softmax attention",
                         windows ? " over a window, which are not run yet beside fast-weight layers"
                                 : ", which have no state of fixed size; only null and [] are supported"));
}

template <MixerConfig (*kReadMixer)(ConfigKeys& keys, int32_t hidden), int32_t kDefaultLayers>
void Read(ConfigKeys& keys, ModelConfig& config) {
  ReadAttention(keys);
  keys.AcceptOnly("attnres_block_size", nullptr, "residual attention changes the residual stream");
  keys.AcceptOnly("share_conv_kernel", false, "one convolution before the projections is another model");
  keys.AcceptOnly("elementwise_affine", true, "norms without weights are not supported");
  config.layers = keys.Int("num_hidden_layers", kDefaultLayers, 1, kMaxLayers);
  config.mlp_inner = ReadMlpInner(keys, config.hidden);
  config.norm_eps = static_cast<float>(keys.Real("norm_eps", 1e-6, 1e-12, 0.1));
  config.tied_embeddings = keys.Bool("tie_word_embeddings", false);
  config.embedding_size = config.hidden;
  static constexpr ConfigKeys::Word<bool> kHiddenActs[] = {{"swish", true}, {"silu", true}};
  keys.OneOf<bool>("hidden_act", "swish", kHiddenActs);
  config.mixer = kReadMixer(keys, config.hidden);
  config.mixer.head_dim = config.mixer.shape.key_dim;
  config.mixer.query_scale = 1.0f / std::sqrt(static_cast<float>(config.mixer.shape.key_dim));
  config.mixer.beta_scale = keys.Bool("allow_neg_eigval", false) ? 2.0f : 1.0f;
  if (!config.mixer.output_gate) config.mixer.gate_activation = GateActivation::kNone;
}

constexpr Architecture kArchitectures[] = {
    {"delta_net", &Read<&ReadDeltaNet, 24>},
    {"gated_deltanet", &Read<&ReadGatedDeltaNet, 21>},
};

}  // namespace

std::span<const Architecture> FlaArchitectures() { return kArchitectures; }

}  // namespace palimpsest
