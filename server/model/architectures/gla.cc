// Gated linear attention (2312.06635), as fla writes it.
#include "server/model/architectures/fla.h"

namespace palimpsest {
namespace {

constexpr TensorName kNames[] = {
    {Role::kDecayDown, "model.layers.{}.attn.gk_proj.0.weight"},
    {Role::kDecayUp, "model.layers.{}.attn.gk_proj.1.weight"},
    {Role::kDecayBias, "model.layers.{}.attn.gk_proj.1.bias"},
    // By `fuse_norm`, which changes nothing else.
    {Role::kOutputNorm, "model.layers.{}.attn.g_norm_swish_gate.weight"},
    {Role::kOutputNorm, "model.layers.{}.attn.g_norm.weight"},
};

void Read(ConfigKeys& keys, ModelConfig& config) {
  static constexpr ConfigKeys::Word<FeatureMapKind> kMaps[] = {
      {"relu", FeatureMapKind::kRelu}, {"silu", FeatureMapKind::kSilu}, {"swish", FeatureMapKind::kSilu}};
  constexpr int32_t kRank = 16;  // no key of the config says another
  constexpr float kDivisor = 16.0f;
  FastWeightConfig mixer{.rule = UpdateRule::kChannelGatedSum, .silu_values = false};
  ReadQueryGroups(keys, 4, mixer);
  mixer.shape.key_dim = ReadHeadDim(keys, "expand_k", config.hidden, mixer.shape.heads, 0.5);
  mixer.shape.value_dim = ReadHeadDim(keys, "expand_v", config.hidden, mixer.shape.heads, 1.0);
  mixer.features = {.map = keys.OptionalOneOf<FeatureMapKind>("feature_map", kMaps).value_or(FeatureMapKind::kIdentity),
                    .query_norm = KeyNorm::kNone,
                    .key_norm = KeyNorm::kNone};
  mixer.conv = ReadConv(keys, false);
  if (mixer.conv) mixer.conv->silu_keys = true;
  if (keys.Bool("use_output_gate", true)) mixer.output.gate = GateActivation::kSilu;
  mixer.output.weight = ReadElementwiseAffine(keys);
  mixer.beta.learned = false;
  mixer.decay = {.kind = DecayKind::kLogSigmoid, .rank = kRank, .rate = false, .divisor = kDivisor};
  if (const auto clamp = keys.OptionalReal("clamp_min", -1e4, 0.0))
    mixer.decay.lower_bound = static_cast<float>(*clamp);
  keys.Accept("use_gk");  // the class keeps both and reads neither
  keys.Accept("use_gv");
  ReadFlaModel(keys, 24, mixer, config);
}

}  // namespace

extern const Architecture kGla;
const Architecture kGla = {.model_type = "gla", .read = &Read, .names = kNames, .shared_names = kFlaTensorNames};

}  // namespace palimpsest
