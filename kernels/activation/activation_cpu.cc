#include <cstdint>

#include "kernels/activation/activation.h"
#include "kernels/common/device.h"
#include "kernels/common/grain.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/activation/activation_cpu.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/common/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {

void SwigluRows(const SwigluParams& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* gate = p.gate + r * p.ldgate;
    const float* up = p.up + r * p.ldup;
    float* y = p.y + r * p.ldy;
    ForEachVector(p.dim, [&](size_t i, size_t count) HWY_ATTR {
      StoreCount(hn::Mul(SiluOf(LoadCount(gate + i, count)), LoadCount(up + i, count)), y + i, count);
    });
  }
}

void ReluRows(const ReluParams& p, int64_t begin, int64_t end) {
  const FloatTag d;
  for (int64_t r = begin; r < end; ++r) {
    const float* x = p.x + r * p.ldx;
    float* y = p.y + r * p.ldy;
    ForEachVector(p.dim, [&](size_t i, size_t count) HWY_ATTR {
      const FloatVec v = LoadCount(x + i, count);
      // A blend and not Max, which may answer 0 for NaN.
      StoreCount(hn::IfThenZeroElse(hn::Lt(v, hn::Zero(d)), v), y + i, count);
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace palimpsest {

HWY_EXPORT(SwigluRows);
HWY_EXPORT(ReluRows);

void Swiglu(const ExecContext& ctx, const SwigluParams& params) {
  if (ctx.device != nullptr) return ctx.device->Run(params);
  ctx.pool->ParallelFor(params.rows, RowsPerTask(params.dim), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(SwigluRows)(params, begin, end);
  });
}

void Relu(const ExecContext& ctx, const ReluParams& params) {
  if (ctx.device != nullptr) return ctx.device->Run(params);
  ctx.pool->ParallelFor(params.rows, RowsPerTask(params.dim), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(ReluRows)(params, begin, end);
  });
}

}  // namespace palimpsest
#endif
