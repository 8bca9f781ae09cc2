// The slow weights as the forward pass reads them: packed once at load, read-only after.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/common/device.h"
#include "kernels/linear/linear.h"
#include "server/model/config.h"
#include "server/model/model.h"
#include "server/model/state_layout.h"

namespace palimpsest {

struct NormWeights {
  AlignedArray<float> weight;  // [D]
  AlignedArray<float> bias;    // [D], LayerNorm only
};

// Empty where the model has none.
struct LayerWeights {
  NormWeights attn_norm;
  PackedLinear projections;       // one below the other: q, k, v, gate, b (if learned), a (if gated delta)
  PackedLinear raw_query;         // q once more, where it is made from another input than the rest
  AlignedArray<float> conv;       // [W, channels of q, k, v]
  AlignedArray<float> conv_bias;  // [channels of q, k, v]
  AlignedArray<float> a_log;      // [HV], gated delta only
  AlignedArray<float> dt_bias;    // [HV], gated delta only
  AlignedArray<float> features;   // [d, m] random projections of FAVOR+
  AlignedArray<float> relative;   // [window, H, d] keys of the distances
  AlignedArray<float> o_norm;     // [V]
  PackedLinear o_proj;            // [D, HV * V]
  NormWeights mlp_norm;
  PackedLinear up;                // [2 * I, D]: gate, then up; or [I, D]
  AlignedArray<float> up_bias;    // [I]
  PackedLinear down;              // [D, I]
  AlignedArray<float> down_bias;  // [D]

  // Where the layer's pieces begin in a state, in bytes.
  int64_t fast_weight_offset = 0;
  int64_t key_sum_offset = 0;
  int64_t conv_tail_offset = 0;
  int64_t window_offset = 0;
  // And, in a slot, what its state lacks.
  int64_t replay_offset = 0;

  // From one row of the projections to the next, in values: the library of a device wants multiples of 16 bytes.
  int64_t projected_stride() const { return (projections.out() + 3) / 4 * 4; }
};

// The vectors of the ids from `begin` on.
struct EmbeddingWeights {
  int32_t begin = 0;
  int32_t end = 0;
  int32_t width = 0;
  DType dtype = DType::kF32;
  AlignedBytes table;       // [ids, width] in the file's type
  PackedLinear projection;  // [D, width]; empty: width is D
};

// One cluster of the head.
struct OutputWeights {
  int32_t begin = 0;
  int32_t end = 0;
  PackedLinear projection;   // [width, D]; empty: width is D
  PackedLinear weights;      // [ids, width]; below the first cluster's, one row for each other cluster, the last first
  AlignedArray<float> bias;  // of each row, or empty
};

struct ModelWeights {
  std::shared_ptr<Device> device;  // first: what is in its memory goes before it
  ModelConfig config;
  StateLayout layout;
  std::vector<EmbeddingWeights> embeddings;
  std::vector<LayerWeights> layers;
  NormWeights norm;
  std::vector<OutputWeights> outputs;
  AlignedArray<float> content_bias;   // [H, d], relative positions only
  AlignedArray<float> position_bias;  // [H, d]
  AlignedArray<float> frequencies;    // [D / 2] of the sinusoids

  DType state_dtype = DType::kF32;
  int32_t write_interval = 1;
  int64_t pending_offset = 0;  // in a slot: how much the state lacks
  int64_t slot_bytes = 0;

  int64_t parameter_count = 0;
  int64_t bytes = 0;
  DType dtype = DType::kF32;
  LinearMath math = LinearMath::kF32;
  std::string fingerprint;
};

// Statuses as Model::Load.
absl::StatusOr<std::unique_ptr<const ModelWeights>> LoadWeights(const std::string& folder, const ModelOptions& options);

}  // namespace palimpsest
