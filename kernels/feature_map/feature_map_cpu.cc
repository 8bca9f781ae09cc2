#include <algorithm>
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
    case KeyNorm::kShiftedSum:
      return p.scale / (SumOf(mapped, features) + 1e-4f);
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

// kVectors vectors of outputs of a learned map from number j on, or, if there are less, `count` of one, for kHeads
// heads. Each output is one chain of multiply-adds from its bias on, whatever is computed beside it.
template <int kHeads, int kVectors>
HWY_INLINE void LearnedTile(const FeatureMapParams& p, const float* HWY_RESTRICT x, int64_t j, size_t count,
                            float* HWY_RESTRICT u) {
  const FloatTag d;
  const int64_t lanes = hn::Lanes(d), dim = p.dim, outputs = LearnedOutputs(p.map, p.dim);
  const auto load = [&](int64_t input, int64_t m) HWY_ATTR {
    const float* const at = p.projection + input * outputs + j + m * lanes;
    if constexpr (kVectors > 1) return hn::LoadU(d, at);
    return LoadCount(at, count);
  };
  FloatVec sum[kHeads][kVectors];
  for (int64_t m = 0; m < kVectors; ++m) {
    for (auto& of_head : sum) of_head[m] = load(dim, m);
  }
  for (int64_t i = 0; i < dim; ++i) {
    FloatVec weight[kVectors];
    for (int64_t m = 0; m < kVectors; ++m) weight[m] = load(i, m);
    for (int64_t h = 0; h < kHeads; ++h) {
      const FloatVec value = hn::Set(d, x[h * dim + i]);
      for (int64_t m = 0; m < kVectors; ++m) sum[h][m] = hn::MulAdd(value, weight[m], sum[h][m]);
    }
  }
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t m = 0; m < kVectors; ++m) StoreCount(sum[h][m], u + h * outputs + j + m * lanes, count);
  }
}

// What a learned map's matrices give for kHeads heads, to u: [kHeads, LearnedOutputs].
template <int kHeads>
void LearnedHeads(const FeatureMapParams& p, const float* x, float* u) {
  constexpr int kVectors = 8 / kHeads;  // chains enough to hide the latency of multiply-adds
  const int64_t lanes = hn::Lanes(FloatTag()), outputs = LearnedOutputs(p.map, p.dim);
  int64_t j = 0;
  for (; j + kVectors * lanes <= outputs; j += kVectors * lanes) LearnedTile<kHeads, kVectors>(p, x, j, lanes, u);
  for (; j < outputs; j += lanes) LearnedTile<kHeads, 1>(p, x, j, std::min(lanes, outputs - j), u);
}

// The features of a head from what its map's matrices gave.
template <FeatureMapKind kMap>
void JoinOutputs(const float* u, int64_t dim, float* y) {
  const FloatTag d;
  if constexpr (kMap == FeatureMapKind::kElementwiseProduct) {
    ForEachVector(dim, [&](size_t i, size_t count) HWY_ATTR {
      StoreCount(hn::Mul(LoadCount(u + i, count), LoadCount(u + dim + i, count)), y + i, count);
    });
  } else if constexpr (kMap == FeatureMapKind::kT2r) {
    ForEachVector(dim, [&](size_t i, size_t count)
                           HWY_ATTR { StoreCount(Map<FeatureMapKind::kRelu>(LoadCount(u + i, count)), y + i, count); });
  } else {
    FloatVec most = hn::Zero(d);
    ForEachVector(dim,
                  [&](size_t i, size_t count) HWY_ATTR { most = hn::Max(most, hn::Abs(LoadCount(u + i, count))); });
    const FloatVec offset = hn::Mul(hn::Set(d, -2.0f), hn::MaxOfLanes(d, most)), two = hn::Set(d, 2.0f);
    ForEachVector(dim, [&](size_t i, size_t count) HWY_ATTR {
      const FloatVec v = LoadCount(u + i, count);
      StoreCount(ExpOf(hn::MulAdd(two, v, offset)), y + i, count);
      StoreCount(ExpOf(hn::NegMulAdd(two, v, offset)), y + dim + i, count);
    });
    const FloatVec factor = hn::Set(d, 1.0f / SumOf(y, 2 * dim));
    ForEachVector(2 * dim, [&](size_t i, size_t count)
                               HWY_ATTR { StoreCount(hn::Mul(LoadCount(y + i, count), factor), y + i, count); });
  }
}

// The heads of a row, some at a time, so that they share what is loaded of the matrices.
template <FeatureMapKind kMap>
void MapLearnedRow(const FeatureMapParams& p, const float* x, float* y) {
  constexpr int kTogether = 4;
  const int64_t outputs = LearnedOutputs(p.map, p.dim);
  thread_local std::vector<float> scratch;
  scratch.resize(kTogether * outputs);
  for (int64_t h = 0; h < p.heads;) {
    const int64_t n = h + kTogether <= p.heads ? kTogether : 1;
    if (n == kTogether) {
      LearnedHeads<kTogether>(p, x + h * p.dim, scratch.data());
    } else {
      LearnedHeads<1>(p, x + h * p.dim, scratch.data());
    }
    for (int64_t i = 0; i < n; ++i, ++h) JoinOutputs<kMap>(scratch.data() + i * outputs, p.dim, y + h * p.features());
  }
}

template <FeatureMapKind kMap>
void MapRows(const FeatureMapParams& p, int64_t begin, int64_t end) {
  const int64_t features = p.features();
  for (int64_t r = begin; r < end; ++r) {
    if constexpr (IsLearned(kMap)) MapLearnedRow<kMap>(p, p.x + r * p.ldx, p.y + r * p.ldy);
    for (int64_t h = 0; h < p.heads; ++h) {
      float* const y = p.y + r * p.ldy + h * features;
      if constexpr (!IsLearned(kMap)) MapHead<kMap>(p, p.x + r * p.ldx + h * p.dim, y);
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
    case FeatureMapKind::kElementwiseProduct:
      return MapRows<FeatureMapKind::kElementwiseProduct>(p, begin, end);
    case FeatureMapKind::kT2r:
      return MapRows<FeatureMapKind::kT2r>(p, begin, end);
    case FeatureMapKind::kHedgehog:
      return MapRows<FeatureMapKind::kHedgehog>(p, begin, end);
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
  // A learned feature takes about as long as dim / 16 others.
  const int64_t cost = IsLearned(params.map) ? 1 + params.dim / 16 : 1;
  ctx.pool->ParallelFor(params.rows, RowsPerTask(int64_t{params.heads} * params.features() * cost),
                        [&](int64_t begin, int64_t end) {
                          HWY_DYNAMIC_DISPATCH(FeatureMapRows)
                          (params, begin, end);
                        });
}

}  // namespace palimpsest
#endif
