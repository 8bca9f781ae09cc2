#include <cmath>
#include <cstdint>

#include "kernels/gate/gate.h"

namespace palimpsest {

void GateReference(const GateParams& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const double strength = p.b == nullptr ? 1.0 : 1.0 / (1.0 + std::exp(-double{p.b[r * p.ldb + h]}));
      p.beta[r * p.heads + h] = static_cast<float>(p.beta_scale * strength);
      if (p.a == nullptr) continue;
      const double x = double{p.a[r * p.lda + h]} + p.dt_bias[h];
      const double softplus = x > 20.0 ? x : std::log1p(std::exp(x));
      p.log_decay[r * p.heads + h] = static_cast<float>(-std::exp(double{p.a_log[h]}) * softplus);
    }
  }
}

}  // namespace palimpsest
