#include "server/model/layers/attention.h"

#include <algorithm>

#include "kernels/common/thread_pool.h"
#include "kernels/embedding/embedding.h"
#include "kernels/window_attention/window_attention.h"
#include "server/model/layers/sinusoids.h"

namespace palimpsest {
namespace {

// Keys of the distances 0 to window - 1: the sinusoid of each, projected. Some at a time: sinusoids are as wide as the
// model, which nothing has held against the window.
AlignedArray<float> RelativeKeys(const AttentionConfig& config, const TensorView& projection, int64_t hidden) {
  constexpr int32_t kMostDistances = 1024;
  const int32_t window = config.capacity();
  const int64_t width = projection.shape[0];
  const AlignedArray<float> frequencies = SinusoidFrequencies(hidden), matrix = Floats(projection);
  const PackedLinear packed = PackedLinear::Pack(DType::kF32, matrix.data(), width, hidden);
  ThreadPool pool(1);  // this is one of many tasks
  AlignedArray<float> sinusoids(std::min(window, kMostDistances) * hidden), keys(window * width);
  std::vector<int64_t> distances;
  for (int32_t begin = 0; begin < window; begin += kMostDistances) {
    const int32_t count = std::min(kMostDistances, window - begin);
    distances.resize(count);
    for (int32_t t = 0; t < count; ++t) distances[t] = std::min(begin + t, config.largest_distance);
    std::ranges::fill(sinusoids.span(), 0.0f);
    AddSinusoid({&pool}, {.rows = count,
                          .dim = static_cast<int32_t>(hidden),
                          .frequencies = frequencies.data(),
                          .positions = distances.data(),
                          .y = sinusoids.data()});
    Linear({&pool}, {.weights = &packed,
                     .x = sinusoids.data(),
                     .ldx = hidden,
                     .y = keys.data() + begin * width,
                     .ldy = width,
                     .rows = count});
  }
  return keys;
}

}  // namespace

AttentionState Pieces(const AttentionConfig& config, StateLayoutBuilder& builder) {
  return {.window = builder.Add("window", {2, config.heads, config.capacity(), config.head_dim}, DType::kF32,
                                /*position_axis=*/2)};
}

std::vector<TensorSpec> Tensors(const AttentionConfig& config, int64_t hidden) {
  const int64_t width = config.width();
  std::vector<TensorSpec> specs = {{Role::kQuery, {width, hidden}},
                                   {Role::kKey, {width, hidden}},
                                   {Role::kValue, {width, hidden}},
                                   {Role::kOutput, {hidden, width}}};
  if (config.relative_positions) {
    specs.push_back({Role::kRelativeProjection, {width, hidden}});
    specs.push_back({Role::kContentBias, {config.heads, config.head_dim}});
    specs.push_back({Role::kPositionBias, {config.heads, config.head_dim}});
  }
  return specs;
}

AttentionLayer Load(const AttentionConfig& config, const TensorsByRole& tensors, int64_t hidden, Device* device) {
  AttentionLayer layer{.config = config};
  layer.projections = StackedLinear(tensors, {Role::kQuery, Role::kKey, Role::kValue}, device);
  if (config.raw_query) layer.raw_query = Pack(tensors[Role::kQuery], device);
  layer.output = Pack(tensors[Role::kOutput], device);
  if (config.relative_positions) layer.relative = RelativeKeys(config, tensors[Role::kRelativeProjection], hidden);
  layer.content_bias = Floats(tensors.Find(Role::kContentBias));
  layer.position_bias = Floats(tensors.Find(Role::kPositionBias));
  return layer;
}

int64_t StateFlops(const AttentionConfig&) { return 0; }

void Widths(const AttentionLayer& layer, ScratchPlan& plan) {
  using Widths = PerBuffer<int64_t>;
  plan.AtLeast(&Widths::projected, layer.projections.stride());
  plan.AtLeast(&Widths::mixed, layer.config.width());
}

void Mix(const Pass& pass, const AttentionLayer& layer, const SublayerInput& input) {
  ProjectSublayerInput(pass, layer.projections, layer.raw_query, input);
  const AttentionConfig& config = layer.config;
  const float* const projected = pass.buffers.projected.data();
  const int64_t ld = layer.projections.stride();
  const auto relative = [&](const AlignedArray<float>& array) {
    return config.relative_positions ? array.data() : nullptr;
  };
  WindowAttention(pass.ctx, {.heads = config.heads,
                             .dim = config.head_dim,
                             .capacity = config.capacity(),
                             .segment = config.segment,
                             .memory = config.memory,
                             .scale = config.scale,
                             .rows = pass.rows,
                             .first_position = pass.first_position,
                             .ring = pass.Piece(layer.state.window),
                             .q = projected,
                             .ldq = ld,
                             .k = projected + layer.projections.column(Role::kKey),
                             .ldk = ld,
                             .v = projected + layer.projections.column(Role::kValue),
                             .ldv = ld,
                             .content_bias = relative(layer.content_bias),
                             .position_bias = relative(layer.position_bias),
                             .relative = relative(layer.relative),
                             .out = pass.buffers.mixed.data(),
                             .ldout = config.width()});
}

}  // namespace palimpsest
