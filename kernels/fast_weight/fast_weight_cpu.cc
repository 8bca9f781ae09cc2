#include <cmath>

#include "kernels/fast_weight/fast_weight.h"

namespace palimpsest {

void FastWeight(const ExecContext& ctx, const FastWeightParams& params) {
  const auto [heads, value_heads, K, V] = params.shape;
  ctx.pool->ParallelFor(int64_t{params.rows.num_sequences} * value_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int32_t s = unit / value_heads;
      const int64_t h = unit % value_heads;
      float* const state = params.state.At(params.rows.slot[s]) + h * V * K;
      const int64_t key_head = h * heads / value_heads;
      for (int64_t row = params.rows.row_begin[s]; row < params.rows.row_begin[s + 1]; ++row) {
        const float* const q = params.q + row * params.ldq + key_head * K;
        const float* const k = params.k + row * params.ldk + key_head * K;
        const float* const v = params.v + row * params.ldv + h * V;
        float* const out = params.out + row * params.ldout + h * V;
        const float decay =
            params.rule == UpdateRule::kGatedDelta ? std::exp(params.log_decay[row * value_heads + h]) : 1.0f;
        for (int32_t i = 0; i < V; ++i) {
          float* const S_i = state + int64_t{i} * K;
          float u = v[i];
          if (params.rule != UpdateRule::kSum) {
            float read = 0.0f;
            for (int32_t c = 0; c < K; ++c) read += S_i[c] * k[c];
            u = params.beta[row * value_heads + h] * (v[i] - decay * read);
          }
          float o = 0.0f;
          for (int32_t c = 0; c < K; ++c) {
            S_i[c] = decay * S_i[c] + u * k[c];
            o += S_i[c] * q[c];
          }
          out[i] = o;
        }
      }
    }
  });
}

}  // namespace palimpsest
