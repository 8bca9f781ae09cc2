#include "server/model/checkpoint_tensors.h"

#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace palimpsest {
namespace {

bool HasShape(const TensorMap& tensors, const std::string& name, const std::vector<int64_t>& shape) {
  const auto found = tensors.find(name);
  return found != tensors.end() && found->second.shape == shape;
}

// Where a layer's norms are. Files of June 2024 to February 2025 keep the norm before the mixer as attn.norm and the
// one before the MLP as mlp.norm; older ones call the norm of the mixer's output attn.norm. The two do not occur
// together.
struct NormNames {
  std::string attn, mlp, output;
};
NormNames FindNorms(const TensorTable& table, const std::string& layer) {
  NormNames names{layer + "attn_norm.weight", layer + "mlp_norm.weight", layer + "attn.o_norm.weight"};
  const std::string shared = layer + "attn.norm.weight";
  if (table.Has(shared) && !table.Has(names.attn)) names.attn = shared;
  if (table.Has(shared) && !table.Has(names.output) && names.attn != shared) names.output = shared;
  if (table.Has(layer + "mlp.norm.weight") && !table.Has(names.mlp)) names.mlp = layer + "mlp.norm.weight";
  return names;
}

NormTensors TakeNorm(TensorTable& table, const std::string& name, const ModelConfig& config) {
  NormTensors taken;
  taken.weight = table.Take(name + "weight", {config.hidden});
  if (config.layer_norm) taken.bias = table.Take(name + "bias", {config.hidden});
  return taken;
}

void TakeMixer(TensorTable& table, const MixerConfig& mixer, int64_t d, const std::string& attn, LayerTensors& taken) {
  const int64_t queries = mixer.query_width(), values = mixer.value_width(), value_heads = mixer.shape.value_heads;
  taken.projections = {table.Take(attn + "q_proj.weight", {queries, d}),
                       table.Take(attn + "k_proj.weight", {queries, d}),
                       table.Take(attn + "v_proj.weight", {values, d})};
  if (mixer.output_gate) taken.projections.push_back(table.Take(attn + "g_proj.weight", {values, d}));
  if (mixer.learned_beta) taken.projections.push_back(table.Take(attn + "b_proj.weight", {value_heads, d}));
  if (mixer.rule == UpdateRule::kGatedDelta) {
    taken.projections.push_back(table.Take(attn + "a_proj.weight", {value_heads, d}));
    taken.a_log = table.Take(attn + "A_log", {value_heads});
    taken.dt_bias = table.Take(attn + "dt_bias", {value_heads});
    table.Ignore(attn + "D");  // written by early versions, read by none
  }
  if (mixer.feature_map == FeatureMapKind::kFavor) {
    taken.feature_projection = table.Take(attn + "feature_projection", {mixer.favor_projections, mixer.head_dim});
  }
  if (mixer.relative_positions) taken.relative_projection = table.Take(attn + "r_proj.weight", {queries, d});
  if (mixer.conv_width > 0) {
    const std::pair<const char*, int64_t> convs[] = {
        {"q_conv1d", queries}, {"k_conv1d", queries}, {"v_conv1d", values}};
    for (const auto& [name, channels] : convs) {
      taken.convs.push_back(table.Take(absl::StrCat(attn, name, ".weight"), {channels, 1, mixer.conv_width}));
      if (mixer.conv_bias) taken.conv_biases.push_back(table.Take(absl::StrCat(attn, name, ".bias"), {channels}));
    }
  }
  taken.o_proj = table.Take(attn + "o_proj.weight", {d, values});
}

LayerTensors TakeLayer(TensorTable& table, const TensorMap& tensors, const ModelConfig& config, int32_t index) {
  const int64_t d = config.hidden, inner = config.mlp_inner;
  const std::string layer = absl::StrCat("model.layers.", index, "."), attn = layer + "attn.", mlp = layer + "mlp.";
  LayerTensors taken;
  TakeMixer(table, config.mixer, d, attn, taken);
  if (config.layer_norm) {
    taken.attn_norm = TakeNorm(table, layer + "attn_norm.", config);
    taken.mlp_norm = TakeNorm(table, layer + "mlp_norm.", config);
  } else {
    const NormNames norms = FindNorms(table, layer);
    taken.attn_norm.weight = table.Take(norms.attn, {d});
    taken.mlp_norm.weight = table.Take(norms.mlp, {d});
    if (config.mixer.output_norm) taken.o_norm = table.Take(norms.output, {config.mixer.shape.value_dim});
  }
  if (!config.swiglu) {
    taken.up = {table.Take(mlp + "up_proj.weight", {inner, d})};
    taken.up_bias = table.Take(mlp + "up_proj.bias", {inner});
    taken.down_bias = table.Take(mlp + "down_proj.bias", {d});
  } else if (!table.Has(mlp + "up_proj.weight") && HasShape(tensors, mlp + "gate_proj.weight", {2 * inner, d})) {
    // Before February 2025: one matrix, gate rows first.
    taken.up = {table.Take(mlp + "gate_proj.weight", {2 * inner, d})};
  } else {
    taken.up = {table.Take(mlp + "gate_proj.weight", {inner, d}), table.Take(mlp + "up_proj.weight", {inner, d})};
  }
  taken.down = table.Take(mlp + "down_proj.weight", {d, inner});
  return taken;
}

// Embeddings and head of one table each.
void TakePlainEnds(TensorTable& table, const TensorMap& tensors, const ModelConfig& config, CheckpointTensors& taken) {
  const std::vector<int64_t> shape = {config.vocabulary, config.hidden};
  const TensorView* const embeddings = table.Take("model.embeddings.weight", shape);
  const TensorView* head = embeddings;
  if (!config.tied_embeddings) {
    head = table.Take("lm_head.weight", shape);
  } else if (const auto copy = tensors.find("lm_head.weight"); copy != tensors.end() && embeddings != nullptr) {
    // Some writers store the tied matrix twice. Another matrix would be a model that contradicts its config.
    table.Ignore("lm_head.weight");
    if (copy->second.shape != shape || copy->second.dtype != embeddings->dtype ||
        std::memcmp(copy->second.data, embeddings->data, embeddings->bytes()) != 0) {
      table.Fail(
          "config.json says tie_word_embeddings, but 'lm_head.weight' is there and differs from "
          "'model.embeddings.weight'");
    }
  }
  taken.embeddings.emplace_back().table = embeddings;
  taken.outputs.emplace_back().weights = {head};
}

// Rows [begin, end) of a tensor.
const TensorView* Rows(const TensorView* tensor, int64_t begin, int64_t end, CheckpointTensors& taken) {
  if (tensor == nullptr) return nullptr;
  const int64_t row_bytes = tensor->bytes() / tensor->shape[0];
  TensorView& slice = taken.slices.emplace_back(*tensor);
  slice.data += begin * row_bytes;
  slice.shape[0] = end - begin;
  return &slice;
}

// Adaptive embeddings and head. With div_val 1 all clusters are rows of one table.
void TakeAdaptiveEnds(TensorTable& table, const ModelConfig& config, CheckpointTensors& taken) {
  const int64_t d = config.hidden;
  const bool one_table = config.div_val == 1, projected = !one_table || config.embedding_size != config.hidden;
  const int32_t tables = one_table ? 1 : config.clusters();
  std::vector<const TensorView*> weights, biases;
  for (int32_t i = 0; i < tables; ++i) {
    const int64_t width = config.cluster_width(i);
    const int64_t ids = one_table ? config.vocabulary : config.cluster_end(i) - config.cluster_begin(i);
    EmbeddingTensors& embedding = taken.embeddings.emplace_back();
    embedding.table = table.Take(absl::StrCat("model.embeddings.", i, ".weight"), {ids, width});
    if (projected) {
      embedding.projection = table.Take(absl::StrCat("model.embedding_projections.", i, ".weight"), {d, width});
    }
    weights.push_back(config.tied_embeddings ? embedding.table
                                             : table.Take(absl::StrCat("lm_head.", i, ".weight"), {ids, width}));
    biases.push_back(table.Take(absl::StrCat("lm_head.", i, ".bias"), {ids}));
  }
  for (int32_t i = 0; i < config.clusters(); ++i) {
    OutputTensors& output = taken.outputs.emplace_back();
    if (projected && config.tied_projections[i]) {
      output.projection = taken.embeddings[one_table ? 0 : i].projection;
      output.transposed_projection = true;
    } else if (projected) {
      output.projection = table.Take(absl::StrCat("lm_head.projections.", i, ".weight"), {config.cluster_width(i), d});
    }
    const int64_t begin = config.cluster_begin(i), end = config.cluster_end(i);
    output.weights = {one_table ? Rows(weights[0], begin, end, taken) : weights[i]};
    output.biases = {one_table ? Rows(biases[0], begin, end, taken) : biases[i]};
  }
  if (const int32_t others = config.clusters() - 1; others > 0) {
    taken.outputs[0].weights.push_back(table.Take("lm_head.clusters.weight", {others, config.cluster_width(0)}));
    taken.outputs[0].biases.push_back(table.Take("lm_head.clusters.bias", {others}));
  }
}

}  // namespace

absl::StatusOr<CheckpointTensors> TakeTensors(TensorTable& table, const TensorMap& tensors, const ModelConfig& config) {
  CheckpointTensors taken;
  if (config.adaptive) {
    TakeAdaptiveEnds(table, config, taken);
  } else {
    TakePlainEnds(table, tensors, config, taken);
  }
  for (int32_t i = 0; i < config.layers; ++i) taken.layers.push_back(TakeLayer(table, tensors, config, i));
  if (config.final_norm) taken.norm = TakeNorm(table, "model.norm.", config);
  if (config.mixer.relative_positions) {
    const std::vector<int64_t> shape = {config.mixer.shape.heads, config.mixer.head_dim};
    taken.content_bias = table.Take("model.content_bias", shape);
    taken.position_bias = table.Take("model.position_bias", shape);
  }
  if (absl::Status status = table.Finish(); !status.ok()) return status;
  return taken;
}

}  // namespace palimpsest
