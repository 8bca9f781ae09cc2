#include "server/model/layers/fast_weight.h"

#include "base/round_up.h"
#include "kernels/fast_weight_mixer/fast_weight_mixer.h"

namespace palimpsest {
namespace {

// q, k and v from their projections: short convolution, feature map, normalization and scale; and where the memory
// finds them.
void AddQueryKeyValue(const Pass& pass, const FastWeightLayer& layer, FastWeightMixerParams& mixer) {
  const FastWeightConfig& config = layer.config;
  const FastWeightShape& shape = config.shape;
  float* const mapped = pass.buffers.mapped.data();
  const float* from = pass.buffers.projected.data();
  int64_t ld_from = layer.projections.stride();
  const int64_t ld = config.mapped_channels();
  FeatureMapKind map = config.features.map;
  bool silu_values = config.silu_values;
  if (config.conv) {
    const bool silu = map == FeatureMapKind::kSilu;
    mixer.conv = {.rows = pass.rows,
                  .channels = static_cast<int32_t>(config.conv_channels()),
                  .width = config.conv->width,
                  .weight = layer.conv.data(),
                  .bias = layer.conv_bias.size() == 0 ? nullptr : layer.conv_bias.data(),
                  .linear_channels = static_cast<int32_t>(silu ? 0 : 2 * config.query_width()),
                  .activation = ConvActivation::kSilu,
                  .tail = pass.Piece(layer.state.conv_tail),
                  .x = from,
                  .ldx = ld_from,
                  .y = mapped,
                  .ldy = ld};
    if (silu) map = FeatureMapKind::kIdentity;  // the convolution has done it
    silu_values = false;
    from = mapped;
    ld_from = ld;
  }
  mixer.query = {.rows = pass.num_rows(),
                 .heads = shape.heads,
                 .dim = config.head_dim,
                 .map = map,
                 .rolls = config.features.dpfp_rolls,
                 .projections = config.features.favor_projections,
                 .projection = layer.feature_maps.data(),
                 .norm = config.features.norm,
                 // A denominator is the place for the scale where there is one.
                 .scale = config.attention_norm ? 1.0f : config.features.query_scale,
                 .x = from,
                 .ldx = ld_from,
                 .y = mapped,
                 .ldy = ld};
  mixer.key = mixer.query;
  mixer.key.scale = 1.0f;
  mixer.key.x = from + layer.projections.column(Role::kKey);
  mixer.key.y = mapped + config.key_width();
  mixer.memory.q = mixer.query.y;
  mixer.memory.k = mixer.key.y;
  mixer.memory.v = from + layer.projections.column(Role::kValue);
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

// buffers.mixed = what the fast weights give for the projections.
void RunMemory(const Pass& pass, const FastWeightLayer& layer) {
  Workspace::Buffers& buffers = pass.buffers;
  const FastWeightConfig& config = layer.config;
  const FastWeightShape& shape = config.shape;
  const float* const projected = buffers.projected.data();
  const int64_t ld = layer.projections.stride();
  const bool delta = Corrects(config.rule), gated_delta = DecaysHeads(config.rule);
  FastWeightMixerParams mixer;
  AddQueryKeyValue(pass, layer, mixer);
  if (delta) {
    mixer.gate = {.rows = pass.num_rows(),
                  .heads = shape.value_heads,
                  .b = config.beta.learned ? projected + layer.projections.column(Role::kBeta) : nullptr,
                  .ldb = ld,
                  .beta_scale = config.beta.scale,
                  .beta = buffers.beta.data(),
                  .a = gated_delta ? projected + layer.projections.column(Role::kDecay) : nullptr,
                  .lda = ld,
                  .a_log = gated_delta ? layer.decay_rate.data() : nullptr,
                  .dt_bias = gated_delta ? layer.decay_bias.data() : nullptr,
                  .log_decay = gated_delta ? buffers.log_decay.data() : nullptr};
  }
  if (config.attention_norm) {
    mixer.attention_norm = {.heads = shape.heads,
                            .dim = shape.key_dim,
                            .rows = pass.rows,
                            .z = pass.Piece(layer.state.key_sum),
                            .normalise_keys = config.attention_norm->keys_too,
                            .scale = config.features.query_scale,
                            .scaled_denominator = config.attention_norm->scaled_denominator,
                            .eps = config.attention_norm->eps,
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
  memory.state = pass.Piece(layer.state.fast_weight);
  memory.beta = delta ? buffers.beta.data() : nullptr;
  memory.log_decay = gated_delta ? buffers.log_decay.data() : nullptr;
  memory.out = buffers.mixed.data();
  memory.ldout = config.value_width();
  memory.round_products = pass.bf16_math == LinearMath::kBF16;
  memory.replay = pass.Replay(layer.state.deferred);
  if (config.output.norm) {
    const bool gated = config.output.gate != GateActivation::kNone;
    mixer.norm = {.rows = pass.num_rows(),
                  .groups = shape.value_heads,
                  .dim = shape.value_dim,
                  .eps = config.output.eps,
                  .x = buffers.mixed.data(),
                  .ldx = config.value_width(),
                  .weight = layer.output_norm.data(),
                  .gate_activation = config.output.gate,
                  .gate = gated ? projected + layer.projections.column(Role::kGate) : nullptr,
                  .ldgate = ld,
                  .y = buffers.mixed.data(),
                  .ldy = config.value_width()};
  }
  FastWeightMixer(pass.ctx, mixer);
}

}  // namespace

FastWeightState Pieces(const FastWeightConfig& config, StateLayoutBuilder& builder) {
  const FastWeightShape& shape = config.shape;
  FastWeightState state;
  state.fast_weight =
      builder.Add("fast_weight", {shape.value_heads, shape.value_dim, shape.key_dim}, builder.fast_weights());
  if (config.attention_norm) state.key_sum = builder.Add("key_sum", {shape.heads, shape.key_dim});
  if (config.conv && config.conv->width > 1) {
    state.conv_tail = builder.Add("conv_tail", {config.conv->width - 1, config.conv_channels()});
  }
  return state;
}

std::vector<TensorSpec> Tensors(const FastWeightConfig& config, int64_t hidden) {
  const int64_t queries = config.query_width(), values = config.value_width(), value_heads = config.shape.value_heads;
  std::vector<TensorSpec> specs = {
      {Role::kQuery, {queries, hidden}}, {Role::kKey, {queries, hidden}}, {Role::kValue, {values, hidden}}};
  if (config.output.gate != GateActivation::kNone) specs.push_back({Role::kGate, {values, hidden}});
  if (config.beta.learned) specs.push_back({Role::kBeta, {value_heads, hidden}});
  if (DecaysHeads(config.rule)) {
    specs.push_back({Role::kDecay, {value_heads, hidden}});
    specs.push_back({Role::kDecayRate, {value_heads}});
    specs.push_back({Role::kDecayBias, {value_heads}});
  }
  if (config.features.map == FeatureMapKind::kFavor) {
    specs.push_back({Role::kFeatureProjection, {config.features.favor_projections, config.head_dim}});
  }
  if (config.conv) {
    const struct {
      Role weight, bias;
      int64_t channels;
    } convs[] = {{Role::kQueryConv, Role::kQueryConvBias, queries},
                 {Role::kKeyConv, Role::kKeyConvBias, queries},
                 {Role::kValueConv, Role::kValueConvBias, values}};
    for (const auto& [weight, bias, channels] : convs) {
      specs.push_back({weight, {channels, 1, config.conv->width}});
      if (config.conv->bias) specs.push_back({bias, {channels}});
    }
  }
  if (config.output.norm) specs.push_back({Role::kOutputNorm, {config.shape.value_dim}});
  specs.push_back({Role::kOutput, {hidden, values}});
  return specs;
}

FastWeightLayer Load(const FastWeightConfig& config, const TensorsByRole& tensors, int64_t, Device* device) {
  FastWeightLayer layer{.config = config};
  layer.projections =
      StackedLinear(tensors, {Role::kQuery, Role::kKey, Role::kValue, Role::kGate, Role::kBeta, Role::kDecay}, device);
  if (config.raw_query) layer.raw_query = Pack(tensors[Role::kQuery], device);
  if (config.conv) {
    const TensorView* const convs[] = {&tensors[Role::kQueryConv], &tensors[Role::kKeyConv],
                                       &tensors[Role::kValueConv]};
    layer.conv = TransposedConvs(convs);
    if (config.conv->bias) {
      const TensorView* const biases[] = {&tensors[Role::kQueryConvBias], &tensors[Role::kKeyConvBias],
                                          &tensors[Role::kValueConvBias]};
      layer.conv_bias = Concatenated(biases);
    }
  }
  layer.decay_rate = Floats(tensors.Find(Role::kDecayRate));
  layer.decay_bias = Floats(tensors.Find(Role::kDecayBias));
  if (const TensorView* features = tensors.Find(Role::kFeatureProjection)) layer.feature_maps = Transposed(*features);
  layer.output_norm = Floats(tensors.Find(Role::kOutputNorm));
  layer.output = Pack(tensors[Role::kOutput], device);
  return layer;
}

int64_t StateFlops(const FastWeightConfig& config) {
  // Each element of a fast weight is multiplied with the query and takes in an outer product; a delta rule first reads
  // it with the key.
  return (config.rule == UpdateRule::kSum ? 4 : 6) * config.shape.state_floats();
}

int64_t DeferredBytes(const FastWeightConfig& config, int32_t write_interval) {
  if (!HasReplayForm(config.shape, config.rule)) return 0;
  return config.shape.value_heads * (write_interval - 1) * FastWeightReplay::entry_floats(config.shape) *
         int64_t{sizeof(float)};
}

void Widths(const FastWeightLayer& layer, ScratchPlan& plan) {
  using Widths = PerBuffer<int64_t>;
  plan.AtLeast(&Widths::projected, layer.projections.stride());
  plan.AtLeast(&Widths::mapped, layer.config.mapped_channels());
  plan.AtLeast(&Widths::mixed, layer.config.value_width());
  plan.AtLeast(&Widths::beta, layer.config.shape.value_heads);
  plan.AtLeast(&Widths::log_decay, layer.config.shape.value_heads);
}

void Mix(const Pass& pass, const FastWeightLayer& layer, const SublayerInput& input) {
  ProjectSublayerInput(pass, layer.projections, layer.raw_query, input);
  RunMemory(pass, layer);
}

void FlushDeferred(const Pass& pass, const FastWeightLayer& layer) {
  FlushReplay(pass.ctx, {.shape = layer.config.shape,
                         .rule = layer.config.rule,
                         .rows = pass.rows,
                         .state = pass.Piece(layer.state.fast_weight),
                         .replay = pass.Replay(layer.state.deferred)});
}

}  // namespace palimpsest
