#include "server/model/layers/fast_weight.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <utility>

#include "kernels/fast_weight_mixer/fast_weight_mixer.h"

namespace palimpsest {
namespace {

// The factors of the projections that have two, from the first, which is there.
void RunSecondFactors(const Pass& pass, const FastWeightLayer& layer) {
  const float* const projected = pass.buffers.projected.data();
  const auto run = [&](const PackedLinear& matrix, Role down, float* to, const AlignedArray<float>* bias) {
    if (matrix.out() == 0) return;
    pass.Project(matrix, {.x = projected + layer.projections.column(down), .ldx = layer.projections.stride()}, to,
                 pass.count, {.bias = bias});
  };
  run(layer.gate_up, Role::kGateDown, pass.buffers.gate.data(), &layer.gate_bias);
  run(layer.decay_up, Role::kDecayDown, pass.buffers.decay.data(), nullptr);
}

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
    // The convolution does a map that is a SiLU, unless it has one before the map.
    const bool does_map = map == FeatureMapKind::kSilu && !config.conv->silu_keys;
    const bool silu = does_map || config.conv->silu_keys;
    mixer.conv = {.rows = pass.rows,
                  .channels = static_cast<int32_t>(config.conv_channels()),
                  .width = config.conv->width,
                  .weight = layer.conv.data(),
                  .bias = layer.conv_bias.size() == 0 ? nullptr : layer.conv_bias.data(),
                  .linear_channels = static_cast<int32_t>(silu ? 0 : config.query_width() + config.key_width()),
                  .activation = ConvActivation::kSilu,
                  .tail = pass.Piece(layer.state.conv_tail),
                  .x = from,
                  .ldx = ld_from,
                  .y = mapped,
                  .ldy = ld};
    if (does_map) map = FeatureMapKind::kIdentity;
    silu_values = false;
    from = mapped;
    ld_from = ld;
  }
  const bool same_map = layer.key_map.size() == 0;
  mixer.query = {.rows = pass.num_rows(),
                 .heads = shape.heads,
                 .dim = config.head_dim,
                 .map = map,
                 .rolls = config.features.dpfp_rolls,
                 .projections = config.features.favor_projections,
                 .projection = layer.query_map.data(),
                 .norm = config.features.query_norm,
                 // A denominator is the place for the scale where there is one.
                 .scale = config.attention_norm ? 1.0f : config.features.query_scale,
                 .x = from,
                 .ldx = ld_from,
                 .y = mapped,
                 .ldy = ld};
  mixer.key = mixer.query;
  mixer.key.heads = config.sub_steps * shape.heads;
  mixer.key.projection = same_map ? layer.query_map.data() : layer.key_map.data();
  mixer.key.norm = config.features.key_norm;
  mixer.key.scale = 1.0f;
  mixer.key.x = from + layer.projections.column(Role::kKey);
  mixer.key.y = mapped + config.mapped_query_width();
  mixer.memory.q = mixer.query.y;
  mixer.memory.k = mixer.key.y;
  mixer.memory.v = from + layer.projections.column(Role::kValue);
  mixer.memory.ldq = mixer.memory.ldk = ld;
  mixer.memory.ldv = ld_from;
  if (!silu_values) return;
  mixer.value = {.rows = pass.num_rows(),
                 .heads = config.betas(),
                 .dim = shape.value_dim,
                 .map = FeatureMapKind::kSilu,
                 .x = mixer.memory.v,
                 .ldx = ld_from,
                 .y = mapped + config.mapped_query_width() + config.mapped_key_width(),
                 .ldy = ld};
  mixer.memory.v = mixer.value->y;
  mixer.memory.ldv = ld;
}

// The writing strengths and the decays.
void AddGates(const Pass& pass, const FastWeightLayer& layer, FastWeightMixerParams& mixer) {
  const FastWeightConfig& config = layer.config;
  Workspace::Buffers& buffers = pass.buffers;
  const auto column = [&](Role role) { return buffers.projected.data() + layer.projections.column(role); };
  if (!Corrects(config.rule) && !Decays(config.rule)) return;
  GateParams gate{.rows = pass.num_rows(), .heads = config.betas()};
  if (Corrects(config.rule)) {
    gate.b = config.beta.learned ? column(Role::kBeta) : nullptr;
    gate.ldb = layer.projections.stride();
    gate.beta_scale = config.beta.scale;
    gate.beta = buffers.beta.data();
    mixer.memory.beta = gate.beta;
  }
  if (Decays(config.rule)) {
    const bool low_rank = config.decay.rank > 0;
    gate.a = low_rank ? buffers.decay.data() : column(Role::kDecay);
    gate.lda = low_rank ? config.decays() : layer.projections.stride();
    gate.a_log = config.decay.rate ? layer.decay_rate.data() : nullptr;
    gate.dt_bias = layer.decay_bias.data();
    gate.log_decay = buffers.log_decay.data();
    mixer.memory.log_decay = gate.log_decay;
    gate.decay_kind = config.decay.kind;
    gate.decay_heads = config.shape.value_heads;
    gate.decay_channels = DecaysChannels(config.rule) ? config.shape.key_dim : 1;
    gate.lower_bound = config.decay.lower_bound;
    gate.divisor = config.decay.divisor;
  }
  mixer.gate = gate;
}

// buffers.mixed = what the fast weights give for the projections.
void RunMemory(const Pass& pass, const FastWeightLayer& layer) {
  Workspace::Buffers& buffers = pass.buffers;
  const FastWeightConfig& config = layer.config;
  const FastWeightShape& shape = config.shape;
  FastWeightMixerParams mixer;
  AddQueryKeyValue(pass, layer, mixer);
  AddGates(pass, layer, mixer);
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
                            .beta = Corrects(config.rule) ? buffers.beta.data() : nullptr};
  }
  FastWeightParams& memory = mixer.memory;
  memory.shape = shape;
  memory.rule = config.rule;
  memory.sub_steps = config.sub_steps;
  memory.rows = pass.rows;
  memory.state = pass.Piece(layer.state.fast_weight);
  memory.out = buffers.mixed.data();
  memory.ldout = config.output_width();
  memory.round_products = pass.bf16_math == LinearMath::kBF16;
  memory.replay = pass.Replay(layer.state.deferred);
  if (config.output.norm) {
    const bool gated = config.output.gate != GateActivation::kNone, low_rank = config.output.gate_rank > 0;
    const float* const gate = !gated     ? nullptr
                              : low_rank ? buffers.gate.data()
                                         : buffers.projected.data() + layer.projections.column(Role::kGate);
    mixer.norm = {.rows = pass.num_rows(),
                  .groups = shape.value_heads,
                  .dim = shape.value_dim,
                  .eps = config.output.eps,
                  .x = buffers.mixed.data(),
                  .ldx = config.output_width(),
                  .weight = layer.output_norm.data(),
                  .gate_activation = config.output.gate,
                  .gate = gate,
                  .ldgate = low_rank ? config.output_width() : layer.projections.stride(),
                  .y = buffers.mixed.data(),
                  .ldy = config.output_width()};
  }
  FastWeightMixer(pass.ctx, mixer);
}

// A layer's tensors with those heads that stand for `key_groups` neighbors written out as many times.
class UngroupedTensors {
 public:
  UngroupedTensors(const FastWeightConfig& config, const TensorsByRole& grouped) : tensors_(grouped) {
    if (config.key_groups == 1) return;
    const int64_t K = config.head_dim, V = config.shape.value_dim, decays = config.decays() / config.shape.value_heads;
    const std::pair<Role, int64_t> rows_of_head[] = {
        {Role::kKey, K},          {Role::kValue, V},          {Role::kDecay, decays},
        {Role::kDecayUp, decays}, {Role::kDecayBias, decays}, {Role::kKeyConv, K},
        {Role::kValueConv, V},    {Role::kKeyConvBias, K},    {Role::kValueConvBias, V}};
    for (const auto& [role, rows] : rows_of_head) {
      if (const TensorView* const tensor = grouped.Find(role)) Repeat(role, *tensor, rows, config.key_groups);
    }
  }

  const TensorsByRole& tensors() const { return tensors_; }

 private:
  void Repeat(Role role, const TensorView& from, int64_t rows, int32_t times) {
    const int64_t block = from.bytes() / from.shape[0] * rows;
    AlignedBytes& bytes = bytes_.emplace_back(from.bytes() * times);
    for (int64_t i = 0; i < from.bytes() / block; ++i) {
      for (int32_t t = 0; t < times; ++t) {
        std::memcpy(bytes.data() + (i * times + t) * block, from.data + i * block, block);
      }
    }
    TensorView& view = views_.emplace_back(from);
    view.data = bytes.data();
    view.shape[0] *= times;
    tensors_.Put(role, &view);
  }

  TensorsByRole tensors_;
  std::deque<AlignedBytes> bytes_;
  std::deque<TensorView> views_;
};

// FeatureMapParams::projection of a learned map.
AlignedArray<float> LearnedMap(FeatureMapKind map, int32_t dim, const TensorsByRole& tensors,
                               const std::array<Role, 4>& roles) {
  const int32_t outputs = LearnedOutputs(map, dim);
  AlignedArray<float> packed(ProjectionFloats(map, dim, 0));
  for (int32_t m = 0; m * dim < outputs; ++m) {
    const AlignedArray<float> matrix = Floats(tensors[roles[2 * m]]), bias = Floats(tensors.Find(roles[2 * m + 1]));
    for (int64_t o = 0; o < dim; ++o) {
      for (int64_t i = 0; i < dim; ++i) packed[i * outputs + m * dim + o] = matrix[o * dim + i];
      packed[int64_t{dim} * outputs + m * dim + o] = bias.size() == 0 ? 0.0f : bias[o];
    }
  }
  return packed;
}

constexpr std::array<Role, 4> kQueryMapRoles = {Role::kQueryMap, Role::kQueryMapBias, Role::kQueryMap2,
                                                Role::kQueryMap2Bias};
constexpr std::array<Role, 4> kKeyMapRoles = {Role::kKeyMap, Role::kKeyMapBias, Role::kKeyMap2, Role::kKeyMap2Bias};

void AddLearnedMap(FeatureMapKind map, int64_t dim, const std::array<Role, 4>& roles, std::vector<TensorSpec>& specs) {
  for (const int m : {0, 1}) {
    if (m == 1 && map != FeatureMapKind::kElementwiseProduct) return;
    specs.push_back({roles[2 * m], {dim, dim}});
    if (map != FeatureMapKind::kT2r) specs.push_back({roles[2 * m + 1], {dim}});
  }
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
  const int64_t groups = config.key_groups, queries = config.query_width(), keys = config.key_width() / groups,
                values = config.value_width() / groups, outputs = config.output_width();
  std::vector<TensorSpec> specs = {
      {Role::kQuery, {queries, hidden}}, {Role::kKey, {keys, hidden}}, {Role::kValue, {values, hidden}}};
  if (config.output.gate != GateActivation::kNone) {
    const int64_t rank = config.output.gate_rank;
    if (rank == 0) specs.push_back({Role::kGate, {outputs, hidden}});
    if (rank > 0) specs.push_back({Role::kGateDown, {rank, hidden}});
    if (rank > 0) specs.push_back({Role::kGateUp, {outputs, rank}});
    if (config.output.gate_bias) specs.push_back({Role::kGateBias, {outputs}});
  }
  if (config.beta.learned) specs.push_back({Role::kBeta, {config.betas(), hidden}});
  if (Decays(config.rule)) {
    const int64_t rank = config.decay.rank, decays = config.decays() / groups;
    if (rank == 0) specs.push_back({Role::kDecay, {decays, hidden}});
    if (rank > 0) specs.push_back({Role::kDecayDown, {rank, hidden}});
    if (rank > 0) specs.push_back({Role::kDecayUp, {decays, rank}});
    if (config.decay.rate) specs.push_back({Role::kDecayRate, {config.shape.value_heads}});
    specs.push_back({Role::kDecayBias, {decays}});
  }
  const FeatureMapKind map = config.features.map;
  if (map == FeatureMapKind::kFavor) {
    specs.push_back({Role::kFeatureProjection, {config.features.favor_projections, config.head_dim}});
  }
  if (IsLearned(map)) {
    AddLearnedMap(map, config.head_dim, kQueryMapRoles, specs);
    if (!config.features.tied) AddLearnedMap(map, config.head_dim, kKeyMapRoles, specs);
  }
  if (config.conv) {
    const struct {
      Role weight, bias;
      int64_t channels;
    } convs[] = {{Role::kQueryConv, Role::kQueryConvBias, queries},
                 {Role::kKeyConv, Role::kKeyConvBias, keys},
                 {Role::kValueConv, Role::kValueConvBias, values}};
    for (const auto& [weight, bias, channels] : convs) {
      specs.push_back({weight, {channels, 1, config.conv->width}});
      if (config.conv->bias) specs.push_back({bias, {channels}});
    }
  }
  if (config.output.norm && config.output.weight) specs.push_back({Role::kOutputNorm, {config.shape.value_dim}});
  specs.push_back({Role::kOutput, {hidden, outputs}});
  return specs;
}

FastWeightLayer Load(const FastWeightConfig& config, const TensorsByRole& grouped, int64_t, Device* device) {
  const UngroupedTensors ungrouped(config, grouped);
  const TensorsByRole& tensors = ungrouped.tensors();
  FastWeightLayer layer{.config = config};
  layer.projections = StackedLinear(tensors,
                                    {Role::kQuery, Role::kKey, Role::kValue, Role::kGate, Role::kGateDown, Role::kBeta,
                                     Role::kDecay, Role::kDecayDown},
                                    device);
  if (config.raw_query) layer.raw_query = Pack(tensors[Role::kQuery], device);
  if (config.output.gate_rank > 0) layer.gate_up = Pack(tensors[Role::kGateUp], device);
  layer.gate_bias = Floats(tensors.Find(Role::kGateBias));
  if (Decays(config.rule) && config.decay.rank > 0) layer.decay_up = Pack(tensors[Role::kDecayUp], device);
  layer.decay_rate = Floats(tensors.Find(Role::kDecayRate));
  layer.decay_bias = Floats(tensors.Find(Role::kDecayBias));
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
  if (const TensorView* features = tensors.Find(Role::kFeatureProjection)) layer.query_map = Transposed(*features);
  if (const FeatureMapKind map = config.features.map; IsLearned(map)) {
    layer.query_map = LearnedMap(map, config.head_dim, tensors, kQueryMapRoles);
    if (!config.features.tied) layer.key_map = LearnedMap(map, config.head_dim, tensors, kKeyMapRoles);
  }
  if (config.output.norm && config.output.weight) {
    layer.output_norm = Floats(tensors[Role::kOutputNorm]);
  } else if (config.output.norm) {
    layer.output_norm = AlignedArray<float>(config.shape.value_dim);
    std::ranges::fill(layer.output_norm.span(), 1.0f);
  }
  layer.output = Pack(tensors[Role::kOutput], device);
  return layer;
}

int64_t StateFlops(const FastWeightConfig& config) {
  // Each element of a fast weight is multiplied with the query, and each write adds an outer product to it; a delta
  // rule first reads it with the key.
  const int64_t write = Corrects(config.rule) || config.rule == UpdateRule::kLowRank ? 4 : 2;
  return (write * config.sub_steps + 2) * config.shape.state_floats();
}

int64_t DeferredBytes(const FastWeightConfig& config, int32_t write_interval) {
  if (!HasReplayForm(config.shape, config.rule, config.sub_steps)) return 0;
  return config.shape.value_heads * (write_interval - 1) * FastWeightReplay::entry_floats(config.shape) *
         int64_t{sizeof(float)};
}

void Widths(const FastWeightLayer& layer, ScratchPlan& plan) {
  using Widths = PerBuffer<int64_t>;
  plan.AtLeast(&Widths::projected, layer.projections.stride());
  plan.AtLeast(&Widths::mapped, layer.config.mapped_channels());
  plan.AtLeast(&Widths::mixed, layer.config.output_width());
  plan.AtLeast(&Widths::gate, layer.gate_up.out());
  plan.AtLeast(&Widths::decay, layer.decay_up.out());
  if (Corrects(layer.config.rule)) plan.AtLeast(&Widths::beta, layer.config.betas());
  if (Decays(layer.config.rule)) plan.AtLeast(&Widths::log_decay, layer.config.decays());
}

void Mix(const Pass& pass, const FastWeightLayer& layer, const SublayerInput& input) {
  ProjectSublayerInput(pass, layer.projections, layer.raw_query, input);
  RunSecondFactors(pass, layer);
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
