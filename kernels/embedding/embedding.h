// Row look-up: y[r] = table[token[r]].
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
  float* y = nullptr;               // [rows, dim] contiguous
};
void Embedding(const ExecContext& ctx, const EmbeddingParams& params);

}  // namespace palimpsest
