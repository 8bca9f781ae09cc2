#include "server/model/layers/mlp.h"

#include "kernels/activation/activation.h"

namespace palimpsest {

std::vector<TensorSpec> Tensors(const MlpConfig& config, int64_t hidden) {
  const int64_t inner = config.inner;
  std::vector<TensorSpec> specs = {{Role::kMlpUp, {inner, hidden}}, {Role::kMlpDown, {hidden, inner}}};
  switch (config.kind) {
    case MlpConfig::Kind::kSwiglu:
      specs.insert(specs.begin(), {Role::kMlpGate, {inner, hidden}});
      break;
    case MlpConfig::Kind::kRelu:
      specs.push_back({Role::kMlpUpBias, {inner}});
      specs.push_back({Role::kMlpDownBias, {hidden}});
      break;
  }
  return specs;
}

MlpLayer Load(const MlpConfig& config, const TensorsByRole& tensors, Device* device) {
  return {.config = config,
          .up = std::move(StackedLinear(tensors, {Role::kMlpGate, Role::kMlpUp}, device).matrix()),
          .up_bias = Floats(tensors.Find(Role::kMlpUpBias)),
          .down = Pack(tensors[Role::kMlpDown], device),
          .down_bias = Floats(tensors.Find(Role::kMlpDownBias))};
}

void Widths(const MlpLayer& layer, ScratchPlan& plan) { plan.AtLeast(&PerBuffer<int64_t>::inner, layer.up.out()); }

void Run(const Pass& pass, const MlpLayer& layer, const SublayerInput& input) {
  const int32_t rows = pass.num_rows(), inner = layer.config.inner;
  const int64_t ld = layer.up.out();
  float* const up = pass.buffers.inner.data();
  const bool swiglu = layer.config.kind == MlpConfig::Kind::kSwiglu;
  const bool folds = swiglu && input.normed.norm != nullptr && FoldsSwiglu(layer.up);
  pass.Project(layer.up, input.normed, up, pass.count, {.bias = &layer.up_bias, .swiglu = folds});
  if (swiglu && !folds) {
    Swiglu(pass.ctx,
           {.rows = rows, .dim = inner, .gate = up, .ldgate = ld, .up = up + inner, .ldup = ld, .y = up, .ldy = ld});
  } else if (!swiglu) {
    Relu(pass.ctx, {.rows = rows, .dim = inner, .x = up, .ldx = ld, .y = up, .ldy = ld});
  }
  pass.Project(layer.down, {.x = up, .ldx = ld}, pass.buffers.x.data(), pass.count,
               {.accumulate = true, .bias = &layer.down_bias});
}

}  // namespace palimpsest
