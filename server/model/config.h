// A model's architecture as data, read from a checkpoint's config.json.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/model/layer_config.h"

namespace palimpsest {

// Adaptive input (1809.10853, 1609.04309): ids are cut into clusters at the cutoffs, ascending. Cluster i has vectors
// of size / div_val^i, projected to `hidden` where the two differ. Not adaptive: one table of `hidden` columns.
struct EmbeddingConfig {
  bool adaptive = false;
  std::vector<int32_t> cutoffs = {};
  int32_t size = 0;
  int32_t div_val = 1;
  float scale = 1.0f;
  // Sinusoids are added; they count down from segment_length - 1, so a context ends there.
  bool sinusoids = false;
};

// The head has the clusters of the embedding.
struct HeadConfig {
  std::optional<NormConfig> norm = {};      // before it
  bool tied = false;                        // its tables are those of the embedding
  std::vector<bool> tied_projections = {};  // the same of the projection of each cluster
};

struct ModelConfig {
  std::string architecture;  // model_type
  int32_t vocabulary = 0;
  int32_t hidden = 0;
  EmbeddingConfig embedding;
  std::vector<LayerConfig> layers;  // at least one
  HeadConfig head;
  int32_t segment_length = 0;       // that it was trained on; 0: none
  int32_t bos_token = -1;           // -1: none
  std::vector<int32_t> eos_tokens;  // sampling one of them ends a reply

  // Tokens that a context may have, the pending one included; 0: any number.
  int64_t max_context() const { return embedding.sinusoids ? int64_t{segment_length} + 1 : 0; }
  // Whether the numbers depend on how many tokens came before.
  bool counts_tokens() const;
  int32_t clusters() const { return static_cast<int32_t>(embedding.cutoffs.size()) + 1; }
  int32_t cluster_begin(int32_t i) const { return i == 0 ? 0 : embedding.cutoffs[i - 1]; }
  int32_t cluster_end(int32_t i) const { return i + 1 == clusters() ? vocabulary : embedding.cutoffs[i]; }
  int32_t cluster_width(int32_t i) const;

  // Reads config.json (spec of each key in README.md). INVALID_ARGUMENT names the key, what it says and what would be
  // accepted: unknown model_type, an unsupported setting (attn, attnres_block_size, hidden_act, ...), a missing or
  // contradictory value, a size out of bounds.
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
