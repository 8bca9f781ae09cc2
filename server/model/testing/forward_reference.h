// The language model's equations written out for one sequence, token by token, in double precision: the truth that the
// forward pass is compared with. Shares no code with it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "server/model/testing/random_checkpoint.h"

namespace palimpsest::testing {

// Logits [tokens, vocabulary] of the checkpoint that RandomCheckpointTensors(spec) makes.
std::vector<double> ReferenceLogits(const RandomCheckpointSpec& spec, std::span<const int32_t> tokens);

}  // namespace palimpsest::testing
