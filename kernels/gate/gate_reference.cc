#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/gate/gate.h"

namespace palimpsest {
namespace {

double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double LogDecay(const GateParams& p, double x, double rate) {
  switch (p.decay_kind) {
    case DecayKind::kSoftplus:
      return -rate * (x > 20.0 ? x : std::log1p(std::exp(x)));
    case DecayKind::kSigmoid:
      return p.lower_bound * Sigmoid(rate * x);
    case DecayKind::kLogSigmoid: {
      const double log_sigmoid = std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x)));
      return std::max(log_sigmoid / p.divisor, double{p.lower_bound});
    }
  }
  return 0.0;
}

}  // namespace

void GateReference(const GateParams& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t h = 0; h < p.heads && p.beta != nullptr; ++h) {
      const double strength = p.b == nullptr ? 1.0 : Sigmoid(p.b[r * p.ldb + h]);
      p.beta[r * p.heads + h] = static_cast<float>(p.beta_scale * strength);
    }
    for (int64_t i = 0; i < p.decays() && p.a != nullptr; ++i) {
      const double x = double{p.a[r * p.lda + i]} + (p.dt_bias == nullptr ? 0.0 : p.dt_bias[i]);
      const double rate = p.a_log == nullptr ? 1.0 : std::exp(double{p.a_log[i / p.decay_channels]});
      p.log_decay[r * p.decays() + i] = static_cast<float>(LogDecay(p, x, rate));
    }
  }
}

}  // namespace palimpsest
