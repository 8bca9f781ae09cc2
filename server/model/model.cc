#include "server/model/model.h"

#include <utility>

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
Device* Model::device() const { return weights_->device.get(); }
int64_t Model::parameter_count() const { return weights_->parameter_count; }
int64_t Model::weight_bytes() const { return weights_->bytes; }
DType Model::weight_dtype() const { return weights_->dtype; }
LinearMath Model::math() const { return weights_->math; }
const std::string& Model::fingerprint() const { return weights_->fingerprint; }

}  // namespace palimpsest
