// Where a loaded model's weights are, how large they are, and how its slots are laid out.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "server/model/model.h"
#include "server/model/weights.h"

namespace palimpsest {

// The state, then what it may lack. INVALID_ARGUMENT: an option out of its range.
absl::Status LayOutSlots(const std::string& folder, const ModelOptions& options, ModelWeights& weights);

// Puts what was made in host memory onto the model's device; matrices are there already. The host memory goes.
// RESOURCE_EXHAUSTED: it does not fit.
absl::Status MoveToDevice(const std::string& folder, ModelWeights& weights);

// Sums up the sizes, and decides how the projections are computed. INVALID_ARGUMENT: not as the options ask.
absl::Status FinishSizes(const std::string& folder, const ModelOptions& options, ModelWeights& weights);

}  // namespace palimpsest
