#include <cmath>
#include <vector>

#include "kernels/fast_weight/fast_weight.h"

namespace palimpsest {

void FastWeightReference(const FastWeightParams& params) {
  const auto [heads, value_heads, K, V] = params.shape;
  std::vector<double> S(int64_t{V} * K);
  for (int32_t s = 0; s < params.rows.num_sequences; ++s) {
    if (params.rows.length(s) == 0) continue;
    for (int32_t h = 0; h < value_heads; ++h) {
      float* const state = params.state.At(params.rows.slot[s]) + int64_t{h} * V * K;
      S.assign(state, state + int64_t{V} * K);
      const int64_t key_head = int64_t{h} * heads / value_heads;
      for (int64_t row = params.rows.row_begin[s]; row < params.rows.row_begin[s + 1]; ++row) {
        const float* const q = params.q + row * params.ldq + key_head * K;
        const float* const k = params.k + row * params.ldk + key_head * K;
        const float* const v = params.v + row * params.ldv + int64_t{h} * V;
        float* const out = params.out + row * params.ldout + int64_t{h} * V;
        const double decay =
            params.rule == UpdateRule::kGatedDelta ? std::exp(double{params.log_decay[row * value_heads + h]}) : 1.0;
        for (int32_t i = 0; i < V; ++i) {
          double* const S_i = S.data() + int64_t{i} * K;
          double u = v[i];
          if (params.rule != UpdateRule::kSum) {
            double read = 0.0;
            for (int32_t c = 0; c < K; ++c) read += decay * S_i[c] * k[c];
            u = params.beta[row * value_heads + h] * (v[i] - read);
          }
          double o = 0.0;
          for (int32_t c = 0; c < K; ++c) {
            S_i[c] = decay * S_i[c] + u * k[c];
            o += S_i[c] * q[c];
          }
          out[i] = static_cast<float>(o);
        }
      }
      for (int64_t i = 0; i < int64_t{V} * K; ++i) state[i] = static_cast<float>(S[i]);
    }
  }
}

}  // namespace palimpsest
