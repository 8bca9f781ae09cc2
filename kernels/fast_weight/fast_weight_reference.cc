#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/fast_weight/fast_weight.h"

namespace palimpsest {
namespace {

// One value head of one sequence, its state stored as T.
template <typename T>
void RunHead(const FastWeightParams& p, int32_t s, int32_t h) {
  const auto [heads, value_heads, K, V] = p.shape;
  const int64_t key_head = int64_t{h} * heads / value_heads;
  T* const state = p.state.At<T>(p.rows.slot[s]) + int64_t{h} * V * K;
  std::vector<double> S(int64_t{V} * K), decay(K, 1.0);
  for (size_t i = 0; i < S.size(); ++i) S[i] = FloatFrom(state[i]);
  for (int64_t row = p.rows.row_begin[s]; row < p.rows.row_begin[s + 1]; ++row) {
    const int64_t gate = row * value_heads + h;
    const float* const q = p.q + row * p.ldq + key_head * K;
    float* const out = p.out + row * p.ldout + int64_t{h} * V;
    for (int32_t c = 0; c < K; ++c) {
      if (DecaysHeads(p.rule)) decay[c] = std::exp(double{p.log_decay[gate]});
      if (DecaysChannels(p.rule)) decay[c] = std::exp(double{p.log_decay[gate * K + c]});
    }
    for (int32_t j = 0; j < p.sub_steps; ++j) {
      const float* const k = p.k + row * p.ldk + (int64_t{j} * heads + key_head) * K;
      const float* const v = p.v + row * p.ldv + (int64_t{j} * value_heads + h) * V;
      for (int32_t i = 0; i < V; ++i) {
        double* const S_i = S.data() + int64_t{i} * K;
        double u = v[i], removed = 0.0, read = 0.0, o = 0.0;
        for (int32_t c = 0; c < K; ++c) {
          if (p.rule == UpdateRule::kLowRank) removed += S_i[c] * p.remove[gate * K + c];
          read += decay[c] * S_i[c] * k[c];
        }
        if (Corrects(p.rule)) u = p.beta[(row * p.sub_steps + j) * value_heads + h] * (v[i] - read);
        for (int32_t c = 0; c < K; ++c) {
          S_i[c] = decay[c] * S_i[c] + u * k[c];
          if (p.rule == UpdateRule::kLowRank) S_i[c] += removed * p.insert[gate * K + c];
          o += S_i[c] * q[c];
        }
        out[i] = static_cast<float>(o);
      }
      decay.assign(K, 1.0);
    }
  }
  for (size_t i = 0; i < S.size(); ++i) PutFloat(static_cast<float>(S[i]), state[i]);
}

}  // namespace

void FastWeightReference(const FastWeightParams& params) {
  for (int32_t s = 0; s < params.rows.num_sequences; ++s) {
    if (params.rows.length(s) == 0) continue;
    for (int32_t h = 0; h < params.shape.value_heads; ++h) {
      if (params.state.dtype == DType::kBF16) {
        RunHead<BF16>(params, s, h);
      } else {
        RunHead<float>(params, s, h);
      }
    }
  }
}

}  // namespace palimpsest
