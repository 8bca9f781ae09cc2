// A model's architecture as data, read from a checkpoint's config.json.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/fast_weight/fast_weight.h"
#include "kernels/feature_map/feature_map.h"
#include "kernels/norm/norm.h"

namespace palimpsest {

// What the accumulator z, the sum of all mapped keys, divides (2102.11174, eq. 18 and section 4.2).
enum class AttentionNormKind : uint8_t { kNone, kOutput, kKeyAndOutput };

// The settings of the mixers. Every fast-weight variant is a value of this struct; so is softmax attention over a
// window, the one other mixer.
struct MixerConfig {
  enum class Kind : uint8_t { kFastWeight, kWindowAttention };
  Kind kind = Kind::kFastWeight;

  // key_dim counts features, after the map. Of window attention: heads, key_dim and value_dim are those of q, k and v.
  FastWeightShape shape;
  int32_t head_dim = 0;  // of q and k before the map: what they are projected to
  UpdateRule rule = UpdateRule::kDelta;
  FeatureMapKind feature_map = FeatureMapKind::kSilu;
  int32_t dpfp_rolls = 0;         // nu
  int32_t favor_projections = 0;  // m
  KeyNorm key_norm = KeyNorm::kL2;
  float query_scale = 1.0f;  // of the output, put on the query
  AttentionNormKind attention_norm = AttentionNormKind::kNone;
  bool scaled_denominator = false;  // the denominator has query_scale, too
  bool silu_values = true;          // v is activated
  bool output_norm = true;          // RMSNorm of each head's output
  bool learned_beta = true;         // else beta = beta_scale
  float beta_scale = 1.0f;          // 2 with allow_neg_eigval
  bool output_gate = false;         // gated RMSNorm of the output
  GateActivation gate_activation = GateActivation::kNone;
  int32_t conv_width = 0;  // 0: no short convolution
  bool conv_bias = false;  // usually found in the weight file, not in the config

  // Window attention: the token at position t sees positions from max(0, floor(t / segment) * segment - memory) on.
  int32_t window_segment = 0;
  int32_t window_memory = 0;
  bool relative_positions = false;     // Transformer-XL
  int32_t largest_distance = 1 << 30;  // farther ones count as this

  bool is_window() const { return kind == Kind::kWindowAttention; }
  int64_t query_width() const { return int64_t{shape.heads} * head_dim; }
  int64_t key_width() const { return int64_t{shape.heads} * shape.key_dim; }
  int64_t value_width() const { return int64_t{shape.value_heads} * shape.value_dim; }
  int64_t conv_channels() const { return 2 * query_width() + value_width(); }
  int64_t mapped_channels() const { return 2 * key_width() + value_width(); }
  int32_t window_capacity() const { return window_segment + window_memory; }
};

// Where the norms stand around a sub-layer f.
enum class NormPlacement : uint8_t {
  kPre,                // x + f(norm(x))
  kPost,               // norm(x + f(x))
  kPreRawQuery,        // as kPre, but the mixer's query is made from x
  kPreNormedResidual,  // as kPre, but around the mixer x is norm(x), too
};

struct ModelConfig {
  std::string architecture;  // model_type
  int32_t vocabulary = 0;
  int32_t hidden = 0;
  int32_t layers = 0;
  int32_t mlp_inner = 0;
  float norm_eps = 1e-6f;
  bool layer_norm = false;  // with mean and bias; else RMSNorm
  NormPlacement norm_placement = NormPlacement::kPre;
  bool swiglu = true;      // else a ReLU with biases
  bool final_norm = true;  // before the head
  bool tied_embeddings = false;
  MixerConfig mixer;                // of every layer
  int32_t bos_token = -1;           // -1: none
  std::vector<int32_t> eos_tokens;  // sampling one of them ends a reply

  // Adaptive input and output (1809.10853, 1609.04309): ids are cut into clusters at these, ascending. Cluster i has
  // vectors of embedding_size / div_val^i, projected to and from `hidden` where the two differ. Not adaptive: one table
  // of `hidden` columns and a head without bias.
  bool adaptive = false;
  std::vector<int32_t> cutoffs;
  int32_t embedding_size = 0;
  int32_t div_val = 1;
  float embedding_scale = 1.0f;
  std::vector<bool> tied_projections;  // of each output cluster, with that of the input

  // Sinusoids are added to the input; they count down from segment_length - 1, so a context ends there.
  bool sinusoidal_positions = false;
  int32_t segment_length = 0;  // that it was trained on; 0: none

  // Tokens that a context may have, the pending one included; 0: any number.
  int64_t max_context() const { return sinusoidal_positions ? int64_t{segment_length} + 1 : 0; }
  // Whether the numbers depend on how many tokens came before.
  bool counts_tokens() const { return sinusoidal_positions || mixer.is_window(); }
  int32_t clusters() const { return static_cast<int32_t>(cutoffs.size()) + 1; }
  int32_t cluster_begin(int32_t i) const { return i == 0 ? 0 : cutoffs[i - 1]; }
  int32_t cluster_end(int32_t i) const { return i + 1 == clusters() ? vocabulary : cutoffs[i]; }
  int32_t cluster_width(int32_t i) const;

  // Reads config.json (Hugging Face form of fla's delta_net and gated_deltanet; spec of each key in README.md).
  // INVALID_ARGUMENT names the key, what it says and what would be accepted: unknown model_type, an unsupported setting
  // (attn, attnres_block_size, hidden_act, ...), a missing or contradictory value, a size out of bounds.
  static absl::StatusOr<ModelConfig> FromJson(std::string_view json);

  // Adds the end-of-text ids (`eos_token_id`, one or a list) of a generation_config.json; its other keys are about
  // sampling and are the client's to choose. INVALID_ARGUMENT: not JSON, or an id outside the vocabulary.
  absl::Status AddGenerationConfig(std::string_view json);

  // Both files of a checkpoint; generation_config.json may be missing. NOT_FOUND: no config.json.
  static absl::StatusOr<ModelConfig> FromFolder(const std::string& folder);

  // The settings that change what the numbers mean, as text: part of a model's fingerprint. Two configs that say the
  // same in different words (defaults left out, sizes given as ratios) give the same text. Token ids are not in it.
  std::string Canonical() const;
};

}  // namespace palimpsest
