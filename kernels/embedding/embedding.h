// What a token looks like to the first layer.
//
//   Embedding    y[r] = scale table[token[r]]
//   AddSinusoid  y[r] += [sin(p f_0), sin(p f_1), ... ; cos(p f_0), cos(p f_1), ...] at position p of row r: all sines,
//                then all cosines, as the toolkit of 2102.11174 has them
#pragma once

#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/thread_pool.h"

namespace palimpsest {

struct EmbeddingParams {
  int32_t rows = 0;
  int32_t dim = 0;
  const int32_t* tokens = nullptr;  // [rows], each in [0, vocabulary): checked by the caller
  DType dtype = DType::kF32;        // of the table: f32, bf16 or f16
  const void* table = nullptr;      // [vocabulary, dim]
  float scale = 1.0f;
  float* y = nullptr;  // [rows, dim] contiguous
};
void Embedding(const ExecContext& ctx, const EmbeddingParams& params);

struct SinusoidParams {
  int32_t rows = 0;
  int32_t dim = 0;                     // even
  const float* frequencies = nullptr;  // [dim / 2]
  const int64_t* positions = nullptr;  // [rows]
  float* y = nullptr;                  // [rows, dim] contiguous
};
// The angle p f is rounded to float, as the toolkit's is.
void AddSinusoid(const ExecContext& ctx, const SinusoidParams& params);

}  // namespace palimpsest
