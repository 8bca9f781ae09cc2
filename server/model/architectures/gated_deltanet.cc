// Gated DeltaNet (2412.06464), as fla writes it.
#include "server/model/architectures/fla.h"

namespace palimpsest {
namespace {

constexpr TensorName kNames[] = {
    {Role::kIgnored, "model.layers.{}.attn.D"},  // written by early versions, read by none
};

void Read(ConfigKeys& keys, ModelConfig& config) {
  static constexpr ConfigKeys::Word<GateActivation> kGates[] = {
      {"swish", GateActivation::kSilu}, {"silu", GateActivation::kSilu}, {"sigmoid", GateActivation::kSigmoid}};
  FastWeightConfig mixer{.rule = UpdateRule::kGatedDelta};
  ReadGroupedHeads(keys, 6, mixer.shape);
  mixer.shape.key_dim = keys.Int("head_dim", 256, 1, kMaxHeadDim);
  mixer.shape.value_dim = ReadValueDim(keys, mixer.shape.key_dim, 2.0);
  const bool gate = keys.Bool("use_gate", true);
  const auto activation = keys.OneOf<GateActivation>("output_gate_activation", "swish", kGates);
  if (gate) mixer.output.gate = activation;
  mixer.conv = ReadConv(keys, true);
  ReadFlaModel(keys, 21, mixer, config);
}

}  // namespace

extern const Architecture kGatedDeltaNet;
const Architecture kGatedDeltaNet = {
    .model_type = "gated_deltanet", .read = &Read, .names = kNames, .shared_names = kFlaTensorNames};

}  // namespace palimpsest
