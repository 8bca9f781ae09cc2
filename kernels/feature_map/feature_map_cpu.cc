#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/common/device.h"
#include "kernels/common/grain.h"
#include "kernels/feature_map/feature_map.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/feature_map/feature_map_cpu.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/common/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {

template <FeatureMapKind kMap>
HWY_INLINE FloatVec Map(FloatVec x) {
  const FloatTag d;
  if constexpr (kMap == FeatureMapKind::kIdentity) return x;
  if constexpr (kMap == FeatureMapKind::kElu1) {
    return hn::IfThenElse(hn::Gt(x, hn::Zero(d)), hn::Add(x, hn::Set(d, 1.0f)), ExpOf(x));
  }
  // A blend and not Max, which may answer 0 for NaN.
  if constexpr (kMap == FeatureMapKind::kRelu) return hn::IfThenZeroElse(hn::Lt(x, hn::Zero(d)), x);
  if constexpr (kMap == FeatureMapKind::kSilu) return SiluOf(x);
}

constexpr float kLeastSum = 1e-6f;

float Factor(const FeatureMapParams& p, const float* mapped) {
  const size_t features = p.features();
  switch (p.norm) {
    case KeyNorm::kNone:
      return p.scale;
    case KeyNorm::kSum: {
      const float sum = SumOf(mapped, features);
      return sum == 0.0f ? p.scale : p.scale / sum;
    }
    case KeyNorm::kL1: {
      const float sum = SumOfSizes(mapped, features);
      return p.scale / (sum < kLeastSum ? kLeastSum : sum);  // NaN stays
    }
    case KeyNorm::kL2:
      return p.scale / std::sqrt(SumOfSquares(mapped, features) + 1e-6f);
  }
  return p.scale;
}

template <FeatureMapKind kMap>
void MapHead(const FeatureMapParams& p, const float* x, float* y) {
  ForEachVector(p.dim,
                [&](size_t i, size_t count) HWY_ATTR { StoreCount(Map<kMap>(LoadCount(x + i, count)), y + i, count); });
}

template <>
void MapHead<FeatureMapKind::kDpfp>(const FeatureMapParams& p, const float* x, float* y) {
  // r twice, so that a rolled one is a window of it.
  const size_t dim = p.dim, width = 2 * dim;
  thread_local std::vector<float> doubled;
  doubled.resize(2 * width);
  float* const r = doubled.data();
  ForEachVector(dim, [&](size_t i, size_t count) HWY_ATTR {
    const FloatVec v = LoadCount(x + i, count);
    const FloatVec positive = Map<FeatureMapKind::kRelu>(v), negative = Map<FeatureMapKind::kRelu>(hn::Neg(v));
    for (const size_t copy : {size_t{0}, width}) {
      StoreCount(positive, r + copy + i, count);
      StoreCount(negative, r + copy + dim + i, count);
    }
  });
  for (size_t roll = 1; roll <= static_cast<size_t>(p.rolls); ++roll, y += width) {
    ForEachVector(width, [&](size_t j, size_t count) HWY_ATTR {
      StoreCount(hn::Mul(LoadCount(r + j, count), LoadCount(r + width + j - roll, count)), y + j, count);
    });
  }
}

template <>
void MapHead<FeatureMapKind::kFavor>(const FeatureMapParams& p, const float* x, float* y) {
  const FloatTag d;
  const int64_t m = p.projections;
  const FloatVec offset = hn::Set(d, -0.5f * SumOfSquares(x, p.dim));
  const FloatVec factor = hn::Set(d, 1.0f / std::sqrt(2.0f * static_cast<float>(m)));
  ForEachVector(m, [&](size_t j, size_t count) HWY_ATTR {
    FloatVec u = hn::Zero(d);
    for (int64_t i = 0; i < p.dim; ++i) {
      u = hn::MulAdd(hn::Set(d, x[i]), LoadCount(p.projection + i * m + j, count), u);
    }
    const auto feature = [&](FloatVec exponent)
                             HWY_ATTR { return hn::Mul(hn::Add(ExpOf(exponent), hn::Set(d, 1e-4f)), factor); };
    StoreCount(feature(hn::Add(offset, u)), y + j, count);
    StoreCount(feature(hn::Sub(offset, u)), y + m + j, count);
  });
}

template <FeatureMapKind kMap>
void MapRows(const FeatureMapParams& p, int64_t begin, int64_t end) {
  const int64_t features = p.features();
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t h = 0; h < p.heads; ++h) {
      float* const y = p.y + r * p.ldy + h * features;
      MapHead<kMap>(p, p.x + r * p.ldx + h * p.dim, y);
      const float factor = Factor(p, y);
      if (factor == 1.0f) continue;
      const FloatVec factors = hn::Set(FloatTag(), factor);
      ForEachVector(features, [&](size_t i, size_t count)
                                  HWY_ATTR { StoreCount(hn::Mul(LoadCount(y + i, count), factors), y + i, count); });
    }
  }
}

void FeatureMapRows(const FeatureMapParams& p, int64_t begin, int64_t end) {
  switch (p.map) {
    case FeatureMapKind::kIdentity:
      return MapRows<FeatureMapKind::kIdentity>(p, begin, end);
    case FeatureMapKind::kElu1:
      return MapRows<FeatureMapKind::kElu1>(p, begin, end);
    case FeatureMapKind::kRelu:
      return MapRows<FeatureMapKind::kRelu>(p, begin, end);
    case FeatureMapKind::kSilu:
      return MapRows<FeatureMapKind::kSilu>(p, begin, end);
    case FeatureMapKind::kDpfp:
      return MapRows<FeatureMapKind::kDpfp>(p, begin, end);
    case FeatureMapKind::kFavor:
      return MapRows<FeatureMapKind::kFavor>(p, begin, end);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace palimpsest {

HWY_EXPORT(FeatureMapRows);

void FeatureMap(const ExecContext& ctx, const FeatureMapParams& params) {
  if (ctx.device != nullptr) return ctx.device->Run(params);
  ctx.pool->ParallelFor(params.rows, RowsPerTask(int64_t{params.heads} * params.features()),
                        [&](int64_t begin, int64_t end) {
                          HWY_DYNAMIC_DISPATCH(FeatureMapRows)
                          (params, begin, end);
                        });
}

}  // namespace palimpsest
#endif
