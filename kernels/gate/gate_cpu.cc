#include <cstdint>

#include "kernels/common/device.h"
#include "kernels/common/grain.h"
#include "kernels/gate/gate.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gate/gate_cpu.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/common/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {

void GateRows(const GateParams& p, int64_t begin, int64_t end) {
  const FloatVec scale = hn::Set(FloatTag(), p.beta_scale);
  for (int64_t r = begin; r < end; ++r) {
    float* beta = p.beta + r * p.heads;
    const float* b = p.b + r * p.ldb;
    ForEachVector(p.heads, [&](size_t i, size_t count) HWY_ATTR {
      const FloatVec v = p.b == nullptr ? scale : hn::Mul(scale, SigmoidOf(LoadCount(b + i, count)));
      StoreCount(v, beta + i, count);
    });
    if (p.a == nullptr) continue;
    float* log_decay = p.log_decay + r * p.heads;
    const float* a = p.a + r * p.lda;
    ForEachVector(p.heads, [&](size_t i, size_t count) HWY_ATTR {
      const FloatVec rate = ExpOf(LoadCount(p.a_log + i, count));
      const FloatVec x = hn::Add(LoadCount(a + i, count), LoadCount(p.dt_bias + i, count));
      StoreCount(hn::Neg(hn::Mul(rate, SoftplusOf(x))), log_decay + i, count);
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace palimpsest {

HWY_EXPORT(GateRows);

void Gate(const ExecContext& ctx, const GateParams& params) {
  if (ctx.device != nullptr) return ctx.device->Run(params);
  ctx.pool->ParallelFor(params.rows, RowsPerTask(params.heads), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(GateRows)(params, begin, end);
  });
}

}  // namespace palimpsest
#endif
