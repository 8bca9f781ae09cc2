#include <cmath>
#include <cstdint>

#include "kernels/activation/activation.h"

namespace palimpsest {

void SwigluReference(const SwigluParams& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t i = 0; i < p.dim; ++i) {
      const double gate = p.gate[r * p.ldgate + i];
      p.y[r * p.ldy + i] = static_cast<float>(gate / (1.0 + std::exp(-gate)) * p.up[r * p.ldup + i]);
    }
  }
}

}  // namespace palimpsest
