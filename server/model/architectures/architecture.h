// The architectures that are known, a file for each: how the keys of a config.json become a ModelConfig, and under
// which names its tensors are.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/architectures/config_keys.h"
#include "server/model/config.h"
#include "server/model/tensor_roles.h"

namespace palimpsest {

struct Architecture {
  const char* model_type;
  // Fills in all but the architecture's name, the vocabulary, the hidden size and the token ids, which are there
  // already; what is wrong it tells `keys`.
  void (*read)(ConfigKeys& keys, ModelConfig& config);
  // The names of its own, and those that it shares with others. A role's first name is the one that errors show; others
  // are of older files.
  std::span<const TensorName> names = {};
  std::span<const TensorName> shared_names = {};

  // All names of the role, of which its own, if there are any, are instead of the shared ones. At least one.
  std::vector<TensorName> NamesOf(Role role) const;
  // The first, with the index in its place.
  std::string NameOf(Role role, size_t index) const;
};

// The pattern with the index in its place.
std::string WithIndex(const TensorName& name, size_t index);

// Null: not known.
const Architecture* FindArchitecture(std::string_view model_type);
// That of a config.json. INVALID_ARGUMENT: it has no `model_type`, or one that cannot run, with the reason where there
// is one to give.
absl::StatusOr<const Architecture*> ArchitectureOf(const nlohmann::json& config);

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
