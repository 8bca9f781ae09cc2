// DeltaNet (2406.06484), as fla writes it.
#include "server/model/architectures/fla.h"

namespace palimpsest {
namespace {

void Read(ConfigKeys& keys, ModelConfig& config) {
  static constexpr ConfigKeys::Word<FeatureMapKind> kActivations[] = {{"silu", FeatureMapKind::kSilu},
                                                                      {"relu", FeatureMapKind::kRelu},
                                                                      {"elu", FeatureMapKind::kElu1},
                                                                      {"identity", FeatureMapKind::kIdentity}};
  static constexpr ConfigKeys::Word<KeyNorm> kNorms[] = {{"l2", KeyNorm::kL2}, {"sum", KeyNorm::kL1}};
  FastWeightConfig mixer{.rule = UpdateRule::kDelta};
  FastWeightShape& shape = mixer.shape;
  shape.heads = shape.value_heads = keys.Int("num_heads", 16, 1, kMaxHeads);
  shape.key_dim = ReadHeadDim(keys, "expand_k", config.hidden, shape.heads, 1.0);
  shape.value_dim = ReadHeadDim(keys, "expand_v", config.hidden, shape.heads, 1.0);
  mixer.features.map = keys.OneOf<FeatureMapKind>("qk_activation", "silu", kActivations);
  mixer.features.query_norm = mixer.features.key_norm = keys.OneOf<KeyNorm>("qk_norm", "l2", kNorms);
  mixer.beta.learned = keys.Bool("use_beta", true);
  mixer.output.gate = keys.Bool("use_gate", false) ? GateActivation::kSilu : GateActivation::kNone;
  keys.Accept("use_output_norm");  // the class reads it and normalizes all the same
  mixer.conv = ReadConv(keys, true);
  ReadFlaModel(keys, 24, mixer, config);
}

}  // namespace

extern const Architecture kDeltaNet;
const Architecture kDeltaNet = {.model_type = "delta_net", .read = &Read, .shared_names = kFlaTensorNames};

}  // namespace palimpsest
