// The norm around a sub-layer.
#pragma once

#include <vector>

#include "kernels/common/aligned_buffer.h"
#include "server/model/layer_config.h"
#include "server/model/loading/tensors_by_role.h"

namespace palimpsest {

struct NormLayer {
  NormConfig config;
  AlignedArray<float> weight = {};  // [D]
  AlignedArray<float> bias = {};    // [D], LayerNorm only

  void VisitArrays(auto&& visit) {
    visit(weight);
    visit(bias);
  }
};

std::vector<TensorSpec> Tensors(const NormConfig& config, Role weight, Role bias, int64_t hidden);
NormLayer Load(const NormConfig& config, const TensorsByRole& tensors, Role weight, Role bias);

}  // namespace palimpsest
