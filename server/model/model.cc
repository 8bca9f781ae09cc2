#include "server/model/model.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "server/model/weights.h"

namespace palimpsest {

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const std::string& folder, const ModelOptions& options) {
  absl::StatusOr<std::unique_ptr<const ModelWeights>> weights = LoadWeights(folder, options);
  if (!weights.ok()) return weights.status();
  return std::unique_ptr<Model>(new Model(*std::move(weights)));
}

Model::Model(std::unique_ptr<const ModelWeights> weights) : weights_(std::move(weights)) {}
Model::~Model() = default;

const ModelConfig& Model::config() const { return weights_->config; }
const StateLayout& Model::layout() const { return weights_->layout; }
int64_t Model::slot_bytes() const { return weights_->slots.bytes; }
int32_t Model::write_interval() const { return weights_->slots.write_interval; }
Device* Model::device() const { return weights_->device.get(); }
int64_t Model::parameter_count() const { return weights_->parameter_count; }
int64_t Model::weight_bytes() const { return weights_->bytes; }
DType Model::weight_dtype() const { return weights_->dtype; }
LinearMath Model::math() const { return weights_->math; }
const std::string& Model::fingerprint() const { return weights_->fingerprint; }

int64_t Model::max_context() const { return weights_->config.max_context(); }

WorkEstimate Model::Work(int64_t rows, int64_t sequences, int64_t logit_rows) const {
  const ModelConfig& config = weights_->config;
  int64_t table = 0;
  for (int32_t i = 0; i < config.clusters(); ++i) {
    table += int64_t{config.cluster_end(i) - config.cluster_begin(i)} * config.cluster_width(i);
  }
  const int64_t head = int64_t{config.cluster_end(0)} * config.cluster_width(0);
  const int64_t element = weights_->dtype == DType::kF32 ? 4 : 2;
  // A table to look up in is kept beside the head even where both are the same numbers.
  const int64_t body_bytes = std::max<int64_t>(0, weights_->bytes - 2 * table * element);
  // Read, and written; where it is written seldom, what is kept instead is not counted.
  const int64_t state_bytes = (write_interval() > 1 ? 1 : 2) * layout().bytes();

  const int64_t body = std::max<int64_t>(0, parameter_count() - table * (config.head.tied ? 1 : 2));
  int64_t row_flops = 2 * body;
  for (const LayerConfig& layer : config.layers) {
    row_flops += std::visit([](const auto& mixer) { return StateFlops(mixer); }, layer.mixer);
  }
  return {.bytes = body_bytes + (logit_rows > 0 ? head * element : 0) + sequences * state_bytes,
          .flops = rows * row_flops + logit_rows * 2 * head};
}

}  // namespace palimpsest
