// Softmax attention over a bounded window, keys and values in a ring that is part of the state: the baseline of
// 2102.11174, and Transformer-XL's relative attention (1901.02860).
//
//   score(t, j) = scale q_t k_j                                                          plain
//   score(t, j) = scale ((q_t + content_bias) k_j + (q_t + position_bias) relative[t - j])     Transformer-XL
//   o_t = sum_j softmax_j(score(t, .)) v_j   over positions j from max(0, floor(t / segment) segment - memory) to t
//
// With segment 1 that is a window that slides; with a longer one it is the toolkit's: a segment sees itself and the
// `memory` positions before it. A row's cost grows with the window, not with the position.
//
// Rows are taken one by one, each writing its own key and value first: the bits of a sequence depend on its own rows
// and ring alone, however its rows are cut into calls.
#pragma once

#include <cstdint>

#include "kernels/common/ragged.h"
#include "kernels/common/thread_pool.h"

namespace palimpsest {

struct WindowAttentionParams {
  int32_t heads = 0;
  int32_t dim = 0;       // of a head's q, k and v
  int32_t capacity = 0;  // segment + memory
  int32_t segment = 1;
  int32_t memory = 0;
  float scale = 1.0f;
  RaggedRows rows;
  const int64_t* first_position = nullptr;  // [num_sequences], >= 0: position of each sequence's first row
  // [2, heads, capacity, dim] per slot: keys, then values; position t's are at t % capacity. Updated in place.
  StatePiece ring;
  const float* q = nullptr;  // [rows, heads, dim] each, with row strides
  int64_t ldq = 0;
  const float* k = nullptr;
  int64_t ldk = 0;
  const float* v = nullptr;
  int64_t ldv = 0;
  // Transformer-XL; all null: plain.
  const float* content_bias = nullptr;   // [heads, dim]
  const float* position_bias = nullptr;  // [heads, dim]
  const float* relative = nullptr;       // [capacity, heads, dim], by distance
  float* out = nullptr;                  // [rows, heads, dim], row stride ldout
  int64_t ldout = 0;

  PALIMPSEST_HOST_DEVICE int64_t ring_floats() const { return int64_t{2} * capacity * heads * dim; }
  PALIMPSEST_HOST_DEVICE int64_t first_visible(int64_t position) const {
    const int64_t first = position / segment * segment - memory;
    return first < 0 ? 0 : first;
  }
};
void WindowAttention(const ExecContext& ctx, const WindowAttentionParams& params);

// The truth, in double precision; the ring is float.
void WindowAttentionReference(const WindowAttentionParams& params);

}  // namespace palimpsest
