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
#include "server/model/architectures/architecture.h"

namespace palimpsest {
namespace {

constexpr float kEps = 1e-5f;  // of all norms

enum class Positions : uint8_t { kNone, kSinusoidal, kRelative };

// The ends of the clusters of the vocabulary, and how wide their vectors are.
void ReadClusters(ConfigKeys& keys, ModelConfig& config) {
  EmbeddingConfig& embedding = config.embedding;
  embedding.adaptive = true;
  embedding.size = keys.Int("embedding_size", config.hidden, 1, kMaxWidth);
  embedding.scale = std::sqrt(static_cast<float>(config.hidden));
  embedding.cutoffs = keys.TokenIds("cutoffs", -1, config.vocabulary);
  embedding.div_val = keys.Int("div_val", 1, 1, 64);
  int32_t previous = 0;
  for (const int32_t cutoff : embedding.cutoffs) {
    if (cutoff <= previous) {
      keys.Fail(absl::StrCat("'cutoffs' is [", absl::StrJoin(embedding.cutoffs, ", "),
                             "], expected ascending ids above 0: each is where a cluster begins"));
      embedding.cutoffs.clear();
      break;
    }
    previous = cutoff;
  }
  if (config.cluster_width(config.clusters() - 1) < 1) {
    keys.Fail(absl::StrCat("embedding_size ", embedding.size, " divided by div_val ", embedding.div_val,
                           " for each of ", config.clusters() - 1, " cutoffs leaves nothing"));
    embedding.cutoffs.clear();
  }
  HeadConfig& head = config.head;
  head.tied = keys.Bool("tie_word_embeddings", true);
  head.tied_projections = keys.Bools("tie_projections");
  if (!head.tied_projections.empty() && std::ssize(head.tied_projections) != config.clusters()) {
    keys.Fail(absl::StrCat("'tie_projections' has ", head.tied_projections.size(), " values, expected one for each of ",
                           config.clusters(), " clusters"));
  }
  head.tied_projections.resize(config.clusters(), false);
}

void ReadFeatureMap(ConfigKeys& keys, FastWeightConfig& mixer) {
  static constexpr ConfigKeys::Word<FeatureMapKind> kMaps[] = {{"elu1", FeatureMapKind::kElu1},
                                                               {"dpfp", FeatureMapKind::kDpfp},
                                                               {"favor", FeatureMapKind::kFavor},
                                                               {"identity", FeatureMapKind::kIdentity}};
  FeatureConfig& features = mixer.features;
  features.map = keys.OneOf<FeatureMapKind>("feature_map", "elu1", kMaps);
  if (features.map == FeatureMapKind::kDpfp) {
    features.dpfp_rolls = keys.Int("dpfp_nu", 1, 1, std::max(1, 2 * mixer.head_dim - 1));
  }
  if (features.map == FeatureMapKind::kFavor) {
    const std::optional<int32_t> given = keys.OptionalInt("favor_features", 1, kMaxFeatures / 2);
    if (!given) keys.Fail("feature_map 'favor' needs 'favor_features': the number of random projections");
    features.favor_projections = given.value_or(1);
  }
  int32_t& count = mixer.shape.key_dim;
  count = FeatureCount(features.map, mixer.head_dim, features.dpfp_rolls, features.favor_projections);
  if (count <= kMaxFeatures) return;
  keys.Fail(absl::StrCat("the feature map gives ", count, " features a head, expected at most ", kMaxFeatures));
  count = 1;
}

FastWeightConfig ReadFastWeight(ConfigKeys& keys, int32_t heads, int32_t head_dim) {
  enum class AttentionNorm : uint8_t { kNone, kOutput, kKeyAndOutput };
  static constexpr ConfigKeys::Word<UpdateRule> kRules[] = {{"sum", UpdateRule::kSum}, {"delta", UpdateRule::kDelta}};
  static constexpr ConfigKeys::Word<KeyNorm> kNorms[] = {{"none", KeyNorm::kNone}, {"sum", KeyNorm::kSum}};
  static constexpr ConfigKeys::Word<AttentionNorm> kAttentionNorms[] = {
      {"none", AttentionNorm::kNone},
      {"output", AttentionNorm::kOutput},
      {"key_and_output", AttentionNorm::kKeyAndOutput}};
  FastWeightConfig mixer{.head_dim = head_dim};
  mixer.shape.heads = mixer.shape.value_heads = heads;
  mixer.shape.value_dim = head_dim;
  mixer.silu_values = false;
  mixer.output.norm = false;
  mixer.rule = keys.OneOf<UpdateRule>("update_rule", "delta", kRules);
  ReadFeatureMap(keys, mixer);
  mixer.features.query_norm = mixer.features.key_norm = keys.OneOf<KeyNorm>("qk_norm", "none", kNorms);
  mixer.features.query_scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  mixer.beta.learned = mixer.rule == UpdateRule::kDelta;
  const auto norm = keys.OneOf<AttentionNorm>("attention_norm", "none", kAttentionNorms);
  const bool scaled = keys.Bool("scaled_denominator", false);
  if (norm != AttentionNorm::kNone) {
    mixer.attention_norm = {
        .keys_too = norm == AttentionNorm::kKeyAndOutput, .scaled_denominator = scaled, .eps = kEps};
  }
  if (norm == AttentionNorm::kKeyAndOutput && mixer.rule == UpdateRule::kSum) {
    keys.Fail("attention_norm 'key_and_output' needs update_rule 'delta': the sum rule reads nothing by its keys");
  }
  if (scaled && norm == AttentionNorm::kNone) {
    keys.Fail("'scaled_denominator' is true, but attention_norm 'none' has no denominator");
  }
  return mixer;
}

AttentionConfig ReadWindow(ConfigKeys& keys, const AttentionConfig& heads, int32_t memory, int32_t segment_length) {
  AttentionConfig mixer = heads;
  mixer.scale = 1.0f / std::sqrt(static_cast<float>(mixer.head_dim));
  // Transformer-XL sees its segment and the memory before it; without memory the window slides from token to token.
  mixer.segment = mixer.relative_positions ? segment_length : 1;
  mixer.memory = mixer.relative_positions ? memory : std::max(segment_length - 1, 0);
  const int32_t clamp = keys.Int("clamp_length", -1, -1, kMaxWindow);
  if (clamp > 0) mixer.largest_distance = clamp;
  if (segment_length == 0) {
    keys.Fail("mixer 'softmax' needs 'segment_length': its window, without which its state would have no fixed size");
  } else if (mixer.capacity() > kMaxWindow) {
    keys.Fail(absl::StrCat("the window has ", mixer.capacity(), " tokens, expected at most ", kMaxWindow));
  }
  return mixer;
}

void Read(ConfigKeys& keys, ModelConfig& config) {
  enum class Placement : uint8_t { kPost, kPre, kPreRawQuery, kPreNormedResidual };
  enum class Kind : uint8_t { kFastWeight, kSoftmax };
  static constexpr ConfigKeys::Word<Placement> kPlacements[] = {{"post", Placement::kPost},
                                                                {"pre", Placement::kPre},
                                                                {"pre_raw_query", Placement::kPreRawQuery},
                                                                {"pre_normed_residual", Placement::kPreNormedResidual}};
  static constexpr ConfigKeys::Word<Positions> kPositions[] = {
      {"none", Positions::kNone}, {"sinusoidal", Positions::kSinusoidal}, {"relative", Positions::kRelative}};
  static constexpr ConfigKeys::Word<Kind> kKinds[] = {{"fast_weight", Kind::kFastWeight}, {"softmax", Kind::kSoftmax}};
  const int32_t layers = keys.Int("num_hidden_layers", 16, 1, kMaxLayers);
  LayerConfig layer{.norm = {.kind = NormConfig::Kind::kLayer, .eps = kEps}};
  layer.channel = MlpConfig{.kind = MlpConfig::Kind::kRelu, .inner = keys.Int("intermediate_size", 2048, 1, kMaxWidth)};
  const auto placement = keys.OneOf<Placement>("norm_placement", "post", kPlacements);
  layer.placement = placement == Placement::kPost                ? NormPlacement::kPost
                    : placement == Placement::kPreNormedResidual ? NormPlacement::kPreNormedResidual
                                                                 : NormPlacement::kPre;
  ReadClusters(keys, config);

  const bool softmax = keys.OneOf<Kind>("mixer", "fast_weight", kKinds) == Kind::kSoftmax;
  const int32_t heads = keys.Int("num_heads", 8, 1, kMaxHeads);
  const int32_t head_dim = keys.Int("head_dim", 16, 1, kMaxHeadDim);

  const auto positions = keys.OneOf<Positions>("positions", "none", kPositions);
  const int32_t memory = keys.Int("memory_length", 0, 0, kMaxWindow);
  config.segment_length = keys.Int("segment_length", 0, 0, kMaxWindow);
  config.embedding.sinusoids = positions == Positions::kSinusoidal;
  if (positions != Positions::kNone && config.segment_length == 0) {
    keys.Fail("'positions' needs 'segment_length': the length of the segments that the model was trained on");
  }
  if (positions != Positions::kNone && config.hidden % 2 != 0) {
    keys.Fail(absl::StrCat("'positions' needs an even hidden_size, it is ", config.hidden));
  }
  if ((memory > 0 || positions == Positions::kRelative) && !softmax) {
    keys.Fail("'memory_length' and positions 'relative' need mixer 'softmax'");
  } else if (memory > 0 && positions != Positions::kRelative) {
    keys.Fail("'memory_length' needs positions 'relative'");
  }
  const bool raw_query = placement == Placement::kPreRawQuery;
  if (softmax) {
    const AttentionConfig shape{.heads = heads,
                                .head_dim = head_dim,
                                .raw_query = raw_query,
                                .relative_positions = positions == Positions::kRelative};
    layer.mixer = ReadWindow(keys, shape, memory, config.segment_length);
  } else {
    FastWeightConfig mixer = ReadFastWeight(keys, heads, head_dim);
    mixer.raw_query = raw_query;
    layer.mixer = std::move(mixer);
    const int32_t clamp = keys.Int("clamp_length", -1, -1, kMaxWindow);
    if (clamp > 0 && config.embedding.sinusoids && clamp < config.segment_length - 1) {
      keys.Fail(absl::StrCat("'clamp_length' is ", clamp, ", expected -1 or at least segment_length - 1, which is ",
                             config.segment_length - 1));
    }
  }
  config.layers.assign(layers, layer);
}

constexpr TensorName kNames[] = {
    {Role::kMixerNorm, "model.layers.{}.attn_norm.weight"},
    {Role::kMixerNormBias, "model.layers.{}.attn_norm.bias"},
    {Role::kQuery, "model.layers.{}.attn.q_proj.weight"},
    {Role::kKey, "model.layers.{}.attn.k_proj.weight"},
    {Role::kValue, "model.layers.{}.attn.v_proj.weight"},
    {Role::kBeta, "model.layers.{}.attn.b_proj.weight"},
    {Role::kFeatureProjection, "model.layers.{}.attn.feature_projection"},
    {Role::kRelativeProjection, "model.layers.{}.attn.r_proj.weight"},
    {Role::kContentBias, "model.content_bias"},
    {Role::kPositionBias, "model.position_bias"},
    {Role::kOutput, "model.layers.{}.attn.o_proj.weight"},
    {Role::kChannelNorm, "model.layers.{}.mlp_norm.weight"},
    {Role::kChannelNormBias, "model.layers.{}.mlp_norm.bias"},
    {Role::kMlpUp, "model.layers.{}.mlp.up_proj.weight"},
    {Role::kMlpUpBias, "model.layers.{}.mlp.up_proj.bias"},
    {Role::kMlpDown, "model.layers.{}.mlp.down_proj.weight"},
    {Role::kMlpDownBias, "model.layers.{}.mlp.down_proj.bias"},
    {Role::kEmbedding, "model.embeddings.{}.weight"},
    {Role::kEmbeddingProjection, "model.embedding_projections.{}.weight"},
    {Role::kHead, "lm_head.{}.weight"},
    {Role::kHeadBias, "lm_head.{}.bias"},
    {Role::kHeadProjection, "lm_head.projections.{}.weight"},
    {Role::kHeadClusters, "lm_head.clusters.weight"},
    {Role::kHeadClusterBias, "lm_head.clusters.bias"},
};

}  // namespace

extern const Architecture kFwp;
const Architecture kFwp = {.model_type = "fwp", .read = &Read, .names = kNames};

}  // namespace palimpsest
