// The passes over the row are those of sampling, which are vectorised.
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "kernels/common/device.h"
#include "kernels/common/grain.h"
#include "kernels/log_softmax/log_softmax.h"
#include "kernels/sampling/logits_scan.h"

namespace palimpsest {

void LogSoftmax(const ExecContext& ctx, const LogSoftmaxParams& p) {
  if (ctx.device != nullptr) return ctx.device->Run(p);
  ctx.pool->ParallelFor(p.rows, RowsPerTask(p.dim), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const std::span<const float> x(p.x + r * p.ldx, p.dim);
      float* const y = p.y + r * p.ldy;
      if (!AllFinite(x)) {
        std::fill_n(y, p.dim, std::numeric_limits<float>::quiet_NaN());
        continue;
      }
      const float max = x[IndexOfMax(x)];
      const double log_sum = std::log(ExpSum(x, max, /*scale=*/1.0f, /*least=*/0.0f, nullptr, nullptr));
      // In double until the end: near 0 a log-probability is the small difference of larger numbers.
      const double shift = (p.shift == nullptr ? 0.0 : p.shift[r * p.ldshift]) - max - log_sum;
      for (int64_t i = 0; i < p.dim; ++i) y[i] = static_cast<float>(x[i] + shift);
    }
  });
}

}  // namespace palimpsest
