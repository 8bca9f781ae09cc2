// The forward pass, written once for every architecture and every batch.
#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels/activation/activation.h"
#include "kernels/attention_norm/attention_norm.h"
#include "kernels/common/check.h"
#include "kernels/fast_weight/fast_weight.h"
#include "kernels/feature_map/feature_map.h"
#include "kernels/gate/gate.h"
#include "kernels/short_conv/short_conv.h"
#include "kernels/window_attention/window_attention.h"
#include "server/model/forward_pass.h"

namespace palimpsest {

Workspace::Workspace() : buffers_(std::make_unique<Buffers>()) {}
Workspace::~Workspace() = default;
Workspace::Workspace(Workspace&&) noexcept = default;
Workspace& Workspace::operator=(Workspace&&) noexcept = default;

namespace {

using Buffers = Workspace::Buffers;

// Where a row's projections are, in floats from its start.
struct ProjectionColumns {
  explicit ProjectionColumns(const MixerConfig& mixer)
      : k(mixer.query_width()),
        v(2 * k),
        gate(v + mixer.value_width()),
        b(gate + (mixer.output_gate ? mixer.value_width() : 0)),
        a(b + (mixer.learned_beta ? mixer.shape.value_heads : 0)) {}
  int64_t k, v, gate, b, a;
};

// q, k and v on their way into the memory: rows `ld` floats apart.
struct QueryKeyValue {
  float* q;
  float* k;
  float* v;
  int64_t ld;
};

// q, k and v from their projections: short convolution, feature map, normalisation and scale.
QueryKeyValue MapQueryKeyValue(const Pass& pass, const LayerWeights& layer, Buffers& buffers) {
  const MixerConfig& mixer = pass.config().mixer;
  const ProjectionColumns columns(mixer);
  const int64_t query_width = mixer.query_width(), key_width = mixer.key_width();
  FeatureMapKind map = mixer.feature_map;
  QueryKeyValue from{buffers.projected.data(), buffers.projected.data() + columns.k,
                     buffers.projected.data() + columns.v, layer.projections.out()};
  const int64_t ld = mixer.mapped_channels();
  const QueryKeyValue to{buffers.mapped.data(), buffers.mapped.data() + key_width,
                         buffers.mapped.data() + 2 * key_width, ld};
  bool silu_values = mixer.silu_values;
  if (mixer.conv_width > 0) {
    const bool silu = map == FeatureMapKind::kSilu;
    ShortConv(pass.ctx, {.rows = pass.batch.rows,
                         .channels = static_cast<int32_t>(mixer.conv_channels()),
                         .width = mixer.conv_width,
                         .weight = layer.conv.data(),
                         .bias = layer.conv_bias.size() == 0 ? nullptr : layer.conv_bias.data(),
                         .linear_channels = static_cast<int32_t>(silu ? 0 : 2 * query_width),
                         .activation = ConvActivation::kSilu,
                         .tail = pass.Piece(layer.conv_tail_offset),
                         .x = from.q,
                         .ldx = from.ld,
                         .y = to.q,
                         .ldy = ld});
    if (silu) map = FeatureMapKind::kIdentity;  // the convolution has done it
    silu_values = false;
    from = to;
  }
  // A denominator is the place for the scale where there is one.
  const bool divided = mixer.attention_norm != AttentionNormKind::kNone;
  FeatureMapParams params{.rows = pass.num_rows(),
                          .heads = mixer.shape.heads,
                          .dim = mixer.head_dim,
                          .map = map,
                          .rolls = mixer.dpfp_rolls,
                          .projections = mixer.favor_projections,
                          .projection = layer.features.data(),
                          .norm = mixer.key_norm,
                          .scale = divided ? 1.0f : mixer.query_scale,
                          .x = from.q,
                          .ldx = from.ld,
                          .y = to.q,
                          .ldy = ld};
  FeatureMap(pass.ctx, params);
  params.scale = 1.0f;
  params.x = from.k;
  params.y = to.k;
  FeatureMap(pass.ctx, params);
  if (silu_values) {
    FeatureMap(pass.ctx, {.rows = pass.num_rows(),
                          .heads = mixer.shape.value_heads,
                          .dim = mixer.shape.value_dim,
                          .map = FeatureMapKind::kSilu,
                          .x = from.v,
                          .ldx = from.ld,
                          .y = to.v,
                          .ldy = ld});
  }
  return to;
}

// buffers.read = what the fast weights give for the projections.
void ReadFastWeights(const Pass& pass, const LayerWeights& layer, Buffers& buffers) {
  const MixerConfig& mixer = pass.config().mixer;
  const FastWeightShape& shape = mixer.shape;
  const ProjectionColumns columns(mixer);
  float* const projected = buffers.projected.data();
  const int64_t ld = layer.projections.out();
  const int32_t rows = pass.num_rows();
  const bool delta = mixer.rule != UpdateRule::kSum, gated_delta = mixer.rule == UpdateRule::kGatedDelta;
  const QueryKeyValue mapped = MapQueryKeyValue(pass, layer, buffers);
  const bool values_mapped = mixer.conv_width > 0 || mixer.silu_values;
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
  if (mixer.attention_norm != AttentionNormKind::kNone) {
    AttentionNorm(pass.ctx, {.heads = shape.heads,
                             .dim = shape.key_dim,
                             .rows = pass.batch.rows,
                             .z = pass.Piece(layer.key_sum_offset),
                             .normalise_keys = mixer.attention_norm == AttentionNormKind::kKeyAndOutput,
                             .scale = mixer.query_scale,
                             .scaled_denominator = mixer.scaled_denominator,
                             .eps = pass.config().norm_eps,
                             .q = mapped.q,
                             .ldq = mapped.ld,
                             .k = mapped.k,
                             .ldk = mapped.ld,
                             .beta = delta ? buffers.beta.data() : nullptr});
  }
  FastWeight(pass.ctx, {.shape = shape,
                        .rule = mixer.rule,
                        .rows = pass.batch.rows,
                        .state = pass.Piece(layer.fast_weight_offset),
                        .q = mapped.q,
                        .ldq = mapped.ld,
                        .k = mapped.k,
                        .ldk = mapped.ld,
                        .v = values_mapped ? mapped.v : projected + columns.v,
                        .ldv = values_mapped ? mapped.ld : ld,
                        .beta = delta ? buffers.beta.data() : nullptr,
                        .log_decay = gated_delta ? buffers.log_decay.data() : nullptr,
                        .out = buffers.read.data(),
                        .ldout = mixer.value_width()});
  if (!mixer.output_norm) return;
  RmsNorm(pass.ctx, {.rows = rows,
                     .groups = shape.value_heads,
                     .dim = shape.value_dim,
                     .eps = pass.config().norm_eps,
                     .x = buffers.read.data(),
                     .ldx = mixer.value_width(),
                     .weight = layer.o_norm.data(),
                     .gate_activation = mixer.gate_activation,
                     .gate = mixer.output_gate ? projected + columns.gate : nullptr,
                     .ldgate = ld,
                     .y = buffers.read.data(),
                     .ldy = mixer.value_width()});
}

// buffers.read = what softmax attention over the window gives for the projections.
void ReadWindow(const Pass& pass, const LayerWeights& layer, Buffers& buffers) {
  const MixerConfig& mixer = pass.config().mixer;
  const ProjectionColumns columns(mixer);
  const float* const projected = buffers.projected.data();
  const int64_t ld = layer.projections.out();
  const auto relative = [&](const AlignedArray<float>& array) {
    return mixer.relative_positions ? array.data() : nullptr;
  };
  WindowAttention(pass.ctx, {.heads = mixer.shape.heads,
                             .dim = mixer.head_dim,
                             .capacity = mixer.window_capacity(),
                             .segment = mixer.window_segment,
                             .memory = mixer.window_memory,
                             .scale = mixer.query_scale,
                             .rows = pass.batch.rows,
                             .first_position = pass.batch.first_position.data(),
                             .ring = pass.Piece(layer.window_offset),
                             .q = projected,
                             .ldq = ld,
                             .k = projected + columns.k,
                             .ldk = ld,
                             .v = projected + columns.v,
                             .ldv = ld,
                             .content_bias = relative(pass.weights.content_bias),
                             .position_bias = relative(pass.weights.position_bias),
                             .relative = relative(layer.relative),
                             .out = buffers.read.data(),
                             .ldout = mixer.value_width()});
}

// What a sub-layer reads: x itself, or x normalised.
const float* InputOf(const Pass& pass, const NormWeights& norm, Buffers& buffers) {
  if (pass.config().norm_placement == NormPlacement::kPost) return buffers.x.data();
  pass.Normalise(norm, buffers.x.data(), buffers.h.data(), pass.num_rows());
  return buffers.h.data();
}

// x after a sub-layer has added to it.
void FinishSublayer(const Pass& pass, const NormWeights& norm, Buffers& buffers) {
  if (pass.config().norm_placement != NormPlacement::kPost) return;
  pass.Normalise(norm, buffers.x.data(), buffers.x.data(), pass.num_rows());
}

// The token mixer on the residual stream x, its norm where the architecture puts it.
void MixTokens(const Pass& pass, const LayerWeights& layer, Buffers& buffers) {
  const MixerConfig& mixer = pass.config().mixer;
  const int64_t D = pass.config().hidden, ld = layer.projections.out();
  const int32_t rows = pass.num_rows();
  const float* input = InputOf(pass, layer.attn_norm, buffers);
  pass.Project(layer.projections, input, D, buffers.projected.data(), rows);
  if (layer.raw_query.out() > 0) pass.Project(layer.raw_query, buffers.x.data(), D, buffers.projected.data(), rows, ld);
  if (mixer.is_window()) {
    ReadWindow(pass, layer, buffers);
  } else {
    ReadFastWeights(pass, layer, buffers);
  }
  if (pass.config().norm_placement == NormPlacement::kPreNormedResidual) std::swap(buffers.x, buffers.h);
  pass.Project(layer.o_proj, buffers.read.data(), mixer.value_width(), buffers.x.data(), rows, D, /*accumulate=*/true);
  FinishSublayer(pass, layer.attn_norm, buffers);
}

// The MLP, likewise.
void MixChannels(const Pass& pass, const LayerWeights& layer, Buffers& buffers) {
  const int32_t rows = pass.num_rows(), inner = pass.config().mlp_inner;
  const int64_t D = pass.config().hidden, ld = layer.up.out();
  float* const up = buffers.inner.data();
  const float* const input = InputOf(pass, layer.mlp_norm, buffers);
  pass.Project(layer.up, input, D, up, rows, ld, /*accumulate=*/false, &layer.up_bias);
  if (pass.config().swiglu) {
    Swiglu(pass.ctx,
           {.rows = rows, .dim = inner, .gate = up, .ldgate = ld, .up = up + inner, .ldup = ld, .y = up, .ldy = ld});
  } else {
    Relu(pass.ctx, {.rows = rows, .dim = inner, .x = up, .ldx = ld, .y = up, .ldy = ld});
  }
  pass.Project(layer.down, up, ld, buffers.x.data(), rows, D, /*accumulate=*/true, &layer.down_bias);
  FinishSublayer(pass, layer.mlp_norm, buffers);
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
  PALIMPSEST_CHECK(batch.targets.empty() || batch.targets.size() == batch.logit_rows.size());
  PALIMPSEST_CHECK(reinterpret_cast<uintptr_t>(batch.states) % 64 == 0 && batch.state_stride % 64 == 0);
  if (!config.counts_tokens()) return;
  PALIMPSEST_CHECK(static_cast<int64_t>(batch.first_position.size()) == batch.rows.num_sequences);
  for (int32_t s = 0; s < batch.rows.num_sequences; ++s) {
    const int64_t first = batch.first_position[s];
    PALIMPSEST_CHECK(first >= 0);
    if (config.sinusoidal_positions) PALIMPSEST_CHECK(first + batch.rows.length(s) <= config.segment_length);
  }
}

}  // namespace

void Model::Forward(const ExecContext& ctx, const ForwardBatch& batch, Workspace& workspace, float* logits) const {
  const ModelConfig& config = weights_->config;
  const int64_t rows = batch.rows.num_rows(), value_heads = config.mixer.shape.value_heads;
  if (rows == 0) return;
  CheckBatch(batch, config);

  Buffers& buffers = *workspace.buffers_;
  Grow(buffers.x, rows * config.hidden);
  Grow(buffers.h, rows * config.hidden);
  Grow(buffers.projected, rows * weights_->layers[0].projections.out());
  Grow(buffers.mapped, rows * config.mixer.mapped_channels());
  Grow(buffers.read, rows * config.mixer.value_width());
  Grow(buffers.beta, rows * value_heads);
  Grow(buffers.log_decay, rows * value_heads);
  Grow(buffers.inner, rows * weights_->layers[0].up.out());

  const Pass pass{.ctx = ctx, .weights = *weights_, .batch = batch};
  EmbedTokens(pass, buffers);
  for (const LayerWeights& layer : weights_->layers) {
    MixTokens(pass, layer, buffers);
    MixChannels(pass, layer, buffers);
  }
  ComputeLogits(pass, buffers, logits);
}

}  // namespace palimpsest
