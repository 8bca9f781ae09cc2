#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "kernels/common/device.h"
#include "kernels/common/grain.h"
#include "kernels/embedding/embedding.h"

namespace palimpsest {
namespace {

// Bound by memory: the compiler's own vectors will do.
template <float (*kWiden)(uint16_t)>
void WidenRow(const void* table, int64_t row, int64_t dim, float* y) {
  const uint16_t* source = static_cast<const uint16_t*>(table) + row * dim;
  for (int64_t i = 0; i < dim; ++i) y[i] = kWiden(source[i]);
}

}  // namespace

void Embedding(const ExecContext& ctx, const EmbeddingParams& params) {
  if (ctx.device != nullptr) return ctx.device->Run(params);
  const EmbeddingParams& p = params;
  ctx.pool->ParallelFor(p.rows, RowsPerTask(p.dim), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* y = p.y + r * p.dim;
      switch (p.dtype) {
        case DType::kBF16:
          WidenRow<FloatFromBF16>(p.table, p.tokens[r], p.dim, y);
          break;
        case DType::kF16:
          WidenRow<FloatFromF16>(p.table, p.tokens[r], p.dim, y);
          break;
        default:
          PALIMPSEST_CHECK(p.dtype == DType::kF32);
          std::memcpy(y, static_cast<const float*>(p.table) + int64_t{p.tokens[r]} * p.dim, p.dim * sizeof(float));
      }
      if (p.scale == 1.0f) continue;
      for (int64_t i = 0; i < p.dim; ++i) y[i] *= p.scale;
    }
  });
}

void AddSinusoid(const ExecContext& ctx, const SinusoidParams& p) {
  if (ctx.device != nullptr) return ctx.device->Run(p);
  PALIMPSEST_CHECK(p.dim % 2 == 0);
  const int64_t half = p.dim / 2;
  // A sine costs as much as some tens of multiplications.
  ctx.pool->ParallelFor(p.rows, RowsPerTask(16 * p.dim), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* const y = p.y + r * p.dim;
      for (int64_t j = 0; j < half; ++j) {
        const float angle = static_cast<float>(p.positions[r]) * p.frequencies[j];
        y[j] += std::sin(angle);
        y[half + j] += std::cos(angle);
      }
    }
  });
}

}  // namespace palimpsest
