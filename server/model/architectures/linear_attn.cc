// Linear attention (2006.16236) with the feature maps that fla has for it.
#include <algorithm>
#include <cmath>

#include "server/model/architectures/fla.h"

namespace palimpsest {
namespace {

constexpr TensorName kNames[] = {
    {Role::kMixerNorm, "model.layers.{}.attn_norm.weight"},  // never attn.norm, which is that of the output here
    // A map of one matrix calls it layer, one of two layer1 and layer2. Writers that leave out what is shared may keep
    // the map of keys alone.
    {Role::kQueryMap, "model.layers.{}.attn.feature_map_q.layer1.weight"},
    {Role::kQueryMap, "model.layers.{}.attn.feature_map_q.layer.weight"},
    {Role::kQueryMap, "model.layers.{}.attn.feature_map_k.layer1.weight"},
    {Role::kQueryMap, "model.layers.{}.attn.feature_map_k.layer.weight"},
    {Role::kQueryMapBias, "model.layers.{}.attn.feature_map_q.layer1.bias"},
    {Role::kQueryMapBias, "model.layers.{}.attn.feature_map_q.layer.bias"},
    {Role::kQueryMapBias, "model.layers.{}.attn.feature_map_k.layer1.bias"},
    {Role::kQueryMapBias, "model.layers.{}.attn.feature_map_k.layer.bias"},
    {Role::kQueryMap2, "model.layers.{}.attn.feature_map_q.layer2.weight"},
    {Role::kQueryMap2, "model.layers.{}.attn.feature_map_k.layer2.weight"},
    {Role::kQueryMap2Bias, "model.layers.{}.attn.feature_map_q.layer2.bias"},
    {Role::kQueryMap2Bias, "model.layers.{}.attn.feature_map_k.layer2.bias"},
    {Role::kKeyMap, "model.layers.{}.attn.feature_map_k.layer1.weight"},
    {Role::kKeyMap, "model.layers.{}.attn.feature_map_k.layer.weight"},
    {Role::kKeyMapBias, "model.layers.{}.attn.feature_map_k.layer1.bias"},
    {Role::kKeyMapBias, "model.layers.{}.attn.feature_map_k.layer.bias"},
    {Role::kKeyMap2, "model.layers.{}.attn.feature_map_k.layer2.weight"},
    {Role::kKeyMap2Bias, "model.layers.{}.attn.feature_map_k.layer2.bias"},
    {Role::kOutputNorm, "model.layers.{}.attn.norm.weight"},
};

void Read(ConfigKeys& keys, ModelConfig& config) {
  static constexpr ConfigKeys::Word<FeatureMapKind> kMaps[] = {
      {"elementwise_product", FeatureMapKind::kElementwiseProduct},
      {"elu", FeatureMapKind::kElu1},
      {"relu", FeatureMapKind::kRelu},
      {"identity", FeatureMapKind::kIdentity},
      {"dpfp", FeatureMapKind::kDpfp},
      {"t2r", FeatureMapKind::kT2r},
      {"hedgehog", FeatureMapKind::kHedgehog}};
  constexpr int32_t kRolls = 4;  // no key of the config says another
  FastWeightConfig mixer{.rule = UpdateRule::kSum, .silu_values = false};
  FastWeightShape& shape = mixer.shape;
  ReadQueryGroups(keys, 4, mixer);
  mixer.head_dim = ReadHeadDim(keys, "expand_k", config.hidden, shape.heads, 1.0);
  shape.value_dim = ReadHeadDim(keys, "expand_v", config.hidden, shape.heads, 1.0);
  FeatureConfig& features = mixer.features;
  features.map = keys.OneOf<FeatureMapKind>("feature_map", "elementwise_product", kMaps);
  features.query_norm = keys.Bool("norm_q", false) ? KeyNorm::kShiftedSum : KeyNorm::kNone;
  features.key_norm = keys.Bool("norm_k", false) ? KeyNorm::kShiftedSum : KeyNorm::kNone;
  features.tied = keys.Bool("tie_feature_map_qk", false) && IsLearned(features.map);
  if (features.map == FeatureMapKind::kDpfp) features.dpfp_rolls = std::min(kRolls, 2 * mixer.head_dim - 1);
  if (features.map == FeatureMapKind::kDpfp && features.dpfp_rolls < kRolls) {
    keys.Fail("feature_map 'dpfp' rolls by up to 4, so it needs heads of at least 3 channels");
  }
  shape.key_dim = FeatureCount(features.map, mixer.head_dim, features.dpfp_rolls, 0);
  if (keys.Bool("norm_feature_map", false)) mixer.attention_norm = {.scaled_denominator = true, .eps = 1e-10f};
  mixer.output.weight = ReadElementwiseAffine(keys);
  mixer.beta.learned = false;
  ReadFlaModel(keys, 24, mixer, config);
}

}  // namespace

extern const Architecture kLinearAttention;
const Architecture kLinearAttention = {
    .model_type = "linear_attn", .read = &Read, .names = kNames, .shared_names = kFlaTensorNames};

}  // namespace palimpsest
