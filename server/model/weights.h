// The slow weights as the forward pass reads them: packed once at load, read-only after.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/linear/linear.h"
#include "server/model/config.h"
#include "server/model/model.h"
#include "server/model/state_layout.h"

namespace palimpsest {

struct LayerWeights {
  AlignedArray<float> attn_norm;  // [D]
  PackedLinear projections;       // one below the other: q, k, v, gate (if any), b (if learned), a (if gated delta)
  AlignedArray<float> conv;       // [W, channels of q, k, v]; empty without short convolution
  AlignedArray<float> conv_bias;  // [channels of q, k, v] or empty
  AlignedArray<float> a_log;      // [HV], gated delta only
  AlignedArray<float> dt_bias;    // [HV], gated delta only
  AlignedArray<float> o_norm;     // [V]
  PackedLinear o_proj;            // [D, HV * V]
  AlignedArray<float> mlp_norm;   // [D]
  PackedLinear gate_up;           // [2 * I, D]: gate, then up
  PackedLinear down;              // [D, I]

  // Where the layer's pieces begin in a state, in bytes.
  int64_t fast_weight_offset = 0;
  int64_t conv_tail_offset = 0;
};

struct ModelWeights {
  ModelConfig config;
  StateLayout layout;
  DType embedding_dtype = DType::kF32;
  AlignedBytes embeddings;  // [R, D] in the file's type
  std::vector<LayerWeights> layers;
  AlignedArray<float> norm;  // [D]
  PackedLinear lm_head;      // [R, D]

  int64_t parameter_count = 0;
  int64_t bytes = 0;
  DType dtype = DType::kF32;
  LinearMath math = LinearMath::kF32;
  std::string fingerprint;
};

// Statuses as Model::Load.
absl::StatusOr<std::unique_ptr<const ModelWeights>> LoadWeights(const std::string& folder, const ModelOptions& options);

}  // namespace palimpsest
