// The mixer of softmax attention over a window, whose keys and values are a ring in the state.
#pragma once

#include <vector>

#include "server/model/layer_config.h"
#include "server/model/layers/layer.h"
#include "server/model/loading/pack.h"

namespace palimpsest {

struct AttentionState {
  StateHandle window;  // [2, H, capacity, d]
};

struct AttentionLayer {
  AttentionConfig config;
  AttentionState state = {};
  StackedLinear projections = {};  // q, k, v
  PackedLinear raw_query = {};     // q once more, where it is made from another input than the rest
  PackedLinear output = {};        // [D, H * d]
  // Relative positions only.
  AlignedArray<float> relative = {};       // [window, H, d] keys of the distances
  AlignedArray<float> content_bias = {};   // [H, d]
  AlignedArray<float> position_bias = {};  // [H, d]

  void VisitArrays(auto&& visit) {
    for (PackedLinear* matrix : {&projections.matrix(), &raw_query, &output}) visit(*matrix);
    for (AlignedArray<float>* array : {&relative, &content_bias, &position_bias}) visit(*array);
  }
};

AttentionState Pieces(const AttentionConfig& config, StateLayoutBuilder& builder);
std::vector<TensorSpec> Tensors(const AttentionConfig& config, int64_t hidden);
AttentionLayer Load(const AttentionConfig& config, const TensorsByRole& tensors, int64_t hidden, Device* device);
// None is counted: it depends on how full the window is.
int64_t StateFlops(const AttentionConfig& config);
void Widths(const AttentionLayer& layer, ScratchPlan& plan);
// buffers.mixed = what the mixer gives for the input, before its output projection, layer.output.
void Mix(const Pass& pass, const AttentionLayer& layer, const SublayerInput& input);

}  // namespace palimpsest
