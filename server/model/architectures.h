// Inside the model's configuration: the architectures that are known, a file for each family.
#pragma once

#include <cstdint>
#include <span>

#include "server/model/config.h"
#include "server/model/config_keys.h"

namespace palimpsest {

// How the keys of a model_type's config.json become a ModelConfig. `read` fills in all but the architecture's name, the
// vocabulary, the hidden size and the token ids, which are there already; what is wrong it tells `keys`.
struct Architecture {
  const char* model_type;
  void (*read)(ConfigKeys& keys, ModelConfig& config);
};

// Hugging Face form of fla's models (flash-linear-attention): delta_net, gated_deltanet.
std::span<const Architecture> FlaArchitectures();
// The systems of 2102.11174 and its public toolkit, as training/import_lmtool.py writes them: fwp.
std::span<const Architecture> PaperArchitectures();

// Bounds of what a file may ask for: wide of every published model, far below what would overflow or exhaust memory.
inline constexpr int32_t kMaxVocabulary = 1 << 21;
inline constexpr int32_t kMaxWidth = 1 << 17;  // of the residual stream, the MLP, all heads together
inline constexpr int32_t kMaxLayers = 1024;
inline constexpr int32_t kMaxHeads = 4096;
inline constexpr int32_t kMaxHeadDim = 1024;
inline constexpr int32_t kMaxFeatures = 8192;  // of a head, after the feature map
inline constexpr int32_t kMaxConvWidth = 64;
inline constexpr int32_t kMaxWindow = 1 << 20;
inline constexpr int64_t kMaxStateBytes = int64_t{1} << 30;
inline constexpr int64_t kMaxConfigBytes = 1 << 20;

}  // namespace palimpsest
