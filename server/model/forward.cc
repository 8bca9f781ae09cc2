// The forward pass, written once for every architecture and every batch.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "kernels/activation/activation.h"
#include "kernels/common/check.h"
#include "kernels/fast_weight/fast_weight.h"
#include "kernels/fast_weight_mixer/fast_weight_mixer.h"
#include "kernels/window_attention/window_attention.h"
#include "server/model/forward_pass.h"
#include "server/model/padded_steps.h"

namespace palimpsest {

Workspace::Workspace() : buffers_(std::make_unique<Buffers>()) {}
Workspace::~Workspace() = default;
Workspace::Workspace(Workspace&&) noexcept = default;
Workspace& Workspace::operator=(Workspace&&) noexcept = default;
Workspace::Counts Workspace::counts() const { return buffers_->counts; }

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

// q, k and v from their projections: short convolution, feature map, normalisation and scale; and where the memory
// finds them.
void AddQueryKeyValue(const Pass& pass, const LayerWeights& layer, FastWeightMixerParams& mixer) {
  const MixerConfig& config = pass.config().mixer;
  const FastWeightShape& shape = config.shape;
  const ProjectionColumns columns(config);
  float* const mapped = pass.buffers.mapped.data();
  const float* from = pass.buffers.projected.data();
  int64_t ld_from = layer.projected_stride();
  const int64_t ld = config.mapped_channels();
  FeatureMapKind map = config.feature_map;
  bool silu_values = config.silu_values;
  if (config.conv_width > 0) {
    const bool silu = map == FeatureMapKind::kSilu;
    mixer.conv = {.rows = pass.rows,
                  .channels = static_cast<int32_t>(config.conv_channels()),
                  .width = config.conv_width,
                  .weight = layer.conv.data(),
                  .bias = layer.conv_bias.size() == 0 ? nullptr : layer.conv_bias.data(),
                  .linear_channels = static_cast<int32_t>(silu ? 0 : 2 * config.query_width()),
                  .activation = ConvActivation::kSilu,
                  .tail = pass.Piece(layer.conv_tail_offset),
                  .x = from,
                  .ldx = ld_from,
                  .y = mapped,
                  .ldy = ld};
    if (silu) map = FeatureMapKind::kIdentity;  // the convolution has done it
    silu_values = false;
    from = mapped;
    ld_from = ld;
  }
  // A denominator is the place for the scale where there is one.
  const bool divided = config.attention_norm != AttentionNormKind::kNone;
  mixer.query = {.rows = pass.num_rows(),
                 .heads = shape.heads,
                 .dim = config.head_dim,
                 .map = map,
                 .rolls = config.dpfp_rolls,
                 .projections = config.favor_projections,
                 .projection = layer.features.data(),
                 .norm = config.key_norm,
                 .scale = divided ? 1.0f : config.query_scale,
                 .x = from,
                 .ldx = ld_from,
                 .y = mapped,
                 .ldy = ld};
  mixer.key = mixer.query;
  mixer.key.scale = 1.0f;
  mixer.key.x = from + columns.k;
  mixer.key.y = mapped + config.key_width();
  mixer.memory.q = mixer.query.y;
  mixer.memory.k = mixer.key.y;
  mixer.memory.v = from + columns.v;
  mixer.memory.ldq = mixer.memory.ldk = ld;
  mixer.memory.ldv = ld_from;
  if (!silu_values) return;
  mixer.value = {.rows = pass.num_rows(),
                 .heads = shape.value_heads,
                 .dim = shape.value_dim,
                 .map = FeatureMapKind::kSilu,
                 .x = mixer.memory.v,
                 .ldx = ld_from,
                 .y = mapped + 2 * config.key_width(),
                 .ldy = ld};
  mixer.memory.v = mixer.value->y;
  mixer.memory.ldv = ld;
}

// buffers.read = what the fast weights give for the projections.
void ReadFastWeights(const Pass& pass, const LayerWeights& layer) {
  Buffers& buffers = pass.buffers;
  const MixerConfig& config = pass.config().mixer;
  const FastWeightShape& shape = config.shape;
  const ProjectionColumns columns(config);
  const float* const projected = buffers.projected.data();
  const int64_t ld = layer.projected_stride();
  const bool delta = Corrects(config.rule), gated_delta = DecaysHeads(config.rule);
  FastWeightMixerParams mixer;
  AddQueryKeyValue(pass, layer, mixer);
  if (delta) {
    mixer.gate = {.rows = pass.num_rows(),
                  .heads = shape.value_heads,
                  .b = config.learned_beta ? projected + columns.b : nullptr,
                  .ldb = ld,
                  .beta_scale = config.beta_scale,
                  .beta = buffers.beta.data(),
                  .a = gated_delta ? projected + columns.a : nullptr,
                  .lda = ld,
                  .a_log = gated_delta ? layer.a_log.data() : nullptr,
                  .dt_bias = gated_delta ? layer.dt_bias.data() : nullptr,
                  .log_decay = gated_delta ? buffers.log_decay.data() : nullptr};
  }
  if (config.attention_norm != AttentionNormKind::kNone) {
    mixer.attention_norm = {.heads = shape.heads,
                            .dim = shape.key_dim,
                            .rows = pass.rows,
                            .z = pass.Piece(layer.key_sum_offset),
                            .normalise_keys = config.attention_norm == AttentionNormKind::kKeyAndOutput,
                            .scale = config.query_scale,
                            .scaled_denominator = config.scaled_denominator,
                            .eps = pass.config().norm_eps,
                            .q = mixer.query.y,
                            .ldq = mixer.query.ldy,
                            .k = mixer.key.y,
                            .ldk = mixer.key.ldy,
                            .beta = delta ? buffers.beta.data() : nullptr};
  }
  FastWeightParams& memory = mixer.memory;
  memory.shape = shape;
  memory.rule = config.rule;
  memory.rows = pass.rows;
  memory.state = pass.FastWeights(layer);
  memory.beta = delta ? buffers.beta.data() : nullptr;
  memory.log_decay = gated_delta ? buffers.log_decay.data() : nullptr;
  memory.out = buffers.read.data();
  memory.ldout = config.value_width();
  memory.round_products = pass.weights.math == LinearMath::kBF16;
  memory.replay = pass.Replay(layer);
  if (config.output_norm) {
    mixer.norm = {.rows = pass.num_rows(),
                  .groups = shape.value_heads,
                  .dim = shape.value_dim,
                  .eps = pass.config().norm_eps,
                  .x = buffers.read.data(),
                  .ldx = config.value_width(),
                  .weight = layer.o_norm.data(),
                  .gate_activation = config.gate_activation,
                  .gate = config.output_gate ? projected + columns.gate : nullptr,
                  .ldgate = ld,
                  .y = buffers.read.data(),
                  .ldy = config.value_width()};
  }
  FastWeightMixer(pass.ctx, mixer);
}

// buffers.read = what softmax attention over the window gives for the projections.
void ReadWindow(const Pass& pass, const LayerWeights& layer) {
  Buffers& buffers = pass.buffers;
  const MixerConfig& mixer = pass.config().mixer;
  const ProjectionColumns columns(mixer);
  const float* const projected = buffers.projected.data();
  const int64_t ld = layer.projected_stride();
  const auto relative = [&](const AlignedArray<float>& array) {
    return mixer.relative_positions ? array.data() : nullptr;
  };
  WindowAttention(pass.ctx, {.heads = mixer.shape.heads,
                             .dim = mixer.head_dim,
                             .capacity = mixer.window_capacity(),
                             .segment = mixer.window_segment,
                             .memory = mixer.window_memory,
                             .scale = mixer.query_scale,
                             .rows = pass.rows,
                             .first_position = pass.first_position,
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

// What a sub-layer's projection reads: x itself, or x normalised, before or on the way.
struct Input {
  const float* x = nullptr;
  const NormWeights* norm = nullptr;
};
Input InputOf(const Pass& pass, const NormWeights& norm, const PackedLinear& matrix,
              const AlignedArray<float>* bias = nullptr) {
  Buffers& buffers = pass.buffers;
  const NormPlacement placement = pass.config().norm_placement;
  if (placement == NormPlacement::kPost) return {.x = buffers.x.data()};
  const bool only_it_reads = placement == NormPlacement::kPre || placement == NormPlacement::kPreRawQuery;
  if (only_it_reads && pass.FoldsNorm(matrix, bias)) return {.x = buffers.x.data(), .norm = &norm};
  pass.Normalise(norm, buffers.x.data(), buffers.h.data(), pass.num_rows());
  return {.x = buffers.h.data()};
}

// x after a sub-layer has added to it.
void FinishSublayer(const Pass& pass, const NormWeights& norm) {
  Buffers& buffers = pass.buffers;
  if (pass.config().norm_placement != NormPlacement::kPost) return;
  pass.Normalise(norm, buffers.x.data(), buffers.x.data(), pass.num_rows());
}

// The token mixer on the residual stream x, its norm where the architecture puts it.
void MixTokens(const Pass& pass, const LayerWeights& layer) {
  Buffers& buffers = pass.buffers;
  const MixerConfig& mixer = pass.config().mixer;
  const int64_t D = pass.config().hidden, ld = layer.projected_stride();
  const Input input = InputOf(pass, layer.attn_norm, layer.projections);
  float* const projected = buffers.projected.data();
  pass.Project(layer.projections, input.x, D, projected, pass.count, {.ldy = ld, .norm = input.norm});
  if (layer.raw_query.out() > 0) {
    pass.Project(layer.raw_query, buffers.x.data(), D, projected, pass.count, {.ldy = ld});
  }
  if (mixer.is_window()) {
    ReadWindow(pass, layer);
  } else {
    ReadFastWeights(pass, layer);
  }
  if (pass.config().norm_placement == NormPlacement::kPreNormedResidual) std::swap(buffers.x, buffers.h);
  pass.Project(layer.o_proj, buffers.read.data(), mixer.value_width(), buffers.x.data(), pass.count,
               {.ldy = D, .accumulate = true});
  FinishSublayer(pass, layer.attn_norm);
}

// The MLP, likewise.
void MixChannels(const Pass& pass, const LayerWeights& layer) {
  Buffers& buffers = pass.buffers;
  const int32_t rows = pass.num_rows(), inner = pass.config().mlp_inner;
  const int64_t D = pass.config().hidden, ld = layer.up.out();
  float* const up = buffers.inner.data();
  const Input input = InputOf(pass, layer.mlp_norm, layer.up, &layer.up_bias);
  const bool folds_swiglu = pass.config().swiglu && input.norm != nullptr && FoldsSwiglu(layer.up);
  pass.Project(layer.up, input.x, D, up, pass.count,
               {.ldy = ld, .bias = &layer.up_bias, .norm = input.norm, .swiglu = folds_swiglu});
  if (pass.config().swiglu && !folds_swiglu) {
    Swiglu(pass.ctx,
           {.rows = rows, .dim = inner, .gate = up, .ldgate = ld, .up = up + inner, .ldup = ld, .y = up, .ldy = ld});
  } else if (!pass.config().swiglu) {
    Relu(pass.ctx, {.rows = rows, .dim = inner, .x = up, .ldx = ld, .y = up, .ldy = ld});
  }
  pass.Project(layer.down, up, ld, buffers.x.data(), pass.count,
               {.ldy = D, .accumulate = true, .bias = &layer.down_bias});
  FinishSublayer(pass, layer.mlp_norm);
}

void CheckBatch(const ForwardBatch& batch, const ModelConfig& config, bool on_device) {
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
  for (int32_t s = 0; on_device && s < batch.rows.num_sequences; ++s) {
    const int32_t length = batch.rows.length(s);
    PALIMPSEST_CHECK(s < batch.rows.num_steps ? length == 1 : length % FastWeightParams::kChunk != 1);
  }
  if (!config.counts_tokens()) return;
  PALIMPSEST_CHECK(static_cast<int64_t>(batch.first_position.size()) == batch.rows.num_sequences);
  for (int32_t s = 0; s < batch.rows.num_sequences; ++s) {
    const int64_t first = batch.first_position[s];
    PALIMPSEST_CHECK(first >= 0);
    if (config.sinusoidal_positions) PALIMPSEST_CHECK(first + batch.rows.length(s) <= config.segment_length);
  }
}

// Calls size(buffer, values per row) for the buffers of a pass; those of a vocabulary in clusters for the most that a
// pass can need of them.
template <typename Size>
void ForEachBuffer(const ModelWeights& weights, Size size) {
  const ModelConfig& config = weights.config;
  const bool clusters = config.clusters() > 1;
  int64_t projected = weights.layers[0].projected_stride(), gathered = 0;
  for (const OutputWeights& output : weights.outputs) projected = std::max(projected, output.projection.out());
  for (const EmbeddingWeights& embedding : weights.embeddings) {
    if (embedding.projection.out() > 0) gathered = std::max<int64_t>(gathered, embedding.width);
  }
  size(&Buffers::x, config.hidden);
  size(&Buffers::h, config.hidden);
  size(&Buffers::projected, projected);
  size(&Buffers::mapped, config.mixer.mapped_channels());
  size(&Buffers::read, config.mixer.value_width());
  size(&Buffers::beta, config.mixer.shape.value_heads);
  size(&Buffers::log_decay, config.mixer.shape.value_heads);
  size(&Buffers::inner, std::max(weights.layers[0].up.out(), clusters ? weights.outputs[0].weights.out() : 0));
  size(&Buffers::gathered, gathered);
  size(&Buffers::cluster, clusters ? config.hidden : 0);
}

void GrowBuffers(const ModelWeights& weights, int64_t rows, Device* device, Buffers& buffers) {
  ForEachBuffer(weights, [&](AlignedArray<float> Buffers::*buffer, int64_t width) {
    buffers.Grow(buffers.*buffer, rows * width, device);
  });
}

void RunPass(const Pass& pass, float* logits) {
  EmbedTokens(pass);
  for (const LayerWeights& layer : pass.weights.layers) {
    MixTokens(pass, layer);
    MixChannels(pass, layer);
  }
  pass.AdvanceReplays();
  ComputeLogits(pass, logits);
}

// A batch of steps that all want logits, filled up to one of the sizes that are recorded.
struct PaddedBatch {
  explicit PaddedBatch(const ForwardBatch& batch) : steps(PaddedSteps(batch.rows.num_sequences)) {
    const int32_t real = batch.rows.num_sequences;
    tokens.assign(batch.tokens.begin(), batch.tokens.end());
    slots.assign(batch.rows.slot, batch.rows.slot + real);
    first_position.assign(batch.first_position.begin(), batch.first_position.end());
    tokens.resize(steps, 0);
    slots.resize(steps, -1);
    first_position.resize(steps, 0);
    rows.resize(steps + 1);
    std::iota(rows.begin(), rows.end(), 0);
  }

  int32_t steps;
  std::vector<int32_t> tokens, slots, rows;
  std::vector<int64_t> first_position;
};

// What a pass does on the host between its ops cannot be recorded.
bool CanBeRecorded(const ModelConfig& config, const ForwardBatch& batch) {
  const int32_t steps = batch.rows.num_steps;
  return config.clusters() == 1 && !config.sinusoidal_positions && steps == batch.rows.num_rows() &&
         steps == std::ssize(batch.logit_rows);
}

// Has the pass point at the arrays of a batch, on the device if it runs there.
void PutBatch(std::span<const int32_t> tokens, std::span<const int32_t> row_begin, std::span<const int32_t> slots,
              std::span<const int64_t> first_position, std::span<const int32_t> logit_rows, Pass& pass) {
  const auto put = [&]<typename T>(std::span<const T> values) {
    return pass.on_device() ? pass.buffers.arrays.Put(values) : values.data();
  };
  pass.tokens = put(tokens);
  pass.rows.row_begin = put(row_begin);
  pass.rows.slot = put(slots);
  pass.first_position = put(first_position);
  pass.logit_rows = put(logit_rows);
  if (pass.on_device()) pass.buffers.arrays.Send(*pass.ctx.device);
}

// Room for the arrays of any pass over so many rows, the indices of a vocabulary in clusters included.
int64_t BatchBytes(const ModelConfig& config, int64_t rows) {
  return BatchArrays::BytesOf<int64_t>((8 + 4 * config.clusters()) * (rows + 4));
}

void RunRecorded(const ForwardBatch& batch, Pass& pass, float* logits) {
  Buffers& buffers = pass.buffers;
  const PaddedBatch padded(batch);
  GrowBuffers(pass.weights, padded.steps, pass.ctx.device, buffers);
  if (buffers.arrays.Reset(*pass.ctx.device, BatchBytes(pass.config(), padded.steps))) buffers.recordings.clear();
  if (buffers.recorded_logits != logits || buffers.recorded_states != batch.states) buffers.recordings.clear();
  buffers.recorded_logits = logits;
  buffers.recorded_states = batch.states;
  pass.rows = {.num_sequences = padded.steps, .num_steps = padded.steps};
  pass.count = pass.logits_count = {.rows = padded.steps, .steps = padded.steps};
  const std::span<const int32_t> rows(padded.rows);
  PutBatch(padded.tokens, rows, padded.slots, padded.first_position, rows.first(padded.steps), pass);
  const auto found = buffers.recordings.find(padded.steps);
  const bool known = found != buffers.recordings.end();
  if (known && found->second != nullptr) {
    ++buffers.counts.recorded_passes;
    return pass.ctx.device->Run(*found->second);
  }
  ++buffers.counts.direct_passes;
  RunPass(pass, logits);
  // After a pass as it is, so that what is made on first use is there.
  if (!known) buffers.recordings[padded.steps] = pass.ctx.device->Record([&] { RunPass(pass, logits); });
}

void RunDirect(const ForwardBatch& batch, Pass& pass, float* logits) {
  Buffers& buffers = pass.buffers;
  ++buffers.counts.direct_passes;
  const int32_t rows = batch.rows.num_rows();
  GrowBuffers(pass.weights, rows, pass.ctx.device, buffers);
  pass.rows = batch.rows;
  pass.count = {.rows = rows, .steps = std::max(batch.rows.num_steps, 0)};
  const auto logit_steps = std::ranges::lower_bound(batch.logit_rows, pass.count.steps) - batch.logit_rows.begin();
  pass.logits_count = {.rows = static_cast<int32_t>(batch.logit_rows.size()),
                       .steps = static_cast<int32_t>(logit_steps)};
  if (pass.on_device() && buffers.arrays.Reset(*pass.ctx.device, BatchBytes(pass.config(), rows))) {
    buffers.recordings.clear();
  }
  const auto sequences = static_cast<size_t>(batch.rows.num_sequences);
  PutBatch(batch.tokens, {batch.rows.row_begin, sequences + 1}, {batch.rows.slot, sequences}, batch.first_position,
           batch.logit_rows, pass);
  RunPass(pass, logits);
}

}  // namespace

void Model::MakeWhole(const ExecContext& ctx, std::byte* states, int64_t state_stride, std::span<const int32_t> slots,
                      Workspace& workspace) const {
  if (weights_->write_interval == 1 || slots.empty()) return;
  Buffers& buffers = *workspace.buffers_;
  const auto count = static_cast<int32_t>(slots.size());
  ForwardBatch batch;
  batch.states = states;
  batch.state_stride = state_stride;
  Pass pass{.ctx = ctx, .weights = *weights_, .batch = batch, .buffers = buffers};
  pass.rows = {.num_sequences = count, .num_steps = 0};
  if (buffers.arrays.Reset(*ctx.device, BatchBytes(config(), count))) buffers.recordings.clear();
  const std::vector<int32_t> no_rows(slots.size() + 1, 0);
  PutBatch({}, no_rows, slots, {}, {}, pass);
  for (const LayerWeights& layer : weights_->layers) {
    FlushReplay(ctx, {.shape = config().mixer.shape,
                      .rule = config().mixer.rule,
                      .rows = pass.rows,
                      .state = pass.FastWeights(layer),
                      .replay = pass.Replay(layer)});
  }
  pass.AdvanceReplays();
}

int64_t Model::WorkspaceBytes(int64_t rows) const {
  int64_t values = 2 * weights_->config.vocabulary;  // as they are, and with biases and penalties
  ForEachBuffer(*weights_, [&](AlignedArray<float> Buffers::*, int64_t width) { values += width; });
  return rows * values * int64_t{sizeof(float)};
}

void Model::Reserve(const ExecContext& ctx, Workspace& workspace, int64_t rows) const {
  GrowBuffers(*weights_, rows, ctx.device, *workspace.buffers_);
}

void Model::Forward(const ExecContext& ctx, const ForwardBatch& batch, Workspace& workspace, float* logits) const {
  PALIMPSEST_CHECK(ctx.device == device());
  if (batch.rows.num_rows() == 0) return;
  CheckBatch(batch, config(), ctx.device != nullptr);
  Pass pass{.ctx = ctx, .weights = *weights_, .batch = batch, .buffers = *workspace.buffers_};
  if (ctx.device != nullptr && CanBeRecorded(config(), batch)) {
    RunRecorded(batch, pass, logits);
  } else {
    RunDirect(batch, pass, logits);
  }
}

}  // namespace palimpsest
