#include "kernels/fast_weight_mixer/fast_weight_mixer.h"

#include "kernels/common/device.h"

namespace palimpsest {
namespace {

struct OneByOne {
  const ExecContext& ctx;
  void operator()(const ShortConvParams& params) const { ShortConv(ctx, params); }
  void operator()(const FeatureMapParams& params) const { FeatureMap(ctx, params); }
  void operator()(const GateParams& params) const { Gate(ctx, params); }
  void operator()(const AttentionNormParams& params) const { AttentionNorm(ctx, params); }
  void operator()(const FastWeightParams& params) const { FastWeight(ctx, params); }
  void operator()(const RmsNormParams& params) const { RmsNorm(ctx, params); }
};

// Without the first rows. Ops on sequences count from a batch's first row, the others from their own.
FeatureMapParams After(FeatureMapParams p, int32_t rows) {
  p.rows -= rows;
  p.x += rows * p.ldx;
  p.y += rows * p.ldy;
  return p;
}

GateParams After(GateParams p, int32_t rows) {
  p.rows -= rows;
  if (p.b != nullptr) p.b += rows * p.ldb;
  if (p.beta != nullptr) p.beta += int64_t{rows} * p.heads;
  if (p.log_decay == nullptr) return p;
  p.a += rows * p.lda;
  p.log_decay += rows * p.decays();
  return p;
}

RmsNormParams After(RmsNormParams p, int32_t rows) {
  p.rows -= rows;
  p.x += rows * p.ldx;
  if (p.gate != nullptr) p.gate += rows * p.ldgate;
  p.y += rows * p.ldy;
  return p;
}

// Of a mixer that has fused steps.
FastWeightMixerParams AfterSteps(FastWeightMixerParams mixer) {
  const int32_t steps = mixer.memory.rows.num_steps;
  mixer.memory.rows = mixer.memory.rows.AfterSteps();
  if (mixer.conv) mixer.conv->rows = mixer.memory.rows;
  mixer.query = After(mixer.query, steps);
  mixer.key = After(mixer.key, steps);
  if (mixer.value) mixer.value = After(*mixer.value, steps);
  if (mixer.gate) mixer.gate = After(*mixer.gate, steps);
  if (mixer.norm) mixer.norm = After(*mixer.norm, steps);
  return mixer;
}

}  // namespace

bool HasFusedSteps(const FastWeightMixerParams& mixer) {
  const auto decays_fit = [](const GateParams& gate) {
    return gate.decay_kind == DecayKind::kSoftplus && gate.decay_channels == 1 && gate.a_log != nullptr &&
           gate.dt_bias != nullptr;
  };
  const FastWeightParams& memory = mixer.memory;
  const bool values_fit = !mixer.value || (IsElementwise(mixer.value->map) && mixer.value->norm == KeyNorm::kNone);
  return HasRegisterForm(memory.shape.key_dim) && !DecaysChannels(memory.rule) && memory.sub_steps == 1 &&
         !mixer.attention_norm && IsElementwise(mixer.query.map) && IsElementwise(mixer.key.map) && values_fit &&
         (mixer.gate || !Corrects(memory.rule)) && (!DecaysHeads(memory.rule) || decays_fit(*mixer.gate));
}

void FastWeightMixer(const ExecContext& ctx, const FastWeightMixerParams& params) {
  const OneByOne one_by_one{ctx};
  const RaggedRows& rows = params.memory.rows;
  if (ctx.device == nullptr || rows.num_steps <= 0 || !HasFusedSteps(params)) {
    return ForEachOp(params, one_by_one);
  }
  ctx.device->Run(params);
  if (rows.num_steps < rows.num_sequences) ForEachOp(AfterSteps(params), one_by_one);
}

}  // namespace palimpsest
