// What the models of flash-linear-attention (fla) have in common: keys of config.json, and names of tensors.
#pragma once

#include <cstdint>
#include <optional>

#include "server/model/architectures/architecture.h"

namespace palimpsest {

// head size = hidden * ratio / heads, which must come out even.
int32_t ReadHeadDim(ConfigKeys& keys, const char* ratio_key, int32_t hidden, int32_t heads, double default_ratio);

// `num_heads` and `num_v_heads`, a multiple of it.
void ReadGroupedHeads(ConfigKeys& keys, int32_t default_heads, FastWeightShape& shape);

// `num_heads`, and `num_kv_heads`, which divides it.
void ReadQueryGroups(ConfigKeys& keys, int32_t default_heads, FastWeightConfig& mixer);

// `head_dim` times `expand_v`.
int32_t ReadValueDim(ConfigKeys& keys, int32_t head_dim, double default_expand);

// `use_short_conv`, `conv_size` and `conv_bias`.
std::optional<ConvConfig> ReadConv(ConfigKeys& keys, bool used_by_default);

// `elementwise_affine`: whether the norm of the output has a weight. Null means false, as it does in Python.
bool ReadElementwiseAffine(ConfigKeys& keys);

// All but the mixer, which is the same in all layers: its query scale, eps, and beta scale are filled in here, and its
// head_dim where the map leaves that as it is (0).
void ReadFlaModel(ConfigKeys& keys, int32_t default_layers, FastWeightConfig mixer, ModelConfig& config);

// Names that mean the same in every model of fla.
inline constexpr TensorName kFlaTensorNames[] = {
    // Files of June 2024 to February 2025 keep the norm before the mixer as attn.norm and the one before the MLP as
    // mlp.norm; older ones call the norm of the mixer's output attn.norm. The two do not occur together.
    {Role::kMixerNorm, "model.layers.{}.attn_norm.weight"},
    {Role::kMixerNorm, "model.layers.{}.attn.norm.weight"},
    {Role::kQuery, "model.layers.{}.attn.q_proj.weight"},
    {Role::kKey, "model.layers.{}.attn.k_proj.weight"},
    {Role::kValue, "model.layers.{}.attn.v_proj.weight"},
    {Role::kGate, "model.layers.{}.attn.g_proj.weight"},
    {Role::kBeta, "model.layers.{}.attn.b_proj.weight"},
    {Role::kDecay, "model.layers.{}.attn.a_proj.weight"},
    {Role::kDecayRate, "model.layers.{}.attn.A_log"},
    {Role::kDecayBias, "model.layers.{}.attn.dt_bias"},
    {Role::kQueryConv, "model.layers.{}.attn.q_conv1d.weight"},
    {Role::kKeyConv, "model.layers.{}.attn.k_conv1d.weight"},
    {Role::kValueConv, "model.layers.{}.attn.v_conv1d.weight"},
    {Role::kQueryConvBias, "model.layers.{}.attn.q_conv1d.bias"},
    {Role::kKeyConvBias, "model.layers.{}.attn.k_conv1d.bias"},
    {Role::kValueConvBias, "model.layers.{}.attn.v_conv1d.bias"},
    {Role::kOutputNorm, "model.layers.{}.attn.o_norm.weight"},
    {Role::kOutputNorm, "model.layers.{}.attn.norm.weight"},
    {Role::kOutput, "model.layers.{}.attn.o_proj.weight"},
    {Role::kChannelNorm, "model.layers.{}.mlp_norm.weight"},
    {Role::kChannelNorm, "model.layers.{}.mlp.norm.weight"},
    // Before February 2025 one matrix, the gate's rows first.
    {Role::kMlpGate, "model.layers.{}.mlp.gate_proj.weight"},
    {Role::kMlpGate, "model.layers.{}.mlp.gate_proj.weight", {.part = 0, .parts = 2}},
    {Role::kMlpUp, "model.layers.{}.mlp.up_proj.weight"},
    {Role::kMlpUp, "model.layers.{}.mlp.gate_proj.weight", {.part = 1, .parts = 2}},
    {Role::kMlpDown, "model.layers.{}.mlp.down_proj.weight"},
    {Role::kEmbedding, "model.embeddings.weight"},
    {Role::kFinalNorm, "model.norm.weight"},
    {Role::kHead, "lm_head.weight"},
};

}  // namespace palimpsest
