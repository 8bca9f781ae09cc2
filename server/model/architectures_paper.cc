// The systems of "Linear Transformers Are Secretly Fast Weight Programmers" (2102.11174). The keys are those that
// training/import_lmtool.py writes; README.md lists them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/model/architectures.h"

namespace palimpsest {
namespace {

enum class Positions : uint8_t { kNone, kSinusoidal, kRelative };

// The ends of the clusters of the vocabulary, and how wide their vectors are.
void ReadClusters(ConfigKeys& keys, ModelConfig& config) {
  config.adaptive = true;
  config.embedding_size = keys.Int("embedding_size", config.hidden, 1, kMaxWidth);
  config.embedding_scale = std::sqrt(static_cast<float>(config.hidden));
  config.cutoffs = keys.TokenIds("cutoffs", -1, config.vocabulary);
  config.div_val = keys.Int("div_val", 1, 1, 64);
  int32_t previous = 0;
  for (const int32_t cutoff : config.cutoffs) {
    if (cutoff <= previous) {
      keys.Fail(absl::StrCat("'cutoffs' is [", absl::StrJoin(config.cutoffs, ", "),
                             "], expected ascending ids above 0: each is where a cluster begins"));
      config.cutoffs.clear();
      break;
    }
    previous = cutoff;
  }
  if (config.cluster_width(config.clusters() - 1) < 1) {
    keys.Fail(absl::StrCat("embedding_size ", config.embedding_size, " divided by div_val ", config.div_val,
                           " for each of ", config.clusters() - 1, " cutoffs leaves nothing"));
    config.cutoffs.clear();
  }
  config.tied_embeddings = keys.Bool("tie_word_embeddings", true);
  config.tied_projections = keys.Bools("tie_projections");
  if (!config.tied_projections.empty() && std::ssize(config.tied_projections) != config.clusters()) {
    keys.Fail(absl::StrCat("'tie_projections' has ", config.tied_projections.size(),
                           " values, expected one for each of ", config.clusters(), " clusters"));
  }
  config.tied_projections.resize(config.clusters(), false);
}

void ReadFeatureMap(ConfigKeys& keys, MixerConfig& mixer) {
  static constexpr ConfigKeys::Word<FeatureMapKind> kMaps[] = {{"elu1", FeatureMapKind::kElu1},
                                                               {"dpfp", FeatureMapKind::kDpfp},
                                                               {"favor", FeatureMapKind::kFavor},
                                                               {"identity", FeatureMapKind::kIdentity}};
  mixer.feature_map = keys.OneOf<FeatureMapKind>("feature_map", "elu1", kMaps);
  if (mixer.feature_map == FeatureMapKind::kDpfp) {
    mixer.dpfp_rolls = keys.Int("dpfp_nu", 1, 1, std::max(1, 2 * mixer.head_dim - 1));
  }
  if (mixer.feature_map == FeatureMapKind::kFavor) {
    const std::optional<int32_t> given = keys.OptionalInt("favor_features", 1, kMaxFeatures / 2);
    if (!given) keys.Fail("feature_map 'favor' needs 'favor_features': the number of random projections");
    mixer.favor_projections = given.value_or(1);
  }
  mixer.shape.key_dim = FeatureCount(mixer.feature_map, mixer.head_dim, mixer.dpfp_rolls, mixer.favor_projections);
  if (mixer.shape.key_dim > kMaxFeatures) {
    keys.Fail(absl::StrCat("the feature map gives ", mixer.shape.key_dim, " features a head, expected at most ",
                           kMaxFeatures));
    mixer.shape.key_dim = 1;
  }
}

void ReadFastWeight(ConfigKeys& keys, MixerConfig& mixer) {
  static constexpr ConfigKeys::Word<UpdateRule> kRules[] = {{"sum", UpdateRule::kSum}, {"delta", UpdateRule::kDelta}};
  static constexpr ConfigKeys::Word<KeyNorm> kNorms[] = {{"none", KeyNorm::kNone}, {"sum", KeyNorm::kSum}};
  static constexpr ConfigKeys::Word<AttentionNormKind> kAttentionNorms[] = {
      {"none", AttentionNormKind::kNone},
      {"output", AttentionNormKind::kOutput},
      {"key_and_output", AttentionNormKind::kKeyAndOutput}};
  mixer.rule = keys.OneOf<UpdateRule>("update_rule", "delta", kRules);
  ReadFeatureMap(keys, mixer);
  mixer.key_norm = keys.OneOf<KeyNorm>("qk_norm", "none", kNorms);
  mixer.attention_norm = keys.OneOf<AttentionNormKind>("attention_norm", "none", kAttentionNorms);
  mixer.scaled_denominator = keys.Bool("scaled_denominator", false);
  mixer.learned_beta = mixer.rule == UpdateRule::kDelta;
  if (mixer.attention_norm == AttentionNormKind::kKeyAndOutput && mixer.rule == UpdateRule::kSum) {
    keys.Fail("attention_norm 'key_and_output' needs update_rule 'delta': the sum rule reads nothing by its keys");
  }
  if (mixer.scaled_denominator && mixer.attention_norm == AttentionNormKind::kNone) {
    keys.Fail("'scaled_denominator' is true, but attention_norm 'none' has no denominator");
  }
}

void ReadWindow(ConfigKeys& keys, Positions positions, int32_t memory, ModelConfig& config) {
  MixerConfig& mixer = config.mixer;
  if (config.segment_length == 0) {
    keys.Fail("mixer 'softmax' needs 'segment_length': its window, without which its state would have no fixed size");
    return;
  }
  mixer.relative_positions = positions == Positions::kRelative;
  // Transformer-XL sees its segment and the memory before it; without memory the window slides from token to token.
  mixer.window_segment = mixer.relative_positions ? config.segment_length : 1;
  mixer.window_memory = mixer.relative_positions ? memory : config.segment_length - 1;
  const int32_t clamp = keys.Int("clamp_length", -1, -1, kMaxWindow);
  if (clamp > 0) mixer.largest_distance = clamp;
  mixer.shape.key_dim = mixer.head_dim;
  mixer.feature_map = FeatureMapKind::kIdentity;
  mixer.learned_beta = false;
  if (mixer.window_capacity() > kMaxWindow) {
    keys.Fail(absl::StrCat("the window has ", mixer.window_capacity(), " tokens, expected at most ", kMaxWindow));
  }
}

void Read(ConfigKeys& keys, ModelConfig& config) {
  static constexpr ConfigKeys::Word<NormPlacement> kPlacements[] = {
      {"post", NormPlacement::kPost},
      {"pre", NormPlacement::kPre},
      {"pre_raw_query", NormPlacement::kPreRawQuery},
      {"pre_normed_residual", NormPlacement::kPreNormedResidual}};
  static constexpr ConfigKeys::Word<Positions> kPositions[] = {
      {"none", Positions::kNone}, {"sinusoidal", Positions::kSinusoidal}, {"relative", Positions::kRelative}};
  static constexpr ConfigKeys::Word<MixerConfig::Kind> kKinds[] = {{"fast_weight", MixerConfig::Kind::kFastWeight},
                                                                   {"softmax", MixerConfig::Kind::kWindowAttention}};
  MixerConfig& mixer = config.mixer;
  config.layers = keys.Int("num_hidden_layers", 16, 1, kMaxLayers);
  config.mlp_inner = keys.Int("intermediate_size", 2048, 1, kMaxWidth);
  config.norm_eps = 1e-5f;
  config.layer_norm = true;
  config.swiglu = false;
  config.final_norm = false;
  config.norm_placement = keys.OneOf<NormPlacement>("norm_placement", "post", kPlacements);
  ReadClusters(keys, config);

  mixer.kind = keys.OneOf<MixerConfig::Kind>("mixer", "fast_weight", kKinds);
  mixer.shape.heads = mixer.shape.value_heads = keys.Int("num_heads", 8, 1, kMaxHeads);
  mixer.head_dim = mixer.shape.value_dim = keys.Int("head_dim", 16, 1, kMaxHeadDim);
  mixer.query_scale = 1.0f / std::sqrt(static_cast<float>(mixer.head_dim));
  mixer.key_norm = KeyNorm::kNone;
  mixer.silu_values = false;
  mixer.output_norm = false;

  const Positions positions = keys.OneOf<Positions>("positions", "none", kPositions);
  const int32_t memory = keys.Int("memory_length", 0, 0, kMaxWindow);
  config.segment_length = keys.Int("segment_length", 0, 0, kMaxWindow);
  config.sinusoidal_positions = positions == Positions::kSinusoidal;
  if (positions != Positions::kNone && config.segment_length == 0) {
    keys.Fail("'positions' needs 'segment_length': the length of the segments that the model was trained on");
  }
  if (positions != Positions::kNone && config.hidden % 2 != 0) {
    keys.Fail(absl::StrCat("'positions' needs an even hidden_size, it is ", config.hidden));
  }
  if ((memory > 0 || positions == Positions::kRelative) && !mixer.is_window()) {
    keys.Fail("'memory_length' and positions 'relative' need mixer 'softmax'");
  } else if (memory > 0 && positions != Positions::kRelative) {
    keys.Fail("'memory_length' needs positions 'relative'");
  }
  if (mixer.is_window()) {
    ReadWindow(keys, positions, memory, config);
  } else {
    ReadFastWeight(keys, mixer);
    const int32_t clamp = keys.Int("clamp_length", -1, -1, kMaxWindow);
    if (clamp > 0 && config.sinusoidal_positions && clamp < config.segment_length - 1) {
      keys.Fail(absl::StrCat("'clamp_length' is ", clamp, ", expected -1 or at least segment_length - 1, which is ",
                             config.segment_length - 1));
    }
  }
}

constexpr Architecture kArchitectures[] = {{"fwp", &Read}};

}  // namespace

std::span<const Architecture> PaperArchitectures() { return kArchitectures; }

}  // namespace palimpsest
