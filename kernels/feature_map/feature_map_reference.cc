#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/feature_map/feature_map.h"

namespace palimpsest {
namespace {

double Map(FeatureMapKind map, double x) {
  switch (map) {
    case FeatureMapKind::kElu1:
      return x > 0.0 ? x + 1.0 : std::exp(x);
    case FeatureMapKind::kRelu:
      return x < 0.0 ? 0.0 : x;
    case FeatureMapKind::kSilu:
      return x / (1.0 + std::exp(-x));
    default:
      return x;
  }
}

// A x + a, and then B x + b.
std::vector<double> LearnedOutputsOf(const FeatureMapParams& p, const float* x) {
  const int64_t outputs = LearnedOutputs(p.map, p.dim);
  std::vector<double> u(p.projection + p.dim * outputs, p.projection + (p.dim + 1) * outputs);
  for (int32_t i = 0; i < p.dim; ++i) {
    for (int64_t j = 0; j < outputs; ++j) u[j] += double{x[i]} * p.projection[i * outputs + j];
  }
  return u;
}

std::vector<double> LearnedFeatures(const FeatureMapParams& p, const float* x) {
  const std::vector<double> u = LearnedOutputsOf(p, x);
  std::vector<double> y;
  if (p.map == FeatureMapKind::kElementwiseProduct) {
    for (int32_t i = 0; i < p.dim; ++i) y.push_back(u[i] * u[p.dim + i]);
  } else if (p.map == FeatureMapKind::kT2r) {
    for (const double value : u) y.push_back(Map(FeatureMapKind::kRelu, value));
  } else {
    double most = 0.0, sum = 0.0;
    for (const double value : u) most = std::max(most, std::abs(2.0 * value));
    for (const double sign : {2.0, -2.0}) {
      for (const double value : u) y.push_back(std::exp(sign * value - most));
    }
    for (const double value : y) sum += value;
    for (double& value : y) value /= sum;
  }
  return y;
}

std::vector<double> Features(const FeatureMapParams& p, const float* x) {
  if (IsLearned(p.map)) return LearnedFeatures(p, x);
  std::vector<double> y;
  if (p.map == FeatureMapKind::kDpfp) {
    std::vector<double> r;
    for (int32_t i = 0; i < p.dim; ++i) r.push_back(x[i] < 0.0f ? 0.0 : x[i]);
    for (int32_t i = 0; i < p.dim; ++i) r.push_back(-x[i] < 0.0f ? 0.0 : -x[i]);
    for (int32_t roll = 1; roll <= p.rolls; ++roll) {
      for (int32_t j = 0; j < 2 * p.dim; ++j) y.push_back(r[j] * r[(j - roll + 2 * p.dim) % (2 * p.dim)]);
    }
  } else if (p.map == FeatureMapKind::kFavor) {
    double squares = 0.0;
    for (int32_t i = 0; i < p.dim; ++i) squares += double{x[i]} * x[i];
    for (const double sign : {1.0, -1.0}) {
      for (int32_t m = 0; m < p.projections; ++m) {
        double u = 0.0;
        for (int32_t i = 0; i < p.dim; ++i) u += double{x[i]} * p.projection[int64_t{i} * p.projections + m];
        y.push_back((std::exp(-0.5 * squares + sign * u) + 1e-4) / std::sqrt(2.0 * p.projections));
      }
    }
  } else {
    for (int32_t i = 0; i < p.dim; ++i) y.push_back(Map(p.map, x[i]));
  }
  return y;
}

}  // namespace

void FeatureMapReference(const FeatureMapParams& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    std::vector<std::vector<double>> of_head;
    for (int64_t h = 0; h < p.heads; ++h) of_head.push_back(Features(p, p.x + r * p.ldx + h * p.dim));
    for (int64_t h = 0; h < p.heads; ++h) {
      double sum = 0.0;
      double squares = 0.0, sizes = 0.0;
      for (const double value : of_head[h]) {
        sum += value;
        squares += value * value;
        sizes += std::abs(value);
      }
      double divisor = 1.0;
      if (p.norm == KeyNorm::kSum && sum != 0.0) divisor = sum;
      if (p.norm == KeyNorm::kShiftedSum) divisor = sum + 1e-4;
      if (p.norm == KeyNorm::kL1) divisor = sizes < 1e-6 ? 1e-6 : sizes;
      if (p.norm == KeyNorm::kL2) divisor = std::sqrt(squares + 1e-6);
      float* const y = p.y + r * p.ldy + h * p.features();
      for (int32_t i = 0; i < p.features(); ++i) y[i] = static_cast<float>(of_head[h][i] / divisor * p.scale);
    }
  }
}

}  // namespace palimpsest
