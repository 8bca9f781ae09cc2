// Kimi Delta Attention (2510.26692), as fla writes it.
#include "server/model/architectures/fla.h"

namespace palimpsest {
namespace {

constexpr TensorName kNames[] = {
    {Role::kGateDown, "model.layers.{}.attn.g_proj.0.weight"},
    {Role::kGateUp, "model.layers.{}.attn.g_proj.1.weight"},
    {Role::kGateBias, "model.layers.{}.attn.g_proj.1.bias"},
    {Role::kDecayDown, "model.layers.{}.attn.f_proj.0.weight"},
    {Role::kDecayUp, "model.layers.{}.attn.f_proj.1.weight"},
};

void Read(ConfigKeys& keys, ModelConfig& config) {
  FastWeightConfig mixer{.rule = UpdateRule::kChannelGatedDelta};
  ReadGroupedHeads(keys, 16, mixer.shape);
  mixer.shape.key_dim = keys.Int("head_dim", 128, 1, kMaxHeadDim);
  mixer.shape.value_dim = ReadValueDim(keys, mixer.shape.key_dim, 1.0);
  mixer.conv = ReadConv(keys, true);
  mixer.output = {.gate = GateActivation::kSigmoid, .gate_rank = mixer.shape.value_dim, .gate_bias = true};
  mixer.decay.rank = mixer.shape.value_dim;
  // It is the bound that changes the gate; safe_gate alone says that there must be one.
  const std::optional<double> bound = keys.OptionalReal("lower_bound", -50.0, -1e-3);
  if (keys.Bool("safe_gate", false) && !bound) keys.Fail("'safe_gate' is true, but 'lower_bound' says no bound");
  if (bound) {
    mixer.decay.kind = DecayKind::kSigmoid;
    mixer.decay.lower_bound = static_cast<float>(*bound);
  }
  ReadFlaModel(keys, 24, mixer, config);
}

}  // namespace

extern const Architecture kKda;
const Architecture kKda = {.model_type = "kda", .read = &Read, .names = kNames, .shared_names = kFlaTensorNames};

}  // namespace palimpsest
