// The fast-weight memory: each row of a sequence decays its matrix, corrects or adds to it, and reads from it.
//
//   sum                  S_t = S_{t-1} + v_t k_t^T           linear Transformers (2102.11174, eq. 17)
//   delta                S_t = S_{t-1} + u_t k_t^T,          u_t = beta_t (v_t - S_{t-1} k_t)
//                                                            (2102.11174, eq. 24; DeltaNet)
//   gated delta          S_t = a_t S_{t-1} + u_t k_t^T,      u_t = beta_t (v_t - a_t S_{t-1} k_t),
//                                                            a_t = exp(log_decay_t)  (Gated DeltaNet)
//   channel-gated delta  the same with S_{t-1} Diag(a_t) for a_t S_{t-1}: a decay for each channel of the keys (KDA)
//   channel-gated sum    S_t = S_{t-1} Diag(a_t) + v_t k_t^T                                                     (GLA)
//   low rank             S_t = S_{t-1} Diag(a_t) + (S_{t-1} remove_t) insert_t^T + v_t k_t^T
//                                                            diagonal plus low rank (RWKV-7)
//   output               o_t = S_t q_t                       (read after write)
//
// A row may write several times (sub-steps; Gated DeltaProduct): S decays once, before the first write, takes in the
// keys and values of the row one after the other by the rule without its decay, and is read after the last.
//
// S is value x key, one matrix per value head; with more value heads than heads, value head j uses the q and k of head
// floor(j * heads / value_heads).
//
// A sequence's rows are taken in chunks of kChunk counted from its first row in the call. A chunk of one row is a step;
// a longer one goes row by row with the state at hand, or, on a device, unless decays come by channel or writes several
// to a row, in the parallel (WY) form; see README.md. Forms differ by rounding only. The bits of a sequence's outputs
// and state depend on its own rows and state alone: not on other sequences, not on the number of threads, and not on
// whether its chunks come in one call or in several.
//
// S is kept as float32, or as bfloat16, which halves what a step reads and writes: it is then rounded to nearest, ties
// to even, at the end of each chunk (docs/numerics.md has what that costs). Arithmetic is float32 in any case.
#pragma once

#include <cstdint>

#include "kernels/common/ragged.h"
#include "kernels/common/thread_pool.h"

namespace palimpsest {

enum class UpdateRule : uint8_t { kSum, kDelta, kGatedDelta, kChannelGatedDelta, kLowRank, kChannelGatedSum };

// u_t = beta_t (v_t - what S_{t-1} says of k_t).
constexpr bool Corrects(UpdateRule rule) {
  return rule == UpdateRule::kDelta || rule == UpdateRule::kGatedDelta || rule == UpdateRule::kChannelGatedDelta;
}
constexpr bool DecaysHeads(UpdateRule rule) { return rule == UpdateRule::kGatedDelta; }
constexpr bool DecaysChannels(UpdateRule rule) {
  return rule == UpdateRule::kChannelGatedDelta || rule == UpdateRule::kLowRank || rule == UpdateRule::kChannelGatedSum;
}
constexpr bool Decays(UpdateRule rule) { return DecaysHeads(rule) || DecaysChannels(rule); }

// What a row's writes after the first go by.
constexpr UpdateRule WithoutDecay(UpdateRule rule) {
  if (!Decays(rule) || rule == UpdateRule::kLowRank) return rule;
  return Corrects(rule) ? UpdateRule::kDelta : UpdateRule::kSum;
}

// Whether a row may have several writes.
constexpr bool HasSubSteps(UpdateRule rule) { return rule != UpdateRule::kLowRank; }

struct FastWeightShape {
  int32_t heads = 0;        // of q and k
  int32_t value_heads = 0;  // of v, beta, log_decay and the state; a multiple of `heads`
  int32_t key_dim = 0;      // K
  int32_t value_dim = 0;    // V

  int64_t state_floats() const { return int64_t{value_heads} * value_dim * key_dim; }
};

// The replay form, of devices only: a step leaves the state as it is and keeps what it would have written, until the
// interval-th one, which writes all of it. Whoever reads the state next does the additions that were left out, in their
// order: the bits are those of writing at every step. Saves writes, which are half of a step's traffic.
struct FastWeightReplay {
  int32_t interval = 1;  // 1: every step writes
  StatePiece written;    // [value_heads, interval - 1, entry_floats] per slot: k, decay, padding, u
  StatePiece pending;    // int32 per slot, all layers' together: how many entries of `written` the state lacks

  // Padded so that entries and their parts begin at 16 bytes.
  PALIMPSEST_HOST_DEVICE static int64_t entry_floats(const FastWeightShape& shape) {
    return (int64_t{shape.key_dim} + 4 + shape.value_dim + 3) / 4 * 4;
  }
};

// Key sizes for which a device keeps rows of the state in registers.
constexpr bool HasRegisterForm(int32_t K) { return K == 16 || K == 32 || K == 64 || K == 128 || K == 256; }

// Whether a device has the replay form for such heads and as many writes to a row.
constexpr bool HasReplayForm(const FastWeightShape& shape, UpdateRule rule, int32_t sub_steps = 1) {
  return HasRegisterForm(shape.key_dim) && !DecaysChannels(rule) && sub_steps == 1;
}

struct FastWeightParams {
  static constexpr int32_t kChunk = 64;

  FastWeightShape shape;
  UpdateRule rule = UpdateRule::kDelta;
  int32_t sub_steps = 1;  // writes to a row; more than one if HasSubSteps(rule)
  RaggedRows rows;
  StatePiece state;  // [value_heads, V, K] per slot, f32 or bf16; updated in place
  // Rows of each; strides in floats between rows. q and k come mapped, normalised and scaled.
  const float* q = nullptr;  // [rows, heads, K]
  int64_t ldq = 0;
  const float* k = nullptr;  // [rows, sub_steps, heads, K]
  int64_t ldk = 0;
  const float* v = nullptr;  // [rows, sub_steps, value_heads, V]
  int64_t ldv = 0;
  // Contiguous. Null: the rule has none.
  const float* beta = nullptr;       // [rows, sub_steps, value_heads]
  const float* log_decay = nullptr;  // [rows, value_heads], or [rows, value_heads, K] by channel; all <= 0
  const float* remove = nullptr;     // [rows, value_heads, K], of kLowRank
  const float* insert = nullptr;     // [rows, value_heads, K], of kLowRank
  float* out = nullptr;              // [rows, value_heads, V]
  int64_t ldout = 0;
  // A device may round the factors of a chunk's products to tf32 (11 bits). The state that it stores is not rounded so.
  bool round_products = false;
  // A device's; the first rows.num_steps sequences use it. The states of the others are whole after the call.
  // AdvanceReplay must follow once all layers are done.
  FastWeightReplay replay = {};
};

// The fast home. Scratch is thread-local and bounded by the shape.
void FastWeight(const ExecContext& ctx, const FastWeightParams& params);

// Makes the states of these sequences whole. AdvanceReplay, with num_steps 0, must follow once all layers are done.
struct FlushReplayParams {
  FastWeightShape shape;
  UpdateRule rule = UpdateRule::kDelta;
  RaggedRows rows;
  StatePiece state;
  FastWeightReplay replay;
};
void FlushReplay(const ExecContext& ctx, const FlushReplayParams& params);

// After a pass over all layers: the first rows.num_steps sequences have one more entry each, or, after the interval-th
// step, none; all others have none.
struct AdvanceReplayParams {
  RaggedRows rows;
  int32_t interval = 1;
  StatePiece pending;
};
void AdvanceReplay(const ExecContext& ctx, const AdvanceReplayParams& params);

// The truth: the recurrence above row by row in double precision, rounded at the end of the call only.
void FastWeightReference(const FastWeightParams& params);

}  // namespace palimpsest
