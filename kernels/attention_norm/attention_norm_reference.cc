#include <algorithm>
#include <vector>

#include "kernels/attention_norm/attention_norm.h"

namespace palimpsest {

void AttentionNormReference(const AttentionNormParams& p) {
  for (int32_t s = 0; s < p.rows.num_sequences; ++s) {
    for (int32_t h = 0; h < p.heads; ++h) {
      float* const state = p.z.At(p.rows.slot[s]) + int64_t{h} * p.dim;
      std::vector<double> z(state, state + p.dim);
      const auto z_dot = [&](const float* x) {
        double sum = 0.0;
        for (int32_t i = 0; i < p.dim; ++i) sum += z[i] * x[i];
        return sum;
      };
      for (int64_t r = p.rows.row_begin[s]; r < p.rows.row_begin[s + 1]; ++r) {
        float* const k = p.k + r * p.ldk + int64_t{h} * p.dim;
        float* const q = p.q + r * p.ldq + int64_t{h} * p.dim;
        const std::vector<float> key(k, k + p.dim);
        if (p.normalise_keys) {
          const bool fresh = std::ranges::all_of(z, [](double value) { return value == 0.0; });
          const double D = fresh ? 1.0 : z_dot(k);
          for (int32_t i = 0; i < p.dim; ++i) k[i] = static_cast<float>(k[i] / (D + p.eps));
          float& beta = p.beta[r * p.heads + h];
          beta = static_cast<float>(beta * D);
        }
        for (int32_t i = 0; i < p.dim; ++i) z[i] += key[i];
        const double c = z_dot(q);
        const double factor = p.scale / ((p.scaled_denominator ? p.scale * c : c) + p.eps);
        for (int32_t i = 0; i < p.dim; ++i) q[i] = static_cast<float>(q[i] * factor);
      }
      for (int32_t i = 0; i < p.dim; ++i) state[i] = static_cast<float>(z[i]);
    }
  }
}

}  // namespace palimpsest
