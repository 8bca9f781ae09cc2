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

// The settings of the one fast-weight mixer. Every variant is a value of this struct.
struct MixerConfig {
  FastWeightShape shape;
  UpdateRule rule = UpdateRule::kDelta;
  FeatureMapKind feature_map = FeatureMapKind::kSilu;
  KeyNorm key_norm = KeyNorm::kL2;
  bool learned_beta = true;  // else beta = beta_scale
  float beta_scale = 1.0f;   // 2 with allow_neg_eigval
  bool output_gate = false;  // gated RMSNorm of the output
  GateActivation gate_activation = GateActivation::kNone;
  int32_t conv_width = 0;  // 0: no short convolution
  bool conv_bias = false;  // usually found in the weight file, not in the config

  int64_t key_width() const { return int64_t{shape.heads} * shape.key_dim; }
  int64_t value_width() const { return int64_t{shape.value_heads} * shape.value_dim; }
  int64_t conv_channels() const { return 2 * key_width() + value_width(); }
};

struct ModelConfig {
  std::string architecture;  // model_type
  int32_t vocabulary = 0;
  int32_t hidden = 0;
  int32_t layers = 0;
  int32_t mlp_inner = 0;
  float norm_eps = 1e-6f;
  bool tied_embeddings = false;
  MixerConfig mixer;                // of every layer
  int32_t bos_token = -1;           // -1: none
  std::vector<int32_t> eos_tokens;  // sampling one of them ends a reply

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
