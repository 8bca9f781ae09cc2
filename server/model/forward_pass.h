// Inside the forward pass: what its parts have in common. Letters: D hidden size, I inner size of the MLP, R
// vocabulary, H and HV heads, K and V head sizes.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>

#include "kernels/common/aligned_buffer.h"
#include "kernels/common/check.h"
#include "kernels/common/device.h"
#include "kernels/fast_weight/fast_weight.h"
#include "kernels/linear/linear.h"
#include "kernels/norm/norm.h"
#include "server/model/batch_arrays.h"
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

  // Of a device only.
  BatchArrays arrays;
  std::map<int32_t, std::unique_ptr<Device::Graph>> recordings;  // by padded number of steps; null: could not be made
  const float* recorded_logits = nullptr;  // what the recordings write to and read from, beside these buffers
  const std::byte* recorded_states = nullptr;
  Counts counts;

  // Makes room for `size` values. Recordings know addresses, so they go when an array moves.
  void Grow(AlignedArray<float>& array, int64_t size, Device* device) {
    if (array.size() >= size) return;
    if (device != nullptr) recordings.clear();
    array = {};  // never both at once
    array = AlignedArray<float>(size, device);
    PALIMPSEST_CHECK(size == 0 || array.data() != nullptr);
  }
};

// Rows of a batch, of which the first `steps` are steps.
struct RowCount {
  int32_t rows = 0;
  int32_t steps = 0;
};

// One call of Model::Forward.
struct Pass {
  const ExecContext& ctx;
  const ModelWeights& weights;
  const ForwardBatch& batch;  // in host memory
  Workspace::Buffers& buffers;
  // The batch's arrays where the ops run, which is `batch`'s on the host.
  RaggedRows rows = {};
  const int32_t* tokens = nullptr;
  const int64_t* first_position = nullptr;
  const int32_t* logit_rows = nullptr;
  RowCount count = {};         // all rows
  RowCount logits_count = {};  // those that want logits

  const ModelConfig& config() const { return weights.config; }
  int32_t num_rows() const { return count.rows; }
  bool on_device() const { return ctx.device != nullptr; }
  StatePiece Piece(int64_t offset) const { return {batch.states + offset, batch.state_stride}; }
  StatePiece FastWeights(const LayerWeights& layer) const {
    return {batch.states + layer.fast_weight_offset, batch.state_stride, weights.state_dtype};
  }
  FastWeightReplay Replay(const LayerWeights& layer) const {
    if (weights.write_interval == 1) return {};
    return {.interval = weights.write_interval,
            .written = Piece(layer.replay_offset),
            .pending = Piece(weights.pending_offset)};
  }
  void AdvanceReplays() const {
    if (weights.write_interval == 1) return;
    AdvanceReplay(ctx, {.rows = rows, .interval = weights.write_interval, .pending = Piece(weights.pending_offset)});
  }
  void Grow(AlignedArray<float>& array, int64_t size) const { buffers.Grow(array, size, ctx.device); }
  // `values` where the ops run, until the next call of Model::Forward.
  template <typename T>
  const T* Put(std::span<const T> values) const {
    if (!on_device()) return values.data();
    const T* const put = buffers.arrays.Put(values);
    buffers.arrays.Send(*ctx.device);
    return put;
  }

  LinearMath MathOf(const PackedLinear& matrix) const {
    return matrix.dtype() == DType::kBF16 ? weights.math : LinearMath::kF32;
  }

  // Whether a projection can normalise what it reads, and has nothing to add.
  bool FoldsNorm(const PackedLinear& matrix, const AlignedArray<float>* bias = nullptr) const {
    return !config().layer_norm && (bias == nullptr || bias->size() == 0) && Folds(matrix, MathOf(matrix));
  }

  // What a projection does beside its product.
  struct Beside {
    int64_t ldy = 0;  // 0: W's rows
    bool accumulate = false;
    const AlignedArray<float>* bias = nullptr;
    const NormWeights* norm = nullptr;  // where FoldsNorm()
    bool swiglu = false;                // where FoldsSwiglu() (linear.h), too
  };
  // y = W x, or y += W x; y has W's rows as columns.
  void Project(const PackedLinear& matrix, const float* x, int64_t ldx, float* y, RowCount count,
               const Beside& beside) const {
    Linear(ctx, {.weights = &matrix,
                 .math = MathOf(matrix),
                 .x = x,
                 .ldx = ldx,
                 .y = y,
                 .ldy = beside.ldy == 0 ? matrix.out() : beside.ldy,
                 .rows = count.rows,
                 .accumulate = beside.accumulate,
                 .bias = beside.bias == nullptr || beside.bias->size() == 0 ? nullptr : beside.bias->data(),
                 .step_rows = count.steps,
                 .norm_weight = beside.norm == nullptr ? nullptr : beside.norm->weight.data(),
                 .norm_eps = config().norm_eps,
                 .swiglu = beside.swiglu});
  }
  void Project(const PackedLinear& matrix, const float* x, int64_t ldx, float* y, RowCount count) const {
    Project(matrix, x, ldx, y, count, {});
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
void EmbedTokens(const Pass& pass);

// The logits of the rows that want them, from buffers.x.
void ComputeLogits(const Pass& pass, float* logits);

}  // namespace palimpsest
