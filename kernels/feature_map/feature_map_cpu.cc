#include <cmath>
#include <cstdint>

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

float Factor(const FeatureMapParams& p, const float* mapped) {
  switch (p.norm) {
    case KeyNorm::kNone:
      return p.scale;
    case KeyNorm::kSum:
      return p.scale / SumOf(mapped, p.dim);
    case KeyNorm::kL2:
      return p.scale / std::sqrt(SumOfSquares(mapped, p.dim) + 1e-6f);
  }
  return p.scale;
}

template <FeatureMapKind kMap>
void MapRows(const FeatureMapParams& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const float* x = p.x + r * p.ldx + h * p.dim;
      float* y = p.y + r * p.ldy + h * p.dim;
      ForEachVector(p.dim, [&](size_t i, size_t count)
                               HWY_ATTR { StoreCount(Map<kMap>(LoadCount(x + i, count)), y + i, count); });
      const float factor = Factor(p, y);
      if (factor == 1.0f) continue;
      const FloatVec factors = hn::Set(FloatTag(), factor);
      ForEachVector(p.dim, [&](size_t i, size_t count)
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
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace palimpsest {

HWY_EXPORT(FeatureMapRows);

void FeatureMap(const ExecContext& ctx, const FeatureMapParams& params) {
  ctx.pool->ParallelFor(params.rows, RowsPerTask(int64_t{params.heads} * params.dim), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(FeatureMapRows)(params, begin, end);
  });
}

}  // namespace palimpsest
#endif
