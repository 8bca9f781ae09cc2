// The fast-weight memory: each row of a sequence decays its matrix, corrects or adds to it, and reads from it.
//
//   sum          S_t = S_{t-1} + v_t k_t^T                                      linear Transformers (2102.11174, eq.
//   17) delta        S_t = S_{t-1} + u_t k_t^T,   u_t = beta_t (v_t - S_{t-1} k_t)   (2102.11174, eq. 24; DeltaNet)
//   gated delta  S_t = a_t S_{t-1} + u_t k_t^T, u_t = beta_t (v_t - a_t S_{t-1} k_t), a_t = exp(log_decay_t)
//   output       o_t = S_t q_t                                                   (read after write)
//
// S is value x key, float32, one matrix per value head; with more value heads than heads, value head j uses the q and k
// of head floor(j * heads / value_heads).
//
// A sequence's rows are taken in chunks of kChunk counted from its first row in the call. A chunk of one row is a step;
// a longer one uses the parallel (WY) form, solved by forward substitution; see README.md. The two differ by rounding
// only. The bits of a sequence's outputs and state depend on its own rows and state alone: not on other sequences, not
// on the number of threads, and not on whether its chunks come in one call or in several.
#pragma once

#include <cstdint>

#include "kernels/common/ragged.h"
#include "kernels/common/thread_pool.h"

namespace palimpsest {

enum class UpdateRule : uint8_t { kSum, kDelta, kGatedDelta };

struct FastWeightShape {
  int32_t heads = 0;        // of q and k
  int32_t value_heads = 0;  // of v, beta, log_decay and the state; a multiple of `heads`
  int32_t key_dim = 0;      // K
  int32_t value_dim = 0;    // V

  int64_t state_floats() const { return int64_t{value_heads} * value_dim * key_dim; }
};

struct FastWeightParams {
  static constexpr int32_t kChunk = 64;

  FastWeightShape shape;
  UpdateRule rule = UpdateRule::kDelta;
  RaggedRows rows;
  StatePiece state;  // [value_heads, V, K] per slot; updated in place
  // Rows of each; strides in floats between rows. q and k come mapped, normalised and scaled.
  const float* q = nullptr;  // [rows, heads, K]
  int64_t ldq = 0;
  const float* k = nullptr;  // [rows, heads, K]
  int64_t ldk = 0;
  const float* v = nullptr;  // [rows, value_heads, V]
  int64_t ldv = 0;
  const float* beta = nullptr;       // [rows, value_heads] contiguous; null for kSum
  const float* log_decay = nullptr;  // [rows, value_heads] contiguous, all <= 0; null unless kGatedDelta
  float* out = nullptr;              // [rows, value_heads, V]
  int64_t ldout = 0;
  // A device may round the factors of a chunk's products to tf32 (11 bits). The state stays float32.
  bool round_products = false;
};

// The fast home. Scratch is thread-local and bounded by the shape.
void FastWeight(const ExecContext& ctx, const FastWeightParams& params);

// The truth: the recurrence above row by row in double precision, rounded to float at the end of the call only.
void FastWeightReference(const FastWeightParams& params);

}  // namespace palimpsest
