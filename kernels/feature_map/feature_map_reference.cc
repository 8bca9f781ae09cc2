#include <cmath>
#include <cstdint>

#include "kernels/feature_map/feature_map.h"

namespace palimpsest {
namespace {

double Map(FeatureMapKind map, double x) {
  switch (map) {
    case FeatureMapKind::kIdentity:
      return x;
    case FeatureMapKind::kElu1:
      return x > 0.0 ? x + 1.0 : std::exp(x);
    case FeatureMapKind::kRelu:
      return x < 0.0 ? 0.0 : x;
    case FeatureMapKind::kSilu:
      return x / (1.0 + std::exp(-x));
  }
  return x;
}

}  // namespace

void FeatureMapReference(const FeatureMapParams& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const float* x = p.x + r * p.ldx + h * p.dim;
      float* y = p.y + r * p.ldy + h * p.dim;
      double sum = 0.0;
      double squares = 0.0;
      for (int64_t i = 0; i < p.dim; ++i) {
        const double value = Map(p.map, x[i]);
        sum += value;
        squares += value * value;
      }
      double divisor = 1.0;
      if (p.norm == KeyNorm::kSum) divisor = sum;
      if (p.norm == KeyNorm::kL2) divisor = std::sqrt(squares + 1e-6);
      for (int64_t i = 0; i < p.dim; ++i) y[i] = static_cast<float>(Map(p.map, x[i]) / divisor * p.scale);
    }
  }
}

}  // namespace palimpsest
