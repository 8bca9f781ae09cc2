// Attention normalisation of fast weights: what the accumulator z, the sum of all keys so far, divides.
//
// Row by row, with k and q mapped to features (2102.11174, eq. 18 to 20 and section 4.2; the toolkit's order and eps):
//   keys too   D = z k, or 1 if z is all zero;  k' = k / (D + eps);  beta' = beta D
//   then       z <- z + k  (k, not k');         c = z q;  q' = q s / (c + eps), or q s / (s c + eps)
//   (scaled_denominator)
// A read of the memory is linear in q, so scaling q is dividing the output: with k', beta' and q' the fast-weight op
// computes the normalised attention.
//
// The bits of a sequence depend on its own rows and z alone, however its rows are cut into calls.
#pragma once

#include <cstdint>

#include "kernels/common/ragged.h"
#include "kernels/common/thread_pool.h"

namespace palimpsest {

struct AttentionNormParams {
  int32_t heads = 0;
  int32_t dim = 0;  // features of a head
  RaggedRows rows;
  StatePiece z;  // [heads, dim] per slot, zero at first; updated in place
  bool normalise_keys = false;
  float scale = 1.0f;  // s
  bool scaled_denominator = false;
  float eps = 1e-5f;
  float* q = nullptr;  // [rows, heads, dim], row stride ldq; rewritten in place
  int64_t ldq = 0;
  float* k = nullptr;  // [rows, heads, dim], row stride ldk; rewritten in place if normalise_keys
  int64_t ldk = 0;
  float* beta = nullptr;  // [rows, heads] contiguous; rewritten in place if normalise_keys, else unused
};
void AttentionNorm(const ExecContext& ctx, const AttentionNormParams& params);

// The truth, in double precision.
void AttentionNormReference(const AttentionNormParams& params);

}  // namespace palimpsest
