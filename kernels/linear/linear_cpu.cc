#include <vector>

#include "kernels/linear/linear.h"

namespace palimpsest {

void Linear(const ExecContext& ctx, const LinearParams& params) {
  const PackedLinear& W = *params.weights;
  constexpr int64_t kPanel = PackedLinear::kPanel;
  ctx.pool->ParallelFor(W.out(), kPanel, [&](int64_t begin, int64_t end) {
    for (int32_t r = 0; r < params.rows; ++r) {
      const float* const x = params.x + r * params.ldx;
      float* const y = params.y + r * params.ldy;
      for (int64_t o = begin; o < end; ++o) {
        float sum = 0.0f;
        for (int64_t i = 0; i < W.in(); ++i) {
          const float x_i = params.math == LinearMath::kBF16 ? FloatFromBF16(BF16FromFloat(x[i])) : x[i];
          const float w =
              W.dtype() == DType::kF32
                  ? reinterpret_cast<const float*>(W.data())[(o / kPanel * W.in() + i) * kPanel + o % kPanel]
                  : FloatFromBF16(reinterpret_cast<const BF16*>(
                        W.data())[((o / kPanel * ((W.in() + 1) / 2) + i / 2) * kPanel + o % kPanel) * 2 + i % 2]);
          sum = __builtin_fmaf(x_i, w, sum);
        }
        y[o] = params.accumulate ? y[o] + sum : sum;
      }
    }
  });
}

}  // namespace palimpsest
