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

// The log-decays of vectors x = a + bias with rates exp(A_log).
template <DecayKind kKind>
HWY_INLINE FloatVec LogDecayOf(const GateParams& p, FloatVec x, FloatVec rate) {
  const FloatTag d;
  const FloatVec bound = hn::Set(d, p.lower_bound);
  if constexpr (kKind == DecayKind::kSoftplus) return hn::Neg(hn::Mul(rate, SoftplusOf(x)));
  if constexpr (kKind == DecayKind::kSigmoid) return hn::Mul(bound, SigmoidOf(hn::Mul(rate, x)));
  const FloatVec log_decay = hn::Div(hn::Neg(SoftplusOf(hn::Neg(x))), hn::Set(d, p.divisor));
  return hn::IfThenElse(hn::Lt(log_decay, bound), bound, log_decay);  // and not Max, which may hide NaN
}

template <DecayKind kKind>
void DecayRow(const GateParams& p, int64_t row) {
  const FloatTag d;
  const FloatVec one = hn::Set(d, 1.0f);
  const auto decays = [&](int64_t first, int64_t n, const auto& rate_of) HWY_ATTR {
    const float* const a = p.a + row * p.lda + first;
    const float* const bias = p.dt_bias == nullptr ? nullptr : p.dt_bias + first;
    float* const log_decay = p.log_decay + row * p.decays() + first;
    ForEachVector(n, [&](size_t i, size_t count) HWY_ATTR {
      FloatVec x = LoadCount(a + i, count);
      if (bias != nullptr) x = hn::Add(x, LoadCount(bias + i, count));
      StoreCount(LogDecayOf<kKind>(p, x, rate_of(i, count)), log_decay + i, count);
    });
  };
  if (p.a_log == nullptr) {
    return decays(0, p.decays(), [one](size_t, size_t) HWY_ATTR { return one; });
  }
  if (p.decay_channels == 1) {
    return decays(0, p.decays(),
                  [&p](size_t i, size_t count) HWY_ATTR { return ExpOf(LoadCount(p.a_log + i, count)); });
  }
  for (int64_t h = 0; h < p.heads_of_decay(); ++h) {
    const FloatVec rate = ExpOf(hn::Set(d, p.a_log[h]));
    decays(h * p.decay_channels, p.decay_channels, [rate](size_t, size_t) HWY_ATTR { return rate; });
  }
}

void GateRows(const GateParams& p, int64_t begin, int64_t end) {
  const FloatVec scale = hn::Set(FloatTag(), p.beta_scale);
  for (int64_t r = begin; r < end; ++r) {
    if (p.beta != nullptr) {
      float* beta = p.beta + r * p.heads;
      const float* const b = p.b == nullptr ? nullptr : p.b + r * p.ldb;
      ForEachVector(p.heads, [&](size_t i, size_t count) HWY_ATTR {
        const FloatVec v = p.b == nullptr ? scale : hn::Mul(scale, SigmoidOf(LoadCount(b + i, count)));
        StoreCount(v, beta + i, count);
      });
    }
    if (p.a == nullptr) continue;
    switch (p.decay_kind) {
      case DecayKind::kSoftplus:
        DecayRow<DecayKind::kSoftplus>(p, r);
        break;
      case DecayKind::kSigmoid:
        DecayRow<DecayKind::kSigmoid>(p, r);
        break;
      case DecayKind::kLogSigmoid:
        DecayRow<DecayKind::kLogSigmoid>(p, r);
        break;
    }
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
  ctx.pool->ParallelFor(params.rows, RowsPerTask(params.heads + params.decays()), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(GateRows)(params, begin, end);
  });
}

}  // namespace palimpsest
#endif
