// From the projections of a row to what a fast-weight memory gives for it: a short convolution of q, k and v, their
// feature maps, the gates, the memory, and the norm of what it gives. Each is an op of its own; a mixer is their list.
//
// On the processor, the ops run one by one. On a device, where launches and not bytes are what a small batch of steps
// is bound by, a step goes from the first op's inputs to the last one's outputs in one launch, or two if its heads are
// large, and writes nothing of what lies between, if the mixer has that form; chunks go op by op. Which of the two a
// sequence takes depends on the mixer and on whether the sequence has one row, not on the others. They differ by
// rounding only.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/attention_norm/attention_norm.h"
#include "kernels/common/thread_pool.h"
#include "kernels/fast_weight/fast_weight.h"
#include "kernels/feature_map/feature_map.h"
#include "kernels/gate/gate.h"
#include "kernels/norm/norm.h"
#include "kernels/short_conv/short_conv.h"

namespace palimpsest {

// The ops in their order; each reads what those before it have written.
struct FastWeightMixerParams {
  std::optional<ShortConvParams> conv;  // its channels are those of q, k and v in any order; y is what the maps read
  FeatureMapParams query;               // without a convolution, q, k and v are columns of the same rows
  FeatureMapParams key;
  std::optional<FeatureMapParams> value;
  std::optional<GateParams> gate;
  std::optional<AttentionNormParams> attention_norm;
  FastWeightParams memory;
  std::optional<RmsNormParams> norm;  // of each value head
};
void FastWeightMixer(const ExecContext& ctx, const FastWeightMixerParams& params);

// Calls run(params) for each of the ops.
template <typename Run>
void ForEachOp(const FastWeightMixerParams& mixer, const Run& run) {
  if (mixer.conv) run(*mixer.conv);
  run(mixer.query);
  run(mixer.key);
  if (mixer.value) run(*mixer.value);
  if (mixer.gate) run(*mixer.gate);
  if (mixer.attention_norm) run(*mixer.attention_norm);
  run(mixer.memory);
  if (mixer.norm) run(*mixer.norm);
}

// Whether a device has that form for its steps:
//
//                   steps in one launch or two           op by op
//   key size        16, 32, 64, 128, 256                 others
//   rule            sum, delta, gated delta              with decays by channel, low rank
//   writes to a row one                                  several
//   maps            of one value each, normalised or not of several values: DPFP, FAVOR+, learned ones
//   map of values   of one value each, not normalised    others
//   gates           those of the rule; the decay by      none where the rule has a beta; other kinds of decay, without
//                   softplus, with A_log and a bias      A_log or without a bias
//   attention norm  none                                 any
bool HasFusedSteps(const FastWeightMixerParams& mixer);

}  // namespace palimpsest
