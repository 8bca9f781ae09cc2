#include <cmath>
#include <cstdint>

#include "kernels/norm/norm.h"

namespace palimpsest {
namespace {

double GateFactor(GateActivation activation, double gate) {
  const double sigmoid = 1.0 / (1.0 + std::exp(-gate));
  return activation == GateActivation::kSilu ? gate * sigmoid : sigmoid;
}

}  // namespace

void RmsNormReference(const RmsNormParams& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t g = 0; g < p.groups; ++g) {
      const float* x = p.x + r * p.ldx + g * p.dim;
      float* y = p.y + r * p.ldy + g * p.dim;
      double sum = 0.0;
      for (int64_t i = 0; i < p.dim; ++i) sum += double{x[i]} * x[i];
      const double root = std::sqrt(sum / p.dim + double{p.eps});
      for (int64_t i = 0; i < p.dim; ++i) {
        double value = x[i] / root * p.weight[i];
        if (p.gate_activation != GateActivation::kNone) {
          value *= GateFactor(p.gate_activation, p.gate[r * p.ldgate + g * p.dim + i]);
        }
        y[i] = static_cast<float>(value);
      }
    }
  }
}

void LayerNormReference(const LayerNormParams& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    const float* const x = p.x + r * p.ldx;
    double mean = 0.0, variance = 0.0;
    for (int64_t i = 0; i < p.dim; ++i) mean += double{x[i]} / p.dim;
    for (int64_t i = 0; i < p.dim; ++i) variance += (x[i] - mean) * (x[i] - mean) / p.dim;
    const double root = std::sqrt(variance + double{p.eps});
    for (int64_t i = 0; i < p.dim; ++i) {
      p.y[r * p.ldy + i] = static_cast<float>((x[i] - mean) / root * p.weight[i] + p.bias[i]);
    }
  }
}

}  // namespace palimpsest
