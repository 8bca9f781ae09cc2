// Gated DeltaProduct (2502.10297), as fla writes it.
#include "server/model/architectures/fla.h"

namespace palimpsest {
namespace {

void Read(ConfigKeys& keys, ModelConfig& config) {
  constexpr int32_t kMostHouseholders = 16;
  FastWeightConfig mixer;
  mixer.shape.heads = mixer.shape.value_heads = keys.Int("num_heads", 6, 1, kMaxHeads);
  keys.Accept("num_v_heads");  // the model does not hand it to its layers
  mixer.shape.key_dim = keys.Int("head_dim", 256, 1, kMaxHeadDim);
  mixer.shape.value_dim = ReadValueDim(keys, mixer.shape.key_dim, 2.0);
  mixer.sub_steps = keys.Int("num_householder", 1, 1, kMostHouseholders);
  mixer.rule = keys.Bool("use_forget_gate", false) ? UpdateRule::kGatedDelta : UpdateRule::kDelta;
  if (keys.Bool("use_output_gate", true)) mixer.output.gate = GateActivation::kSilu;
  mixer.conv = ReadConv(keys, true);
  ReadFlaModel(keys, 21, mixer, config);
}

}  // namespace

extern const Architecture kGatedDeltaProduct;
const Architecture kGatedDeltaProduct = {
    .model_type = "gated_deltaproduct", .read = &Read, .shared_names = kFlaTensorNames};

}  // namespace palimpsest
