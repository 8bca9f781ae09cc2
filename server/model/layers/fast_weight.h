// The mixer of fast weights: projections, short convolution, feature maps, gates, the memory, and the norm of its
// output.
#pragma once

#include <vector>

#include "server/model/layer_config.h"
#include "server/model/layers/layer.h"
#include "server/model/loading/pack.h"

namespace palimpsest {

struct FastWeightState {
  StateHandle fast_weight;  // [HV, V, K]
  StateHandle key_sum;      // [H, K], of attention normalization
  StateHandle conv_tail;    // [W - 1, channels]
  StateHandle deferred;     // in a slot: entries that fast_weight lacks
};

// Empty where the config has none.
struct FastWeightLayer {
  FastWeightConfig config;
  FastWeightState state = {};
  StackedLinear projections = {};        // q, k, v, gate, beta, decay; of those with two factors, the first
  PackedLinear raw_query = {};           // q once more, where it is made from another input than the rest
  PackedLinear gate_up = {};             // [HV * V, rank]
  AlignedArray<float> gate_bias = {};    // [HV * V]
  PackedLinear decay_up = {};            // [HV * K, rank]
  AlignedArray<float> conv = {};         // [W, channels of q, k, v]
  AlignedArray<float> conv_bias = {};    // [channels of q, k, v]
  AlignedArray<float> decay_rate = {};   // [HV]
  AlignedArray<float> decay_bias = {};   // [HV], by channel [HV, K]
  AlignedArray<float> query_map = {};    // FeatureMapParams::projection
  AlignedArray<float> key_map = {};      // empty: that of queries
  AlignedArray<float> output_norm = {};  // [V]
  PackedLinear output = {};              // [D, HV * V]

  void VisitArrays(auto&& visit) {
    for (PackedLinear* matrix : {&projections.matrix(), &raw_query, &gate_up, &decay_up, &output}) visit(*matrix);
    for (AlignedArray<float>* array :
         {&gate_bias, &conv, &conv_bias, &decay_rate, &decay_bias, &query_map, &key_map, &output_norm}) {
      visit(*array);
    }
  }
};

FastWeightState Pieces(const FastWeightConfig& config, StateLayoutBuilder& builder);
std::vector<TensorSpec> Tensors(const FastWeightConfig& config, int64_t hidden);
FastWeightLayer Load(const FastWeightConfig& config, const TensorsByRole& tensors, int64_t hidden, Device* device);
// Floating-point operations of a row beside the projections.
int64_t StateFlops(const FastWeightConfig& config);
// Bytes of the entries of the replay form in a slot. 0: the config has no such form.
int64_t DeferredBytes(const FastWeightConfig& config, int32_t write_interval);
void Widths(const FastWeightLayer& layer, ScratchPlan& plan);
// buffers.mixed = what the mixer gives for the input, before its output projection, layer.output.
void Mix(const Pass& pass, const FastWeightLayer& layer, const SublayerInput& input);
// Writes what the states of the pass's sequences lack.
void FlushDeferred(const Pass& pass, const FastWeightLayer& layer);

}  // namespace palimpsest
