// Fused forward and backward passes for training on a CPU with AVX-512. Each computes what the plain PyTorch code
// beside it computes (mixer.py, model.py); fused_test.py holds the two together. The gain is memory traffic: everything
// one head of one sequence needs stays in the core's cache.
//
// Letters: B batch, T tokens, H heads, K and V head sizes, C chunk length, W convolution width, D model size.
// Activations between matrix products are bfloat16; everything inside a pass is float32. Sums over rows or batch
// entries that several threads share go through one partial result per row block, so results do not depend on the
// thread count.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

namespace {

using torch::Tensor;

constexpr int kK = 64, kV = 64, kC = 32, kW = 4;  // the only sizes compiled; fused.py asks `supported` first
constexpr int kIn = 2 * kK + kV;                  // convolved channels of one head: q, k, v
constexpr float kL2Eps = 1e-6f;
constexpr int64_t kRowBlock = 64;

typedef float Vec __attribute__((vector_size(64), aligned(4)));
constexpr int kLanes = 16;

inline float ToFloat(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline uint16_t ToBf16(float f) {  // to nearest, ties to even; NaN does not occur in a healthy run and stays NaN-like
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

const uint16_t* Bf16(const Tensor& t) { return reinterpret_cast<const uint16_t*>(t.const_data_ptr<at::BFloat16>()); }
uint16_t* MutableBf16(Tensor& t) { return reinterpret_cast<uint16_t*>(t.data_ptr<at::BFloat16>()); }

// out[M,N] (+)= A[M,Kdim] B[Kdim,N]. A is read as a[i * row + k * col], so a transposed A costs nothing; B and out are
// dense. M is a multiple of the row block. `Accumulate` adds to what is there.
template <int M, int Kdim, int N, bool Accumulate = false>
inline void MatMul(const float* a, int row, int col, const float* b, float* out) {
  constexpr int kVecs = N / kLanes, kRows = kVecs >= 4 ? 4 : 8;
  static_assert(N % kLanes == 0 && M % kRows == 0);
  for (int i = 0; i < M; i += kRows) {
    Vec acc[kRows][kVecs];
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < kVecs; ++j)
        acc[r][j] = Accumulate ? *reinterpret_cast<const Vec*>(out + (i + r) * N + j * kLanes) : Vec{};
    for (int k = 0; k < Kdim; ++k) {
      Vec line[kVecs];
      for (int j = 0; j < kVecs; ++j) line[j] = *reinterpret_cast<const Vec*>(b + k * N + j * kLanes);
      for (int r = 0; r < kRows; ++r) {
        const float x = a[(i + r) * row + k * col];
        for (int j = 0; j < kVecs; ++j) acc[r][j] += x * line[j];
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < kVecs; ++j) *reinterpret_cast<Vec*>(out + (i + r) * N + j * kLanes) = acc[r][j];
  }
}

template <int M, int N>
inline void Transpose(const float* in, float* out) {
  for (int i = 0; i < M; i += 8)
    for (int j = 0; j < N; j += 8)
      for (int r = 0; r < 8; ++r)
        for (int c = 0; c < 8; ++c) out[(j + c) * M + i + r] = in[(i + r) * N + j + c];
}

template <int N>
inline float Dot(const float* a, const float* b) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < N; ++i) sum += a[i] * b[i];
  return sum;
}

// Arguments of the mixer core, shared by both passes. All tensors dense.
struct Core {
  int64_t batch, tokens, heads, width;  // width: columns of `projected`
  const uint16_t* projected;            // [B,T,width], columns q [H,K], k [H,K], v [H,V], gate [H,V], b [H], a [H]
  const float* conv;                    // [H*(2K+V), W], channels ordered as in `projected`
  const float *a_log, *dt_bias;         // [H]
  const float* norm;                    // [V]
  const float* tail;                    // [B, W-1, H*(2K+V)]
  float eps;

  int64_t Column(int part, int64_t head) const { return (part * heads + head) * kK; }  // of q, k, v, gate; K == V
};

// One chunk of one head, rebuilt the same way by both passes.
struct Chunk {
  float z[kC][kIn];                                 // convolution output before silu: q, k, v
  float q[kC][kK], k[kC][kK], v[kC][kV];            // as the rule sees them (q scaled)
  float q_scale[kC], k_scale[kC];                   // silu(z) times this is q, k
  float b_logit[kC], a_logit[kC], beta[kC], g[kC];  // g: log-decay
  float total[kC], from_start[kC], to_end[kC];      // G, e^G, e^(G_C - G)
  float k_t[kK * kC];                               // k transposed
  float overlap[kC][kC];                            // L: strictly lower
  float scores[kC][kC];                             // lower triangle of q k^T times the decay
  float decay[kC][kC];                              // lower triangle of e^(G_i - G_j), else 0
  float dots[kC][kC];                               // k_i . k_j
  float retrieved[kC][kV];                          // e^G k S
  float writes[kC][kV];                             // U~
  float out[kC][kV];                                // o before the output norm
};

// z [2K+V] of token t: a weighted sum of the last W raw inputs, the earliest of which may lie in the tail.
inline void ConvToken(const Core& c, int64_t b, int64_t head, int64_t t, float* z) {
  const int64_t channels = 3 * c.heads * kK;
  for (int part = 0; part < 3; ++part) {
    const int64_t column = c.Column(part, head);
    const float* weight = c.conv + column * kW;
    float sum[kK] = {};
    for (int j = 0; j < kW; ++j) {
      const int64_t source = t - (kW - 1) + j;
      if (source >= 0) {
        const uint16_t* x = c.projected + (b * c.tokens + source) * c.width + column;
#pragma omp simd
        for (int i = 0; i < kK; ++i) sum[i] += weight[i * kW + j] * ToFloat(x[i]);
      } else {
        const float* x = c.tail + (b * (kW - 1) + source + kW - 1) * channels + column;
#pragma omp simd
        for (int i = 0; i < kK; ++i) sum[i] += weight[i * kW + j] * x[i];
      }
    }
    std::memcpy(z + part * kK, sum, sizeof(sum));
  }
}

// Fills everything in `m` up to and including `out`, from the state [K,V] that enters the chunk.
void BuildChunk(const Core& c, int64_t b, int64_t head, int64_t start, const float* state, Chunk& m) {
  const float q_factor = 1.0f / std::sqrt(static_cast<float>(kK));
  const float rate = std::exp(c.a_log[head]);
  float running = 0;
  for (int i = 0; i < kC; ++i) {
    ConvToken(c, b, head, start + i, m.z[i]);
    float activated[kIn];
#pragma omp simd
    for (int x = 0; x < kIn; ++x) activated[x] = m.z[i][x] * Sigmoid(m.z[i][x]);
    m.q_scale[i] = q_factor / std::sqrt(Dot<kK>(activated, activated) + kL2Eps);
    m.k_scale[i] = 1.0f / std::sqrt(Dot<kK>(activated + kK, activated + kK) + kL2Eps);
    for (int x = 0; x < kK; ++x) m.q[i][x] = activated[x] * m.q_scale[i];
    for (int x = 0; x < kK; ++x) m.k[i][x] = activated[kK + x] * m.k_scale[i];
    std::memcpy(m.v[i], activated + 2 * kK, sizeof(m.v[i]));
    const uint16_t* scalars = c.projected + (b * c.tokens + start + i) * c.width + 4 * c.heads * kK;
    m.b_logit[i] = ToFloat(scalars[head]);
    m.a_logit[i] = ToFloat(scalars[c.heads + head]) + c.dt_bias[head];
    m.beta[i] = Sigmoid(m.b_logit[i]);
    m.g[i] = -rate * (m.a_logit[i] > 20 ? m.a_logit[i] : std::log1p(std::exp(m.a_logit[i])));
    running += m.g[i];
    m.total[i] = running;
  }
  for (int i = 0; i < kC; ++i) {
    m.from_start[i] = std::exp(m.total[i]);
    m.to_end[i] = std::exp(running - m.total[i]);
    for (int j = 0; j < kC; ++j) m.decay[i][j] = j <= i ? std::exp(m.total[i] - m.total[j]) : 0.0f;
  }
  Transpose<kC, kK>(m.k[0], m.k_t);
  MatMul<kC, kK, kC>(m.k[0], kK, 1, m.k_t, m.dots[0]);
  MatMul<kC, kK, kC>(m.q[0], kK, 1, m.k_t, m.scores[0]);
  for (int i = 0; i < kC; ++i) {
    for (int j = 0; j < kC; ++j) m.scores[i][j] *= m.decay[i][j];
    for (int j = 0; j < kC; ++j) m.overlap[i][j] = j < i ? m.beta[i] * m.dots[i][j] * m.decay[i][j] : 0.0f;
  }
  MatMul<kC, kK, kV>(m.k[0], kK, 1, state, m.retrieved[0]);
  MatMul<kC, kK, kV>(m.q[0], kK, 1, state, m.out[0]);
  for (int i = 0; i < kC; ++i) {
    float* write = m.writes[i];
    for (int x = 0; x < kV; ++x) {
      m.retrieved[i][x] *= m.from_start[i];
      m.out[i][x] *= m.from_start[i];
      write[x] = m.beta[i] * (m.v[i][x] - m.retrieved[i][x]);
    }
    for (int j = 0; j < i; ++j)
      for (int x = 0; x < kV; ++x) write[x] -= m.overlap[i][j] * m.writes[j][x];
  }
  MatMul<kC, kC, kV, true>(m.scores[0], kC, 1, m.writes[0], m.out[0]);
}

Core MakeCore(const Tensor& projected, const Tensor& conv, const Tensor& a_log, const Tensor& dt_bias,
              const Tensor& norm, const Tensor& tail, double eps) {
  Core c{};
  c.batch = projected.size(0), c.tokens = projected.size(1), c.width = projected.size(2), c.heads = a_log.numel();
  TORCH_CHECK(c.tokens % kC == 0 && c.width == 4 * c.heads * kK + 2 * c.heads, "unsupported shape");
  TORCH_CHECK(conv.numel() == 3 * c.heads * kK * kW && norm.numel() == kV, "unsupported shape");
  for (const Tensor& t : {projected, conv, a_log, dt_bias, norm, tail}) TORCH_CHECK(t.is_contiguous(), "not dense");
  c.projected = Bf16(projected);
  c.conv = conv.const_data_ptr<float>();
  c.a_log = a_log.const_data_ptr<float>(), c.dt_bias = dt_bias.const_data_ptr<float>();
  c.norm = norm.const_data_ptr<float>(), c.tail = tail.const_data_ptr<float>();
  c.eps = static_cast<float>(eps);
  return c;
}

// From the projections to the gated, normalised outputs of all heads: short convolution, silu, l2 norm, gated delta
// rule in chunks, output norm, gate. Returns out [B,T,H*V] in bfloat16, the state after [B,H,K,V], and the states that
// entered each chunk [B,H,T/C,K,V], which the backward pass needs.
std::vector<Tensor> CoreForward(const Tensor& projected, const Tensor& conv, const Tensor& a_log, const Tensor& dt_bias,
                                const Tensor& norm, const Tensor& tail, const Tensor& state, double eps) {
  const Core c = MakeCore(projected, conv, a_log, dt_bias, norm, tail, eps);
  const int64_t chunks = c.tokens / kC;
  Tensor out = at::empty({c.batch, c.tokens, c.heads * kV}, projected.options());
  Tensor entering = at::empty({c.batch, c.heads, chunks, kK, kV}, state.options());
  Tensor leaving = at::empty({c.batch, c.heads, kK, kV}, state.options());
  uint16_t* out_data = MutableBf16(out);
  const float* state_data = state.const_data_ptr<float>();
  float *entering_data = entering.data_ptr<float>(), *leaving_data = leaving.data_ptr<float>();
  at::parallel_for(0, c.batch * c.heads, 1, [&](int64_t first, int64_t last) {
    auto m = std::make_unique<Chunk>();
    for (int64_t task = first; task < last; ++task) {
      const int64_t b = task / c.heads, head = task % c.heads;
      const float* current = state_data + task * kK * kV;
      for (int64_t n = 0; n < chunks; ++n) {
        float* kept = entering_data + (task * chunks + n) * kK * kV;
        std::memcpy(kept, current, sizeof(float) * kK * kV);
        BuildChunk(c, b, head, n * kC, kept, *m);
        float* next = n + 1 < chunks ? kept + kK * kV : leaving_data + task * kK * kV;
        for (int i = 0; i < kK * kV; ++i) next[i] = kept[i] * m->from_start[kC - 1];
        for (int i = 0; i < kC; ++i)
          for (int x = 0; x < kK; ++x) m->k[i][x] *= m->to_end[i];
        MatMul<kK, kC, kV, true>(m->k[0], 1, kK, m->writes[0], next);
        current = next;
        for (int i = 0; i < kC; ++i) {
          const int64_t row = b * c.tokens + n * kC + i;
          const uint16_t* gate = c.projected + row * c.width + c.Column(3, head);
          uint16_t* y = out_data + (row * c.heads + head) * kV;
          const float scale = 1.0f / std::sqrt(Dot<kV>(m->out[i], m->out[i]) / kV + c.eps);
#pragma omp simd
          for (int x = 0; x < kV; ++x) {
            const float g = ToFloat(gate[x]);
            y[x] = ToBf16(m->out[i][x] * scale * c.norm[x] * g * Sigmoid(g));
          }
        }
      }
    }
  });
  return {out, leaving, entering};
}

// Gradients of everything the chunk was built from, before the chain through silu, l2 norm and convolution.
struct ChunkGradients {
  float out[kC][kV], writes[kC][kV], right[kC][kV];  // right: of beta (v - e^G k S), the right side of the solve
  float q[kC][kK], k[kC][kK], product[kC][kK];
  float scores[kC][kC], overlap[kC][kC];
  float writes_t[kV * kC], state_t[kK * kV], leaving_t[kK * kV];
  float total[kC], beta[kC];
};

// Takes d = dL/d(state leaving) and turns it into dL/d(state entering).
void RuleBackward(const Chunk& m, const float* state, float* d, ChunkGradients& r) {
  const float whole = m.from_start[kC - 1];
  std::memset(r.total, 0, sizeof(r.total));
  r.total[kC - 1] += whole * Dot<kK * kV>(state, d);
  Transpose<kC, kV>(m.writes[0], r.writes_t);
  Transpose<kK, kV>(state, r.state_t);
  Transpose<kK, kV>(d, r.leaving_t);

  // out = e^G q S + scores U~
  MatMul<kC, kV, kC>(r.out[0], kV, 1, r.writes_t, r.scores[0]);
  MatMul<kC, kC, kV>(m.scores[0], 1, kC, r.out[0], r.writes[0]);
  MatMul<kC, kV, kK>(r.out[0], kV, 1, r.state_t, r.q[0]);
  for (int i = 0; i < kC; ++i) {
    for (int x = 0; x < kK; ++x) r.q[i][x] *= m.from_start[i];
    r.total[i] += Dot<kK>(r.q[i], m.q[i]);
  }

  // S' = e^{G_C} S + (e^{G_C - G} k)^T U~
  MatMul<kC, kV, kK>(m.writes[0], kV, 1, r.leaving_t, r.k[0]);
  MatMul<kC, kK, kV>(m.k[0], kK, 1, d, r.right[0]);
  for (int i = 0; i < kC; ++i) {
    for (int x = 0; x < kV; ++x) r.writes[i][x] += m.to_end[i] * r.right[i][x];
    for (int x = 0; x < kK; ++x) r.k[i][x] *= m.to_end[i];
    const float moved = Dot<kK>(r.k[i], m.k[i]);
    r.total[i] -= moved;
    r.total[kC - 1] += moved;
  }

  // (I + L) U~ = right: solve with the transpose, from the last row up.
  for (int i = kC - 1; i >= 0; --i) {
    std::memcpy(r.right[i], r.writes[i], sizeof(r.right[i]));
    for (int j = i + 1; j < kC; ++j)
      for (int x = 0; x < kV; ++x) r.right[i][x] -= m.overlap[j][i] * r.right[j][x];
  }
  MatMul<kC, kV, kC>(r.right[0], kV, 1, r.writes_t, r.overlap[0]);

  // dS = e^{G_C} d + (e^G q)^T dout - (e^G k)^T beta dright, with r.writes as scratch from here on.
  for (int i = 0; i < kK * kV; ++i) d[i] *= whole;
  for (int i = 0; i < kC; ++i)
    for (int x = 0; x < kV; ++x) r.writes[i][x] = m.from_start[i] * r.out[i][x];
  MatMul<kK, kC, kV, true>(m.q[0], 1, kK, r.writes[0], d);
  for (int i = 0; i < kC; ++i) {
    const float factor = -m.from_start[i] * m.beta[i];
    for (int x = 0; x < kV; ++x) r.writes[i][x] = factor * r.right[i][x];
  }
  MatMul<kK, kC, kV, true>(m.k[0], 1, kK, r.writes[0], d);
  MatMul<kC, kV, kK>(r.writes[0], kV, 1, r.state_t, r.product[0]);
  for (int i = 0; i < kC; ++i) {
    for (int x = 0; x < kK; ++x) r.k[i][x] += r.product[i][x];
    r.total[i] += Dot<kK>(r.product[i], m.k[i]);
    r.beta[i] = Dot<kV>(r.right[i], m.v[i]) - Dot<kV>(r.right[i], m.retrieved[i]);
  }

  // Through the two C x C matrices and their decay; afterwards r.scores, r.overlap are gradients of the bare dot
  // products.
  for (int i = 0; i < kC; ++i) {
    float row = 0, from_beta = 0;
    for (int j = 0; j < kC; ++j) {
      const float s = j <= i ? r.scores[i][j] : 0.0f;
      const float o = j < i ? -r.overlap[i][j] : 0.0f;
      const float through_decay = s * m.scores[i][j] + o * m.overlap[i][j];
      row += through_decay;
      r.total[j] -= through_decay;
      from_beta += o * m.dots[i][j] * m.decay[i][j];
      r.scores[i][j] = s * m.decay[i][j];
      r.overlap[i][j] = o * m.decay[i][j] * m.beta[i];
    }
    r.total[i] += row;
    r.beta[i] += from_beta;
  }
  MatMul<kC, kC, kK, true>(r.scores[0], kC, 1, m.k[0], r.q[0]);
  MatMul<kC, kC, kK, true>(r.scores[0], 1, kC, m.q[0], r.k[0]);
  MatMul<kC, kC, kK, true>(r.overlap[0], kC, 1, m.k[0], r.k[0]);
  MatMul<kC, kC, kK, true>(r.overlap[0], 1, kC, m.k[0], r.k[0]);
}

// Gradients of `projected` (bfloat16) and, summed over the batch by the caller, of conv [B,H*(2K+V),W], a_log [B,H],
// dt_bias [B,H] and norm [B,H,V]. Gradients stop at the segment's borders: none flow in from the state after, none out
// to the state and tail before.
std::vector<Tensor> CoreBackward(const Tensor& d_out, const Tensor& projected, const Tensor& conv, const Tensor& a_log,
                                 const Tensor& dt_bias, const Tensor& norm, const Tensor& tail, const Tensor& entering,
                                 double eps) {
  const Core c = MakeCore(projected, conv, a_log, dt_bias, norm, tail, eps);
  TORCH_CHECK(d_out.is_contiguous(), "not dense");
  const int64_t chunks = c.tokens / kC, channels = 3 * c.heads * kK;
  const auto real = entering.options();
  Tensor d_projected = at::empty_like(projected);
  Tensor d_conv = at::zeros({c.batch, channels, kW}, real), d_norm = at::zeros({c.batch, c.heads, kV}, real);
  Tensor d_a_log = at::zeros({c.batch, c.heads}, real), d_dt_bias = at::zeros({c.batch, c.heads}, real);
  const uint16_t* d_out_data = Bf16(d_out);
  const float* entering_data = entering.const_data_ptr<float>();
  uint16_t* d_projected_data = MutableBf16(d_projected);
  float *d_conv_data = d_conv.data_ptr<float>(), *d_norm_data = d_norm.data_ptr<float>();
  float *d_a_log_data = d_a_log.data_ptr<float>(), *d_dt_bias_data = d_dt_bias.data_ptr<float>();

  at::parallel_for(0, c.batch * c.heads, 1, [&](int64_t first, int64_t last) {
    auto m = std::make_unique<Chunk>();
    auto r = std::make_unique<ChunkGradients>();
    std::vector<float> d_z(c.tokens * kIn);  // gradient of the convolution's output, for the whole segment
    std::vector<float> d_state(kK * kV);
    for (int64_t task = first; task < last; ++task) {
      const int64_t b = task / c.heads, head = task % c.heads;
      const float rate = std::exp(c.a_log[head]);
      float* norm_sum = d_norm_data + task * kV;
      std::fill(d_state.begin(), d_state.end(), 0.0f);
      for (int64_t n = chunks - 1; n >= 0; --n) {
        const float* state = entering_data + (task * chunks + n) * kK * kV;
        BuildChunk(c, b, head, n * kC, state, *m);
        for (int i = 0; i < kC; ++i) {  // output norm and gate
          const int64_t row = b * c.tokens + n * kC + i;
          const uint16_t* gate = c.projected + row * c.width + c.Column(3, head);
          const uint16_t* dy = d_out_data + (row * c.heads + head) * kV;
          uint16_t* d_gate = d_projected_data + row * c.width + c.Column(3, head);
          const float scale = 1.0f / std::sqrt(Dot<kV>(m->out[i], m->out[i]) / kV + c.eps);
          float along = 0;
#pragma omp simd reduction(+ : along)
          for (int x = 0; x < kV; ++x) {
            const float g = ToFloat(gate[x]), s = Sigmoid(g), up = ToFloat(dy[x]), normed = m->out[i][x] * scale;
            d_gate[x] = ToBf16(up * normed * c.norm[x] * s * (1 + g * (1 - s)));
            norm_sum[x] += up * normed * g * s;
            const float d_normed = up * c.norm[x] * g * s;
            r->out[i][x] = d_normed;
            along += d_normed * normed;
          }
          along /= kV;
          for (int x = 0; x < kV; ++x) r->out[i][x] = scale * (r->out[i][x] - m->out[i][x] * scale * along);
        }
        RuleBackward(*m, state, d_state.data(), *r);
        float d_g = 0;
        for (int i = kC - 1; i >= 0; --i) {
          const int64_t row = b * c.tokens + n * kC + i;
          uint16_t* d_scalars = d_projected_data + row * c.width + 4 * c.heads * kK;
          d_g += r->total[i];  // G_i is a running sum, so its gradient runs back
          const float d_a = -d_g * rate * Sigmoid(m->a_logit[i]);
          d_scalars[head] = ToBf16(r->beta[i] * m->beta[i] * (1 - m->beta[i]));
          d_scalars[c.heads + head] = ToBf16(d_a);
          d_a_log_data[task] += d_g * m->g[i];
          d_dt_bias_data[task] += d_a;
          // l2 norm (q carries K^-1/2 in its scale, so its unit vector is q K^1/2), then silu
          const float q_along = Dot<kK>(r->q[i], m->q[i]) * kK, k_along = Dot<kK>(r->k[i], m->k[i]);
          float d_activated[kIn];
          for (int x = 0; x < kK; ++x) d_activated[x] = m->q_scale[i] * (r->q[i][x] - m->q[i][x] * q_along);
          for (int x = 0; x < kK; ++x) d_activated[kK + x] = m->k_scale[i] * (r->k[i][x] - m->k[i][x] * k_along);
          for (int x = 0; x < kV; ++x) d_activated[2 * kK + x] = m->beta[i] * r->right[i][x];
          float* dz = d_z.data() + (n * kC + i) * kIn;
#pragma omp simd
          for (int x = 0; x < kIn; ++x) {
            const float z = m->z[i][x], s = Sigmoid(z);
            dz[x] = d_activated[x] * s * (1 + z * (1 - s));
          }
        }
      }
      for (int part = 0; part < 3; ++part) {  // convolution
        const int64_t column = c.Column(part, head);
        const float* weight = c.conv + column * kW;
        float d_weight[kW][kK] = {}, taps[kW][kK];
        for (int j = 0; j < kW; ++j)
          for (int x = 0; x < kK; ++x) taps[j][x] = weight[x * kW + j];
        for (int64_t t = 0; t < c.tokens; ++t) {
          float dx[kK] = {};
          for (int j = 0; j < kW; ++j) {
            const int64_t reader = t + (kW - 1) - j, source = t - (kW - 1) + j;
            if (reader < c.tokens) {
              const float* dz = d_z.data() + reader * kIn + part * kK;
              for (int x = 0; x < kK; ++x) dx[x] += taps[j][x] * dz[x];
            }
            const float* dz = d_z.data() + t * kIn + part * kK;
            if (source >= 0) {
              const uint16_t* raw = c.projected + (b * c.tokens + source) * c.width + column;
              for (int x = 0; x < kK; ++x) d_weight[j][x] += dz[x] * ToFloat(raw[x]);
            } else {
              const float* raw = c.tail + (b * (kW - 1) + source + kW - 1) * channels + column;
              for (int x = 0; x < kK; ++x) d_weight[j][x] += dz[x] * raw[x];
            }
          }
          uint16_t* d_raw = d_projected_data + (b * c.tokens + t) * c.width + column;
          for (int x = 0; x < kK; ++x) d_raw[x] = ToBf16(dx[x]);
        }
        for (int j = 0; j < kW; ++j)
          for (int x = 0; x < kK; ++x) d_conv_data[(b * channels + column + x) * kW + j] = d_weight[j][x];
      }
    }
  });
  return {d_projected, d_conv, d_a_log, d_dt_bias, d_norm};
}

// x float32 [N,D] -> RMS norm in bfloat16.
Tensor NormForward(const Tensor& x, const Tensor& weight, double eps) {
  const int64_t rows = x.size(0), size = x.size(1);
  Tensor y = at::empty({rows, size}, x.options().dtype(at::kBFloat16));
  const float *in = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>();
  uint16_t* out = MutableBf16(y);
  at::parallel_for(0, rows, kRowBlock, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const float* line = in + row * size;
      float squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t i = 0; i < size; ++i) squares += line[i] * line[i];
      const float scale = 1.0f / std::sqrt(squares / size + static_cast<float>(eps));
      for (int64_t i = 0; i < size; ++i) out[row * size + i] = ToBf16(line[i] * scale * w[i]);
    }
  });
  return y;
}

std::vector<Tensor> NormBackward(const Tensor& dy, const Tensor& x, const Tensor& weight, double eps) {
  const int64_t rows = x.size(0), size = x.size(1), blocks = (rows + kRowBlock - 1) / kRowBlock;
  Tensor dx = at::empty_like(x), d_weight = at::zeros({blocks, size}, x.options());
  const uint16_t* up = Bf16(dy);
  const float *in = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>();
  float *out = dx.data_ptr<float>(), *partial = d_weight.data_ptr<float>();
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t row = first * kRowBlock; row < std::min(rows, last * kRowBlock); ++row) {
      const float* line = in + row * size;
      const uint16_t* g = up + row * size;
      float* sum = partial + row / kRowBlock * size;
      float squares = 0, along = 0;
#pragma omp simd reduction(+ : squares, along)
      for (int64_t i = 0; i < size; ++i) {
        squares += line[i] * line[i];
        along += line[i] * w[i] * ToFloat(g[i]);
      }
      const float scale = 1.0f / std::sqrt(squares / size + static_cast<float>(eps));
      const float pull = along * scale * scale * scale / size;
      for (int64_t i = 0; i < size; ++i) {
        const float d = ToFloat(g[i]);
        sum[i] += d * line[i] * scale;
        out[row * size + i] = d * w[i] * scale - line[i] * pull;
      }
    }
  });
  return {dx, d_weight.sum(0)};
}

// x bfloat16 [N, 2I], gate then up -> silu(gate) * up in bfloat16 [N, I].
Tensor SwigluForward(const Tensor& x) {
  const int64_t rows = x.size(0), inner = x.size(1) / 2;
  Tensor y = at::empty({rows, inner}, x.options());
  const uint16_t* in = Bf16(x);
  uint16_t* out = MutableBf16(y);
  at::parallel_for(0, rows, kRowBlock, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const uint16_t *gate = in + row * 2 * inner, *value = gate + inner;
#pragma omp simd
      for (int64_t i = 0; i < inner; ++i) {
        const float g = ToFloat(gate[i]);
        out[row * inner + i] = ToBf16(g * Sigmoid(g) * ToFloat(value[i]));
      }
    }
  });
  return y;
}

Tensor SwigluBackward(const Tensor& dy, const Tensor& x) {
  const int64_t rows = x.size(0), inner = x.size(1) / 2;
  Tensor dx = at::empty_like(x);
  const uint16_t *up = Bf16(dy), *in = Bf16(x);
  uint16_t* out = MutableBf16(dx);
  at::parallel_for(0, rows, kRowBlock, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const uint16_t *gate = in + row * 2 * inner, *value = gate + inner;
      uint16_t *d_gate = out + row * 2 * inner, *d_value = d_gate + inner;
#pragma omp simd
      for (int64_t i = 0; i < inner; ++i) {
        const float g = ToFloat(gate[i]), s = Sigmoid(g), d = ToFloat(up[row * inner + i]);
        d_gate[i] = ToBf16(d * ToFloat(value[i]) * s * (1 + g * (1 - s)));
        d_value[i] = ToBf16(d * g * s);
      }
    }
  });
  return dx;
}

// Turns logits bfloat16 [N,R] in place into the gradient of the mean cross-entropy, and returns that mean.
Tensor CrossEntropyInPlace(Tensor logits, const Tensor& targets) {
  const int64_t rows = logits.size(0), size = logits.size(1);
  Tensor losses = at::empty({rows}, logits.options().dtype(at::kFloat));
  uint16_t* data = MutableBf16(logits);
  const int64_t* target = targets.const_data_ptr<int64_t>();
  float* loss = losses.data_ptr<float>();
  at::parallel_for(0, rows, kRowBlock, [&](int64_t first, int64_t last) {
    std::vector<float> weights(size);
    for (int64_t row = first; row < last; ++row) {
      uint16_t* line = data + row * size;
      const float wanted = ToFloat(line[target[row]]);
      float top = -3.4e38f, sum = 0;
#pragma omp simd reduction(max : top)
      for (int64_t i = 0; i < size; ++i) top = std::max(top, ToFloat(line[i]));
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < size; ++i) {
        weights[i] = std::exp(ToFloat(line[i]) - top);
        sum += weights[i];
      }
      loss[row] = std::log(sum) + top - wanted;
      const float factor = 1.0f / (sum * rows);
      const float at_target = weights[target[row]] * factor - 1.0f / rows;
      for (int64_t i = 0; i < size; ++i) line[i] = ToBf16(weights[i] * factor);
      line[target[row]] = ToBf16(at_target);
    }
  });
  return losses.mean();
}

bool Supported(int64_t key_dim, int64_t value_dim, int64_t conv_width, int64_t tokens) {
  return key_dim == kK && value_dim == kV && conv_width == kW && tokens % kC == 0;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("supported", &Supported);
  m.def("core_forward", &CoreForward);
  m.def("core_backward", &CoreBackward);
  m.def("norm_forward", &NormForward);
  m.def("norm_backward", &NormBackward);
  m.def("swiglu_forward", &SwigluForward);
  m.def("swiglu_backward", &SwigluBackward);
  m.def("cross_entropy_in_place", &CrossEntropyInPlace);
}
