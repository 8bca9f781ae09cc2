// The forward pass, written once for every architecture and every batch. Letters: D hidden size, I inner size of the
// MLP, R vocabulary, H and HV heads, K and V head sizes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "kernels/activation/activation.h"
#include "kernels/common/check.h"
#include "kernels/embedding/embedding.h"
#include "kernels/fast_weight/fast_weight.h"
#include "kernels/feature_map/feature_map.h"
#include "kernels/gate/gate.h"
#include "kernels/linear/linear.h"
#include "kernels/norm/norm.h"
#include "kernels/short_conv/short_conv.h"
#include "server/model/model.h"
#include "server/model/weights.h"

namespace palimpsest {

struct Workspace::Buffers {
  AlignedArray<float> x;          // [rows, D] the residual stream
  AlignedArray<float> h;          // [rows, D] normalised input of a mixer or MLP; last, of the rows that want logits
  AlignedArray<float> projected;  // [rows, q | k | v | gate | b | a]
  AlignedArray<float> mapped;     // [rows, q | k | v] as the memory takes them
  AlignedArray<float> read;       // [rows, HV, V] what the memory gives
  AlignedArray<float> beta;       // [rows, HV]
  AlignedArray<float> log_decay;  // [rows, HV]
  AlignedArray<float> inner;      // [rows, gate | up]
};

Workspace::Workspace() : buffers_(std::make_unique<Buffers>()) {}
Workspace::~Workspace() = default;
Workspace::Workspace(Workspace&&) noexcept = default;
Workspace& Workspace::operator=(Workspace&&) noexcept = default;

namespace {

void Grow(AlignedArray<float>& array, int64_t size) {
  if (array.size() < size) array = AlignedArray<float>(size);
}

// Where a row's projections are, in floats from its start.
struct ProjectionColumns {
  explicit ProjectionColumns(const MixerConfig& mixer)
      : k(mixer.key_width()),
        v(2 * k),
        gate(v + mixer.value_width()),
        b(gate + (mixer.output_gate ? mixer.value_width() : 0)),
        a(b + (mixer.learned_beta ? mixer.shape.value_heads : 0)) {}
  int64_t k, v, gate, b, a;
};

// What the layers of one call have in common.
struct Pass {
  const ExecContext& ctx;
  const ModelConfig& config;
  const RaggedRows& rows;
  std::byte* states;
  int64_t state_stride;
  LinearMath math;

  int32_t num_rows() const { return rows.num_rows(); }

  void Project(const PackedLinear& weights, const float* x, int64_t ldx, float* y, int32_t num_rows,
               bool accumulate = false) const {
    Linear(ctx, {.weights = &weights,
                 .math = weights.dtype() == DType::kBF16 ? math : LinearMath::kF32,
                 .x = x,
                 .ldx = ldx,
                 .y = y,
                 .ldy = weights.out(),
                 .rows = num_rows,
                 .accumulate = accumulate});
  }

  // y = norm(x), both [num_rows, D].
  void Normalise(const AlignedArray<float>& weight, const float* x, float* y, int32_t num_rows) const {
    RmsNorm(ctx, {.rows = num_rows,
                  .dim = config.hidden,
                  .eps = config.norm_eps,
                  .x = x,
                  .ldx = config.hidden,
                  .weight = weight.data(),
                  .y = y,
                  .ldy = config.hidden});
  }
};

// q, k and v from their projections: short convolution, activations, normalisation and scale.
void MapQueryKeyValue(const Pass& pass, const LayerWeights& layer, const float* projected, int64_t ld, float* mapped) {
  const MixerConfig& mixer = pass.config.mixer;
  const FastWeightShape& shape = mixer.shape;
  const int64_t channels = mixer.conv_channels(), key_width = mixer.key_width();
  FeatureMapKind map = mixer.feature_map;
  const float* source = projected;
  int64_t source_ld = ld;
  if (mixer.conv_width > 0) {
    const bool silu = map == FeatureMapKind::kSilu;
    ShortConv(pass.ctx, {.rows = pass.rows,
                         .channels = static_cast<int32_t>(channels),
                         .width = mixer.conv_width,
                         .weight = layer.conv.data(),
                         .bias = layer.conv_bias.size() == 0 ? nullptr : layer.conv_bias.data(),
                         .linear_channels = static_cast<int32_t>(silu ? 0 : 2 * key_width),
                         .activation = ConvActivation::kSilu,
                         .tail = {pass.states + layer.conv_tail_offset, pass.state_stride},
                         .x = projected,
                         .ldx = ld,
                         .y = mapped,
                         .ldy = channels});
    if (silu) map = FeatureMapKind::kIdentity;  // the convolution has done it
    source = mapped;
    source_ld = channels;
  }
  FeatureMapParams params{.rows = pass.num_rows(),
                          .heads = shape.heads,
                          .dim = shape.key_dim,
                          .map = map,
                          .norm = mixer.key_norm,
                          .scale = 1.0f / std::sqrt(static_cast<float>(shape.key_dim)),
                          .x = source,
                          .ldx = source_ld,
                          .y = mapped,
                          .ldy = channels};
  FeatureMap(pass.ctx, params);  // q, the only one that is scaled
  params.scale = 1.0f;
  params.x = source + key_width;
  params.y = mapped + key_width;
  FeatureMap(pass.ctx, params);  // k
  if (mixer.conv_width == 0) {
    FeatureMap(pass.ctx, {.rows = pass.num_rows(),
                          .heads = shape.value_heads,
                          .dim = shape.value_dim,
                          .map = FeatureMapKind::kSilu,
                          .x = source + 2 * key_width,
                          .ldx = source_ld,
                          .y = mapped + 2 * key_width,
                          .ldy = channels});
  }
}

// x += mixer(norm(x)).
template <typename Buffers>
void MixTokens(const Pass& pass, const LayerWeights& layer, Buffers& buffers) {
  const MixerConfig& mixer = pass.config.mixer;
  const FastWeightShape& shape = mixer.shape;
  const ProjectionColumns columns(mixer);
  const int64_t ld = layer.projections.out(), channels = mixer.conv_channels(), value_width = mixer.value_width();
  const int32_t rows = pass.num_rows();
  const bool delta = mixer.rule != UpdateRule::kSum, gated_delta = mixer.rule == UpdateRule::kGatedDelta;
  float* projected = buffers.projected.data();
  float* mapped = buffers.mapped.data();
  float* read = buffers.read.data();

  pass.Normalise(layer.attn_norm, buffers.x.data(), buffers.h.data(), rows);
  pass.Project(layer.projections, buffers.h.data(), pass.config.hidden, projected, rows);
  MapQueryKeyValue(pass, layer, projected, ld, mapped);
  if (delta) {
    Gate(pass.ctx, {.rows = rows,
                    .heads = shape.value_heads,
                    .b = mixer.learned_beta ? projected + columns.b : nullptr,
                    .ldb = ld,
                    .beta_scale = mixer.beta_scale,
                    .beta = buffers.beta.data(),
                    .a = gated_delta ? projected + columns.a : nullptr,
                    .lda = ld,
                    .a_log = gated_delta ? layer.a_log.data() : nullptr,
                    .dt_bias = gated_delta ? layer.dt_bias.data() : nullptr,
                    .log_decay = gated_delta ? buffers.log_decay.data() : nullptr});
  }
  FastWeight(pass.ctx, {.shape = shape,
                        .rule = mixer.rule,
                        .rows = pass.rows,
                        .state = {pass.states + layer.fast_weight_offset, pass.state_stride},
                        .q = mapped,
                        .ldq = channels,
                        .k = mapped + columns.k,
                        .ldk = channels,
                        .v = mapped + columns.v,
                        .ldv = channels,
                        .beta = delta ? buffers.beta.data() : nullptr,
                        .log_decay = gated_delta ? buffers.log_decay.data() : nullptr,
                        .out = read,
                        .ldout = value_width});
  RmsNorm(pass.ctx, {.rows = rows,
                     .groups = shape.value_heads,
                     .dim = shape.value_dim,
                     .eps = pass.config.norm_eps,
                     .x = read,
                     .ldx = value_width,
                     .weight = layer.o_norm.data(),
                     .gate_activation = mixer.gate_activation,
                     .gate = mixer.output_gate ? projected + columns.gate : nullptr,
                     .ldgate = ld,
                     .y = read,
                     .ldy = value_width});
  pass.Project(layer.o_proj, read, value_width, buffers.x.data(), rows, /*accumulate=*/true);
}

// x += mlp(norm(x)).
template <typename Buffers>
void MixChannels(const Pass& pass, const LayerWeights& layer, Buffers& buffers) {
  const int32_t rows = pass.num_rows(), inner = pass.config.mlp_inner;
  const int64_t ld = layer.gate_up.out();
  float* gate = buffers.inner.data();
  pass.Normalise(layer.mlp_norm, buffers.x.data(), buffers.h.data(), rows);
  pass.Project(layer.gate_up, buffers.h.data(), pass.config.hidden, gate, rows);
  Swiglu(
      pass.ctx,
      {.rows = rows, .dim = inner, .gate = gate, .ldgate = ld, .up = gate + inner, .ldup = ld, .y = gate, .ldy = ld});
  pass.Project(layer.down, gate, ld, buffers.x.data(), rows, /*accumulate=*/true);
}

void CheckBatch(const ForwardBatch& batch, const ModelConfig& config) {
  const int32_t rows = batch.rows.num_rows();
  PALIMPSEST_CHECK(static_cast<int64_t>(batch.tokens.size()) == rows);
  for (int32_t token : batch.tokens) PALIMPSEST_CHECK(token >= 0 && token < config.vocabulary);
  int32_t previous = -1;
  for (int32_t row : batch.logit_rows) {
    PALIMPSEST_CHECK(row > previous && row < rows);
    previous = row;
  }
  PALIMPSEST_CHECK(reinterpret_cast<uintptr_t>(batch.states) % 64 == 0 && batch.state_stride % 64 == 0);
}

}  // namespace

void Model::Forward(const ExecContext& ctx, const ForwardBatch& batch, Workspace& workspace, float* logits) const {
  const ModelWeights& weights = *weights_;
  const ModelConfig& config = weights.config;
  const int32_t rows = batch.rows.num_rows();
  if (rows == 0) return;
  CheckBatch(batch, config);

  Workspace::Buffers& buffers = *workspace.buffers_;
  const int64_t n = rows, hidden = config.hidden, value_heads = config.mixer.shape.value_heads;
  Grow(buffers.x, n * hidden);
  Grow(buffers.h, n * hidden);
  Grow(buffers.projected, n * weights.layers[0].projections.out());
  Grow(buffers.mapped, n * config.mixer.conv_channels());
  Grow(buffers.read, n * config.mixer.value_width());
  Grow(buffers.beta, n * value_heads);
  Grow(buffers.log_decay, n * value_heads);
  Grow(buffers.inner, n * 2 * config.mlp_inner);

  const Pass pass{.ctx = ctx,
                  .config = config,
                  .rows = batch.rows,
                  .states = batch.states,
                  .state_stride = batch.state_stride,
                  .math = weights.math};
  Embedding(ctx, {.rows = rows,
                  .dim = config.hidden,
                  .tokens = batch.tokens.data(),
                  .dtype = weights.embedding_dtype,
                  .table = weights.embeddings.data(),
                  .y = buffers.x.data()});
  for (const LayerWeights& layer : weights.layers) {
    MixTokens(pass, layer, buffers);
    MixChannels(pass, layer, buffers);
  }

  const auto wanted = static_cast<int32_t>(batch.logit_rows.size());
  if (wanted == 0) return;
  for (int32_t i = 0; i < wanted; ++i) {
    std::memcpy(buffers.h.data() + i * hidden, buffers.x.data() + batch.logit_rows[i] * hidden,
                static_cast<size_t>(hidden) * sizeof(float));
  }
  pass.Normalise(weights.norm, buffers.h.data(), buffers.h.data(), wanted);
  pass.Project(weights.lm_head, buffers.h.data(), hidden, logits, wanted);
}

}  // namespace palimpsest
