// Which tensors a model is made of, and under which names a checkpoint has them.
#pragma once

#include <deque>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/checkpoint/safetensors.h"
#include "server/model/checkpoint/tensor_table.h"
#include "server/model/config.h"

namespace palimpsest {

// Null or empty where the model has none.
struct NormTensors {
  const TensorView* weight = nullptr;
  const TensorView* bias = nullptr;
};

struct LayerTensors {
  NormTensors attn_norm;
  std::vector<const TensorView*> projections;  // q, k, v, gate, b, a
  std::vector<const TensorView*> convs;        // q, k, v, each [channels, 1, W]
  std::vector<const TensorView*> conv_biases;  // q, k, v
  const TensorView* a_log = nullptr;
  const TensorView* dt_bias = nullptr;
  const TensorView* feature_projection = nullptr;   // [m, d]
  const TensorView* relative_projection = nullptr;  // [H * d, D]
  const TensorView* o_norm = nullptr;
  const TensorView* o_proj = nullptr;
  NormTensors mlp_norm;
  std::vector<const TensorView*> up;  // gate, up; or one that holds both; or up alone
  const TensorView* up_bias = nullptr;
  const TensorView* down = nullptr;
  const TensorView* down_bias = nullptr;
};

struct EmbeddingTensors {
  const TensorView* table = nullptr;       // [ids, width]
  const TensorView* projection = nullptr;  // [D, width]
};

struct OutputTensors {
  const TensorView* projection = nullptr;  // [width, D]; or [D, width] if transposed
  bool transposed_projection = false;
  std::vector<const TensorView*> weights;  // of the first: those of its ids, then one row for each other cluster
  std::vector<const TensorView*> biases;
};

struct CheckpointTensors {
  std::vector<EmbeddingTensors> embeddings;  // one, or one for each cluster
  std::vector<LayerTensors> layers;
  NormTensors norm;
  const TensorView* content_bias = nullptr;  // [H, d]
  const TensorView* position_bias = nullptr;
  std::vector<OutputTensors> outputs;  // one for each cluster
  std::deque<TensorView> slices;       // rows of tensors that the above point to
};

// All tensors of the model. INVALID_ARGUMENT names the first that is missing, unknown or of another shape.
absl::StatusOr<CheckpointTensors> TakeTensors(TensorTable& table, const TensorMap& tensors, const ModelConfig& config);

}  // namespace palimpsest
