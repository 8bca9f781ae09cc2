// JSON from outside, parsed under limits.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace palimpsest {

struct JsonLimits {
  int64_t max_bytes = 1 << 20;
  int32_t max_depth = 16;
};

// The object that `text` holds. INVALID_ARGUMENT, beginning with `where`: too long, nested too deeply, not JSON (with
// the place), not an object at the top, or an object that names a key twice.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, const std::string& where,
                                               const JsonLimits& limits = {});

}  // namespace palimpsest
