// The channel mixer.
#pragma once

#include <vector>

#include "server/model/layer_config.h"
#include "server/model/layers/layer.h"
#include "server/model/loading/pack.h"

namespace palimpsest {

struct MlpLayer {
  MlpConfig config;
  PackedLinear up = {};                // [2 * I, D]: gate, then up; or [I, D]
  AlignedArray<float> up_bias = {};    // [I]
  PackedLinear down = {};              // [D, I]
  AlignedArray<float> down_bias = {};  // [D]

  void VisitArrays(auto&& visit) {
    visit(up);
    visit(up_bias);
    visit(down);
    visit(down_bias);
  }
};

std::vector<TensorSpec> Tensors(const MlpConfig& config, int64_t hidden);
MlpLayer Load(const MlpConfig& config, const TensorsByRole& tensors, Device* device);
void Widths(const MlpLayer& layer, ScratchPlan& plan);
// Adds to buffers.x what the MLP gives for the input.
void Run(const Pass& pass, const MlpLayer& layer, const SublayerInput& input);

}  // namespace palimpsest
