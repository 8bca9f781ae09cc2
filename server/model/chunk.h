// How many tokens of a sequence are processed at once, for who knows no model.
#pragma once

#include "kernels/fast_weight/fast_weight.h"

namespace palimpsest {

// Chunks are counted from the first token of an append; the bits of a prefill depend on it.
inline constexpr int32_t kChunk = FastWeightParams::kChunk;

}  // namespace palimpsest
