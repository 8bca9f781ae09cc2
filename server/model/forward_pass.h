// Inside the forward pass: what its parts have in common. Letters: D hidden size, I inner size of the MLP, R
// vocabulary, H and HV heads, K and V head sizes.
#pragma once

#include <cstdint>

#include "kernels/common/aligned_buffer.h"
#include "kernels/linear/linear.h"
#include "kernels/norm/norm.h"
#include "server/model/model.h"
#include "server/model/weights.h"

namespace palimpsest {

struct Workspace::Buffers {
  AlignedArray<float> x;          // [rows, D] the residual stream
  AlignedArray<float> h;          // [rows, D] normalised input of a mixer or MLP; last, of the rows that want logits
  AlignedArray<float> projected;  // [rows, q | k | v | gate | b | a]
  AlignedArray<float> mapped;     // [rows, q | k | v] as the memory takes them
  AlignedArray<float> read;       // [rows, HV, V] what the memory gives
  AlignedArray<float> beta;       // [rows, HV]
  AlignedArray<float> log_decay;  // [rows, HV]
  AlignedArray<float> inner;      // [rows, gate | up]
  AlignedArray<float> gathered;   // rows of one cluster of the vocabulary
  AlignedArray<float> cluster;    // and what becomes of them
};

inline void Grow(AlignedArray<float>& array, int64_t size) {
  if (array.size() < size) array = AlignedArray<float>(size);
}

// One call of Model::Forward.
struct Pass {
  const ExecContext& ctx;
  const ModelWeights& weights;
  const ForwardBatch& batch;

  const ModelConfig& config() const { return weights.config; }
  int32_t num_rows() const { return batch.rows.num_rows(); }
  StatePiece Piece(int64_t offset) const { return {batch.states + offset, batch.state_stride}; }

  // y = W x, or y += W x; y has W's rows as columns, ldy apart (0: none between them).
  void Project(const PackedLinear& matrix, const float* x, int64_t ldx, float* y, int32_t rows, int64_t ldy = 0,
               bool accumulate = false, const AlignedArray<float>* bias = nullptr) const {
    Linear(ctx, {.weights = &matrix,
                 .math = matrix.dtype() == DType::kBF16 ? weights.math : LinearMath::kF32,
                 .x = x,
                 .ldx = ldx,
                 .y = y,
                 .ldy = ldy == 0 ? matrix.out() : ldy,
                 .rows = rows,
                 .accumulate = accumulate,
                 .bias = bias == nullptr || bias->size() == 0 ? nullptr : bias->data()});
  }

  // y = norm(x), both [rows, D]; y may be x.
  void Normalise(const NormWeights& norm, const float* x, float* y, int32_t rows) const {
    const int32_t D = config().hidden;
    if (config().layer_norm) {
      LayerNorm(ctx, {.rows = rows,
                      .dim = D,
                      .eps = config().norm_eps,
                      .x = x,
                      .ldx = D,
                      .weight = norm.weight.data(),
                      .bias = norm.bias.data(),
                      .y = y,
                      .ldy = D});
    } else {
      RmsNorm(ctx, {.rows = rows,
                    .dim = D,
                    .eps = config().norm_eps,
                    .x = x,
                    .ldx = D,
                    .weight = norm.weight.data(),
                    .y = y,
                    .ldy = D});
    }
  }
};

// buffers.x = the vectors of the batch's tokens, with their positions.
void EmbedTokens(const Pass& pass, Workspace::Buffers& buffers);

// The logits of the rows that want them, from buffers.x.
void ComputeLogits(const Pass& pass, Workspace::Buffers& buffers, float* logits);

}  // namespace palimpsest
