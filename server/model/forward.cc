// The forward pass, written once for every architecture.
#include "server/model/forward.h"

#include <utility>
#include <variant>

namespace palimpsest {
namespace {

// What a sub-layer reads: x itself, or x normalized, before or on the way.
SublayerInput InputOf(const Pass& pass, NormPlacement placement, const NormLayer& norm, bool folds) {
  Workspace::Buffers& buffers = pass.buffers;
  const float* const x = buffers.x.data();
  const int64_t D = pass.hidden;
  if (placement == NormPlacement::kPost) return {.normed = {.x = x, .ldx = D}, .raw = x};
  if (placement == NormPlacement::kPre && folds) return {.normed = {.x = x, .ldx = D, .norm = &norm}, .raw = x};
  pass.Normalize(norm, x, buffers.h.data(), pass.num_rows());
  return {.normed = {.x = buffers.h.data(), .ldx = D}, .raw = x};
}

// x after a sub-layer has added to it.
void FinishSublayer(const Pass& pass, NormPlacement placement, const NormLayer& norm) {
  float* const x = pass.buffers.x.data();
  if (placement == NormPlacement::kPost) pass.Normalize(norm, x, x, pass.num_rows());
}

// The token mixer on the residual stream x, its norm where the architecture puts it.
template <typename Mixer>
void MixTokens(const Pass& pass, const Layer& layer, const Mixer& mixer) {
  Workspace::Buffers& buffers = pass.buffers;
  const bool folds = pass.FoldsNorm(layer.mixer_norm, mixer.projections.matrix());
  Mix(pass, mixer, InputOf(pass, layer.placement, layer.mixer_norm, folds));
  if (layer.placement == NormPlacement::kPreNormedResidual) std::swap(buffers.x, buffers.h);
  pass.Project(mixer.output, {.x = buffers.mixed.data(), .ldx = mixer.output.in()}, buffers.x.data(), pass.count,
               {.accumulate = true});
  FinishSublayer(pass, layer.placement, layer.mixer_norm);
}

void MixChannels(const Pass& pass, const Layer& layer, const MlpLayer& mlp) {
  const bool folds = pass.FoldsNorm(layer.channel_norm, mlp.up, &mlp.up_bias);
  Run(pass, mlp, InputOf(pass, layer.placement, layer.channel_norm, folds));
  FinishSublayer(pass, layer.placement, layer.channel_norm);
}

}  // namespace

void RunPass(const ModelWeights& weights, const Pass& pass, float* logits) {
  EmbedTokens(pass, weights.embedding);
  for (const Layer& layer : weights.layers) {
    std::visit([&](const auto& mixer) { MixTokens(pass, layer, mixer); }, layer.mixer);
    std::visit([&](const auto& channel) { MixChannels(pass, layer, channel); }, layer.channel);
  }
  pass.AdvanceReplays();
  ComputeLogits(pass, weights.head, logits);
}

}  // namespace palimpsest
