// A model as the forward pass reads it: packed once at load, read-only after.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/layers/attention.h"
#include "server/model/layers/embedding.h"
#include "server/model/layers/fast_weight.h"
#include "server/model/layers/head.h"
#include "server/model/layers/mlp.h"
#include "server/model/model.h"
#include "server/model/slot_layout.h"

namespace palimpsest {

struct Layer {
  NormPlacement placement = NormPlacement::kPre;
  NormLayer mixer_norm;
  std::variant<FastWeightLayer, AttentionLayer> mixer;
  NormLayer channel_norm;
  std::variant<MlpLayer> channel;

  void VisitArrays(auto&& visit) {
    mixer_norm.VisitArrays(visit);
    std::visit([&](auto& of_kind) { of_kind.VisitArrays(visit); }, mixer);
    channel_norm.VisitArrays(visit);
    std::visit([&](auto& of_kind) { of_kind.VisitArrays(visit); }, channel);
  }
};

struct ModelWeights {
  std::shared_ptr<Device> device;  // first: what is in its memory goes before it
  ModelConfig config;
  StateLayout layout;
  SlotLayout slots;
  EmbeddingLayer embedding;
  std::vector<Layer> layers;
  HeadLayer head;

  int64_t parameter_count = 0;
  int64_t bytes = 0;
  DType dtype = DType::kF32;
  LinearMath math = LinearMath::kF32;
  std::string fingerprint;

  // Calls visit(array) for every PackedLinear, AlignedArray and AlignedBytes there is, empty ones too.
  void VisitArrays(auto&& visit) {
    embedding.VisitArrays(visit);
    for (Layer& layer : layers) layer.VisitArrays(visit);
    head.VisitArrays(visit);
  }
};

// Statuses as Model::Load.
absl::StatusOr<std::unique_ptr<const ModelWeights>> LoadWeights(const std::string& folder, const ModelOptions& options);

}  // namespace palimpsest
