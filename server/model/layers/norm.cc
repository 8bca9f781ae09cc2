#include "server/model/layers/norm.h"

#include "server/model/loading/pack.h"

namespace palimpsest {

std::vector<TensorSpec> Tensors(const NormConfig& config, Role weight, Role bias, int64_t hidden) {
  std::vector<TensorSpec> specs = {{weight, {hidden}}};
  if (config.kind == NormConfig::Kind::kLayer) specs.push_back({bias, {hidden}});
  return specs;
}

NormLayer Load(const NormConfig& config, const TensorsByRole& tensors, Role weight, Role bias) {
  return {.config = config, .weight = Floats(tensors[weight]), .bias = Floats(tensors.Find(bias))};
}

}  // namespace palimpsest
