#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/window_attention/window_attention.h"

namespace palimpsest {

void WindowAttentionReference(const WindowAttentionParams& p) {
  const int64_t width = int64_t{p.heads} * p.dim;
  for (int32_t s = 0; s < p.rows.num_sequences; ++s) {
    float* const keys = p.ring.At(p.rows.slot[s]);
    float* const values = keys + p.capacity * width;
    for (int64_t r = p.rows.row_begin[s]; r < p.rows.row_begin[s + 1]; ++r) {
      const int64_t t = p.first_position[s] + r - p.rows.row_begin[s];
      for (int32_t h = 0; h < p.heads; ++h) {
        const int64_t column = int64_t{h} * p.dim;
        const float* const q = p.q + r * p.ldq + column;
        const auto place = [&](int64_t position) { return (h * p.capacity + position % p.capacity) * p.dim; };
        std::copy_n(p.k + r * p.ldk + column, p.dim, keys + place(t));
        std::copy_n(p.v + r * p.ldv + column, p.dim, values + place(t));
        std::vector<double> scores;
        for (int64_t j = p.first_visible(t); j <= t; ++j) {
          const float* const k = keys + place(j);
          double score = 0.0;
          for (int32_t i = 0; i < p.dim; ++i) {
            if (p.relative == nullptr) {
              score += double{q[i]} * k[i];
            } else {
              score += (double{q[i]} + p.content_bias[column + i]) * k[i];
              score += (double{q[i]} + p.position_bias[column + i]) * p.relative[(t - j) * width + column + i];
            }
          }
          scores.push_back(score * p.scale);
        }
        const double max = *std::ranges::max_element(scores);
        double sum = 0.0;
        for (double& score : scores) sum += score = std::exp(score - max);
        for (int32_t i = 0; i < p.dim; ++i) {
          double out = 0.0;
          for (int64_t n = 0; n < std::ssize(scores); ++n) {
            out += scores[n] / sum * values[place(p.first_visible(t) + n) + i];
          }
          p.out[r * p.ldout + column + i] = static_cast<float>(out);
        }
      }
    }
  }
}

}  // namespace palimpsest
