#include <cmath>
#include <cstdint>

#include "kernels/common/device.h"
#include "kernels/common/grain.h"
#include "kernels/norm/norm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm/norm_cpu.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/common/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {

template <GateActivation kActivation>
void NormalizeGroup(const RmsNormParams& p, const float* x, const float* gate, float* y) {
  const size_t dim = p.dim;
  const float mean = SumOfSquares(x, dim) / static_cast<float>(p.dim);
  const FloatVec inverse_root = hn::Set(FloatTag(), 1.0f / std::sqrt(mean + p.eps));
  ForEachVector(dim, [&](size_t i, size_t count) HWY_ATTR {
    FloatVec v = hn::Mul(hn::Mul(LoadCount(x + i, count), inverse_root), LoadCount(p.weight + i, count));
    if constexpr (kActivation == GateActivation::kSilu) v = hn::Mul(v, SiluOf(LoadCount(gate + i, count)));
    if constexpr (kActivation == GateActivation::kSigmoid) v = hn::Mul(v, SigmoidOf(LoadCount(gate + i, count)));
    StoreCount(v, y + i, count);
  });
}

template <GateActivation kActivation>
void NormalizeRows(const RmsNormParams& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t g = 0; g < p.groups; ++g) {
      const int64_t column = g * p.dim;
      const float* gate = kActivation == GateActivation::kNone ? nullptr : p.gate + r * p.ldgate + column;
      NormalizeGroup<kActivation>(p, p.x + r * p.ldx + column, gate, p.y + r * p.ldy + column);
    }
  }
}

void RmsNormRows(const RmsNormParams& p, int64_t begin, int64_t end) {
  switch (p.gate_activation) {
    case GateActivation::kNone:
      return NormalizeRows<GateActivation::kNone>(p, begin, end);
    case GateActivation::kSilu:
      return NormalizeRows<GateActivation::kSilu>(p, begin, end);
    case GateActivation::kSigmoid:
      return NormalizeRows<GateActivation::kSigmoid>(p, begin, end);
  }
}

void LayerNormRows(const LayerNormParams& p, int64_t begin, int64_t end) {
  const FloatTag d;
  const size_t dim = p.dim;
  for (int64_t r = begin; r < end; ++r) {
    const float* const x = p.x + r * p.ldx;
    float* const y = p.y + r * p.ldy;
    const FloatVec mean = hn::Set(d, SumOf(x, dim) / static_cast<float>(p.dim));
    const float squares = SumVectors(dim, [&](FloatVec sum, size_t i, size_t count) HWY_ATTR {
      const FloatVec v = hn::Sub(LoadCount(x + i, count), mean);
      // Lanes past the row's end hold -mean, and must not count.
      return hn::MulAdd(v, hn::IfThenElseZero(hn::FirstN(d, count), v), sum);
    });
    const FloatVec inverse_root = hn::Set(d, 1.0f / std::sqrt(squares / static_cast<float>(p.dim) + p.eps));
    ForEachVector(dim, [&](size_t i, size_t count) HWY_ATTR {
      const FloatVec v = hn::Mul(hn::Sub(LoadCount(x + i, count), mean), inverse_root);
      StoreCount(hn::MulAdd(v, LoadCount(p.weight + i, count), LoadCount(p.bias + i, count)), y + i, count);
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace palimpsest {

HWY_EXPORT(RmsNormRows);
HWY_EXPORT(LayerNormRows);

void RmsNorm(const ExecContext& ctx, const RmsNormParams& params) {
  if (ctx.device != nullptr) return ctx.device->Run(params);
  ctx.pool->ParallelFor(params.rows, RowsPerTask(int64_t{params.groups} * params.dim), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(RmsNormRows)(params, begin, end);
  });
}

void LayerNorm(const ExecContext& ctx, const LayerNormParams& params) {
  if (ctx.device != nullptr) return ctx.device->Run(params);
  ctx.pool->ParallelFor(params.rows, RowsPerTask(params.dim), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(LayerNormRows)(params, begin, end);
  });
}

}  // namespace palimpsest
#endif
