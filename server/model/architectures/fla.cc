#include "server/model/architectures/fla.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"

namespace palimpsest {
namespace {

// What fla does with a width that is a product: since 0.6 it must be an integer but for its last digits, as 200 * 0.29
// is; before, what is behind the point was dropped.
int64_t Width(double product) {
  const double rounded = std::round(product);
  return static_cast<int64_t>(std::abs(product - rounded) <= 1e-9 * std::abs(product) ? rounded : product);
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

}  // namespace

int32_t ReadHeadDim(ConfigKeys& keys, const char* ratio_key, int32_t hidden, int32_t heads, double default_ratio) {
  const double ratio = keys.Real(ratio_key, default_ratio, 1e-4, 64.0);
  const int64_t total = Width(hidden * ratio);
  if (total % heads != 0 || total / heads < 1 || total / heads > kMaxHeadDim) {
    keys.Fail(absl::StrCat("hidden_size ", hidden, " times ", ratio_key, " ", ratio, " is ", total,
                           ", which num_heads ", heads, " does not divide into head sizes from 1 to ", kMaxHeadDim));
    return 1;
  }
  return static_cast<int32_t>(total / heads);
}

void ReadGroupedHeads(ConfigKeys& keys, int32_t default_heads, FastWeightShape& shape) {
  shape.heads = keys.Int("num_heads", default_heads, 1, kMaxHeads);
  shape.value_heads = keys.OptionalInt("num_v_heads", 1, kMaxHeads).value_or(shape.heads);
  if (shape.value_heads % shape.heads == 0) return;
  keys.Fail(absl::StrCat("'num_v_heads' is ", shape.value_heads, ", expected a multiple of num_heads, which is ",
                         shape.heads));
}

void ReadQueryGroups(ConfigKeys& keys, int32_t default_heads, FastWeightConfig& mixer) {
  const int32_t heads = keys.Int("num_heads", default_heads, 1, kMaxHeads);
  const int32_t key_heads = keys.OptionalInt("num_kv_heads", 1, kMaxHeads).value_or(heads);
  mixer.shape.heads = mixer.shape.value_heads = heads;
  if (heads % key_heads == 0) {
    mixer.key_groups = heads / key_heads;
  } else {
    keys.Fail(absl::StrCat("'num_kv_heads' is ", key_heads, ", expected a divisor of num_heads, which is ", heads));
  }
}

int32_t ReadValueDim(ConfigKeys& keys, int32_t head_dim, double default_expand) {
  const double expand = keys.Real("expand_v", default_expand, 1e-4, 64.0);
  const auto value_dim = static_cast<int32_t>(head_dim * expand);
  if (value_dim >= 1 && value_dim <= kMaxHeadDim) return value_dim;
  keys.Fail(absl::StrCat("head_dim ", head_dim, " times expand_v ", expand, " is ", value_dim,
                         ", expected a value head size from 1 to ", kMaxHeadDim));
  return 1;
}

std::optional<ConvConfig> ReadConv(ConfigKeys& keys, bool used_by_default) {
  const bool use = keys.Bool("use_short_conv", used_by_default);
  const ConvConfig conv{.width = keys.Int("conv_size", 4, 1, kMaxConvWidth), .bias = keys.Bool("conv_bias", false)};
  return use ? std::optional(conv) : std::nullopt;
}

bool ReadElementwiseAffine(ConfigKeys& keys) {
  const nlohmann::json* const value = keys.Get("elementwise_affine");
  return (value == nullptr || !value->is_null()) && keys.Bool("elementwise_affine", true);
}

void ReadFlaModel(ConfigKeys& keys, int32_t default_layers, FastWeightConfig mixer, ModelConfig& config) {
  ReadAttention(keys);
  keys.AcceptOnly("attnres_block_size", nullptr, "residual attention changes the residual stream");
  keys.AcceptOnly("share_conv_kernel", false, "one convolution before the projections is another model");
  const int32_t layers = keys.Int("num_hidden_layers", default_layers, 1, kMaxLayers);
  const auto eps = static_cast<float>(keys.Real("norm_eps", 1e-6, 1e-12, 0.1));
  static constexpr ConfigKeys::Word<bool> kHiddenActs[] = {{"swish", true}, {"silu", true}};
  keys.OneOf<bool>("hidden_act", "swish", kHiddenActs);
  if (mixer.head_dim == 0) mixer.head_dim = mixer.shape.key_dim;
  mixer.features.query_scale = 1.0f / std::sqrt(static_cast<float>(mixer.shape.key_dim));
  if (Corrects(mixer.rule)) mixer.beta.scale = keys.Bool("allow_neg_eigval", false) ? 2.0f : 1.0f;
  mixer.output.eps = eps;
  const MlpConfig mlp{.kind = MlpConfig::Kind::kSwiglu, .inner = ReadMlpInner(keys, config.hidden)};
  config.layers.assign(layers, {.norm = {.eps = eps}, .mixer = std::move(mixer), .channel = mlp});
  config.embedding.size = config.hidden;
  config.head = {.norm = NormConfig{.eps = eps}, .tied = keys.Bool("tie_word_embeddings", false)};
}

}  // namespace palimpsest
