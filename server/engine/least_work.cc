#include "server/engine/least_work.h"

#include <algorithm>

namespace palimpsest {

LeastWork::LeastWork(const Model& model) {
  const ModelConfig& config = model.config();
  int64_t table = 0;
  for (int32_t i = 0; i < config.clusters(); ++i) {
    table += int64_t{config.cluster_end(i) - config.cluster_begin(i)} * config.cluster_width(i);
  }
  const int64_t head = int64_t{config.cluster_end(0)} * config.cluster_width(0);
  const int64_t element = model.weight_dtype() == DType::kF32 ? 4 : 2;
  // A table to look up in is kept beside the head even where both are the same numbers.
  body_bytes_ = std::max<int64_t>(0, model.weight_bytes() - 2 * table * element);
  head_bytes_ = head * element;
  state_bytes_ = model.layout().bytes();

  const int64_t body = model.parameter_count() - table * (config.tied_embeddings ? 1 : 2);
  // Each element of a fast weight is multiplied with the query and takes in an outer product; a delta rule first reads
  // it with the key.
  const int64_t per_element = config.mixer.rule == UpdateRule::kSum ? 4 : 6;
  const int64_t state = config.mixer.is_window() ? 0 : per_element * config.mixer.shape.state_floats() * config.layers;
  row_flops_ = 2 * std::max<int64_t>(0, body) + state;
  logit_row_flops_ = 2 * head;
}

LeastWork::Amount LeastWork::Of(int64_t rows, int64_t sequences, int64_t logit_rows) const {
  return {.bytes = body_bytes_ + (logit_rows > 0 ? head_bytes_ : 0) + 2 * sequences * state_bytes_,
          .flops = rows * row_flops_ + logit_rows * logit_row_flops_};
}

}  // namespace palimpsest
