#include <algorithm>
#include <cstdint>

#include "kernels/attention_norm/attention_norm.h"
#include "kernels/common/device.h"
#include "kernels/common/grain.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention_norm/attention_norm_cpu.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/common/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {

void Scale(float factor, float* x, size_t n) {
  const FloatVec factors = hn::Set(FloatTag(), factor);
  ForEachVector(
      n, [&](size_t i, size_t count) HWY_ATTR { StoreCount(hn::Mul(LoadCount(x + i, count), factors), x + i, count); });
}

// All rows of one head of one sequence.
void AttentionNormHead(const AttentionNormParams& p, int32_t sequence, int32_t head) {
  const size_t dim = p.dim;
  const int64_t column = int64_t{head} * p.dim;
  float* const z = p.z.At(p.rows.slot[sequence]) + column;
  for (int64_t r = p.rows.row_begin[sequence]; r < p.rows.row_begin[sequence + 1]; ++r) {
    float* const k = p.k + r * p.ldk + column;
    float* const q = p.q + r * p.ldq + column;
    float D = 1.0f;
    if (p.normalise_keys && std::any_of(z, z + dim, [](float value) { return value != 0.0f; })) D = Dot(z, k, dim);
    ForEachVector(dim, [&](size_t i, size_t count) HWY_ATTR {
      StoreCount(hn::Add(LoadCount(z + i, count), LoadCount(k + i, count)), z + i, count);
    });
    if (p.normalise_keys) {
      Scale(1.0f / (D + p.eps), k, dim);
      p.beta[r * p.heads + head] *= D;
    }
    const float c = Dot(z, q, dim);
    Scale(p.scale / ((p.scaled_denominator ? p.scale * c : c) + p.eps), q, dim);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace palimpsest {

HWY_EXPORT(AttentionNormHead);

void AttentionNorm(const ExecContext& ctx, const AttentionNormParams& params) {
  if (ctx.device != nullptr) return ctx.device->Run(params);
  const auto kernel = HWY_DYNAMIC_DISPATCH(AttentionNormHead);
  const int64_t tasks = int64_t{params.rows.num_sequences} * params.heads;
  const int64_t rows_each = params.rows.num_rows() / std::max(params.rows.num_sequences, 1);
  ctx.pool->ParallelFor(tasks, RowsPerTask(rows_each * params.dim), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernel(params, static_cast<int32_t>(i / params.heads), static_cast<int32_t>(i % params.heads));
    }
  });
}

}  // namespace palimpsest
#endif
