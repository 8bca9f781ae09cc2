#include <algorithm>
#include <cmath>

#include "kernels/log_softmax/log_softmax.h"

namespace palimpsest {

void LogSoftmaxReference(const LogSoftmaxParams& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    const float* const x = p.x + r * p.ldx;
    const double max = *std::max_element(x, x + p.dim);
    double sum = 0.0;
    for (int64_t i = 0; i < p.dim; ++i) sum += std::exp(x[i] - max);
    const double shift = (p.shift == nullptr ? 0.0 : p.shift[r * p.ldshift]) - max - std::log(sum);
    for (int64_t i = 0; i < p.dim; ++i) p.y[r * p.ldy + i] = static_cast<float>(x[i] + shift);
  }
}

}  // namespace palimpsest
