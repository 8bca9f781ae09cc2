// A layer as a value: a token mixer and a channel mixer, each with a norm. Every variant of the family is a value of
// these structs; layers of a model may differ.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <variant>

#include "kernels/fast_weight/fast_weight.h"
#include "kernels/feature_map/feature_map.h"
#include "kernels/gate/gate.h"
#include "kernels/norm/norm.h"

namespace palimpsest {

struct NormConfig {
  enum class Kind : uint8_t { kRms, kLayer };  // LayerNorm has a bias
  Kind kind = Kind::kRms;
  float eps = 1e-6f;

  bool operator==(const NormConfig&) const = default;
};

// Where the norms stand around a sub-layer f.
enum class NormPlacement : uint8_t {
  kPre,                // x + f(norm(x))
  kPost,               // norm(x + f(x))
  kPreNormedResidual,  // as kPre, but around the mixer x is norm(x), too
};

// What becomes of q and k before the memory sees them.
struct FeatureConfig {
  FeatureMapKind map = FeatureMapKind::kSilu;
  int32_t dpfp_rolls = 0;         // nu
  int32_t favor_projections = 0;  // m
  bool tied = false;              // a learned map of keys is that of queries
  KeyNorm query_norm = KeyNorm::kL2;
  KeyNorm key_norm = KeyNorm::kL2;
  float query_scale = 1.0f;  // of the output, put on the query

  bool operator==(const FeatureConfig&) const = default;
};

// The accumulator z, the sum of all mapped keys, divides (2102.11174, eq. 18 and section 4.2).
struct AttentionNormConfig {
  bool keys_too = false;            // else the output alone
  bool scaled_denominator = false;  // the denominator has query_scale, too
  float eps = 1e-5f;

  bool operator==(const AttentionNormConfig&) const = default;
};

// A short causal convolution of q, k and v.
struct ConvConfig {
  int32_t width = 4;
  bool bias = false;       // usually found in the weight file, not in the config
  bool silu_keys = false;  // q and k are activated here, before the feature map

  bool operator==(const ConvConfig&) const = default;
};

struct BetaConfig {
  bool learned = true;  // sigmoid(W_b x) times the scale; else the scale alone
  float scale = 1.0f;   // 2 with allow_neg_eigval

  bool operator==(const BetaConfig&) const = default;
};

// How the memory forgets, under the rules that do (kernels/gate/gate.h): by head or by channel, as the rule has it.
struct DecayConfig {
  DecayKind kind = DecayKind::kSoftplus;
  int32_t rank = 0;  // of its projection, which is one matrix for 0
  bool rate = true;  // has a rate for each head, "A_log"
  float lower_bound = -std::numeric_limits<float>::infinity();
  float divisor = 1.0f;

  bool operator==(const DecayConfig&) const = default;
};

// What becomes of a head's output.
struct OutputConfig {
  bool norm = true;  // RMSNorm of each head
  float eps = 1e-6f;
  bool weight = true;                           // of the norm; else ones
  GateActivation gate = GateActivation::kNone;  // kNone: no gate
  int32_t gate_rank = 0;                        // of its projection, which is one matrix for 0
  bool gate_bias = false;

  bool operator==(const OutputConfig&) const = default;
};

inline bool operator==(const FastWeightShape& a, const FastWeightShape& b) {
  return a.heads == b.heads && a.value_heads == b.value_heads && a.key_dim == b.key_dim && a.value_dim == b.value_dim;
}

// The one mixer of fast weights (kernels/fast_weight/fast_weight.h has the update rules).
struct FastWeightConfig {
  FastWeightShape shape = {};  // key_dim counts features, after the map
  int32_t head_dim = 0;        // of q and k before the map: what they are projected to
  UpdateRule rule = UpdateRule::kDelta;
  int32_t sub_steps = 1;   // writes of a token, each with a key, a value and a beta of its own
  int32_t key_groups = 1;  // so many neighboring heads have the same keys, values and decays
  bool raw_query = false;  // the query is made from x as it is, not from norm(x)
  FeatureConfig features = {};
  bool silu_values = true;  // v is activated
  std::optional<AttentionNormConfig> attention_norm = {};
  std::optional<ConvConfig> conv = {};
  BetaConfig beta = {};
  DecayConfig decay = {};
  OutputConfig output = {};

  // Widths of a row: what is projected, and, after the map, what the memory reads and writes.
  int64_t query_width() const { return int64_t{shape.heads} * head_dim; }
  int64_t key_width() const { return sub_steps * query_width(); }
  int64_t value_width() const { return int64_t{sub_steps} * output_width(); }
  int64_t mapped_query_width() const { return int64_t{shape.heads} * shape.key_dim; }
  int64_t mapped_key_width() const { return sub_steps * mapped_query_width(); }
  int64_t output_width() const { return int64_t{shape.value_heads} * shape.value_dim; }
  int64_t conv_channels() const { return query_width() + key_width() + value_width(); }
  int64_t mapped_channels() const { return mapped_query_width() + mapped_key_width() + value_width(); }
  int32_t betas() const { return sub_steps * shape.value_heads; }
  int64_t decays() const { return int64_t{shape.value_heads} * (DecaysChannels(rule) ? shape.key_dim : 1); }

  bool operator==(const FastWeightConfig&) const = default;
};

// Softmax attention over a window that does not grow: the token at position t sees positions from
// max(0, floor(t / segment) * segment - memory) on.
struct AttentionConfig {
  int32_t heads = 0;
  int32_t head_dim = 0;  // of q, k and v
  float scale = 1.0f;
  bool raw_query = false;
  int32_t segment = 0;
  int32_t memory = 0;
  bool relative_positions = false;     // Transformer-XL
  int32_t largest_distance = 1 << 30;  // farther ones count as this

  int64_t width() const { return int64_t{heads} * head_dim; }  // of q, k and v each
  int32_t capacity() const { return segment + memory; }

  bool operator==(const AttentionConfig&) const = default;
};

struct MlpConfig {
  enum class Kind : uint8_t { kSwiglu, kRelu };  // ReLU has biases
  Kind kind = Kind::kSwiglu;
  int32_t inner = 0;

  bool operator==(const MlpConfig&) const = default;
};

struct LayerConfig {
  NormConfig norm = {};  // of both sub-layers
  NormPlacement placement = NormPlacement::kPre;
  std::variant<FastWeightConfig, AttentionConfig> mixer = {};
  std::variant<MlpConfig> channel = {};

  bool operator==(const LayerConfig&) const = default;
};

}  // namespace palimpsest
