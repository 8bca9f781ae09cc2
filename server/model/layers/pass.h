// One forward pass over a batch: what its parts have in common.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/fast_weight/fast_weight.h"
#include "kernels/linear/linear.h"
#include "server/model/layers/norm.h"
#include "server/model/layers/scratch.h"
#include "server/model/model.h"
#include "server/model/slot_layout.h"
#include "server/model/state_layout.h"

namespace palimpsest {

// Rows of a batch, of which the first `steps` are steps.
struct RowCount {
  int32_t rows = 0;
  int32_t steps = 0;
};

// What a projection reads: x, or x normalized on the way.
struct ProjectionInput {
  const float* x = nullptr;
  int64_t ldx = 0;
  const NormLayer* norm = nullptr;  // where Pass::FoldsNorm()
};

// What a projection does beside its product.
struct ProjectionExtras {
  int64_t ldy = 0;  // 0: the matrix's rows
  bool accumulate = false;
  const AlignedArray<float>* bias = nullptr;  // null or empty: none
  bool swiglu = false;                        // where FoldsSwiglu() (linear.h), and the input is normalized on the way
};

// One call of Model::Forward.
struct Pass {
  const ExecContext& ctx;
  const ForwardBatch& batch;  // in host memory
  Workspace::Buffers& buffers;
  int32_t hidden = 0;                        // D
  LinearMath bf16_math = LinearMath::kBF16;  // what is done with bf16 weights
  SlotLayout slots = {};
  // The batch's arrays where the ops run, which is `batch`'s on the host.
  RaggedRows rows = {};
  const int32_t* tokens = nullptr;
  const int64_t* first_position = nullptr;
  const int32_t* logit_rows = nullptr;
  RowCount count = {};         // all rows
  RowCount logits_count = {};  // those that want logits

  int32_t num_rows() const { return count.rows; }
  bool on_device() const { return ctx.device != nullptr; }
  // Nowhere, if the layer has no such piece.
  StatePiece Piece(const StateHandle& handle) const {
    if (handle.offset < 0) return {};
    return {batch.states + handle.offset, batch.state_stride, handle.dtype};
  }
  // What the fast weights lack, `written` being a layer's entries in a slot.
  FastWeightReplay Replay(const StateHandle& written) const {
    if (slots.write_interval == 1) return {};
    return {.interval = slots.write_interval, .written = Piece(written), .pending = Piece({slots.deferred})};
  }
  void AdvanceReplays() const {
    if (slots.write_interval == 1) return;
    AdvanceReplay(ctx, {.rows = rows, .interval = slots.write_interval, .pending = Piece({slots.deferred})});
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
    return matrix.dtype() == DType::kBF16 ? bf16_math : LinearMath::kF32;
  }
  // Whether a projection can normalize what it reads, and has nothing to add.
  bool FoldsNorm(const NormLayer& norm, const PackedLinear& matrix, const AlignedArray<float>* bias = nullptr) const;
  // y = W x, or y += W x; y has W's rows as columns.
  void Project(const PackedLinear& matrix, const ProjectionInput& input, float* y, RowCount count,
               const ProjectionExtras& extras = {}) const;
  // y = norm(x), both [rows, D]; y may be x.
  void Normalize(const NormLayer& norm, const float* x, float* y, int32_t rows) const;
};

}  // namespace palimpsest
