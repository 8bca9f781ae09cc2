// Inside the model: the forward pass.
#pragma once

#include "server/model/weights.h"

namespace palimpsest {

// Runs the pass: the states of its sequences move on and `logits` is filled in. Ops only, but for what a model with
// sinusoids or with clusters does on the host between them.
void RunPass(const ModelWeights& weights, const Pass& pass, float* logits);

}  // namespace palimpsest
