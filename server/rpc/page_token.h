// Page tokens: opaque to callers, and only those that this server gave are taken.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace palimpsest {

// Thread-safe: const after construction.
class PageTokens {
 public:
  // Draws a key, so that tokens of another server or of an earlier run are not taken.
  PageTokens();

  // `list` names what is listed, so that a token of one list is not taken for another. `last` is the last id given.
  std::string Make(absl::string_view list, absl::string_view last) const;
  // The last id given before; empty for an empty token. INVALID_ARGUMENT: not a token of this list.
  absl::StatusOr<std::string> Read(absl::string_view list, const std::string& token) const;

 private:
  std::string Seal(absl::string_view list, absl::string_view last) const;
  std::string key_;
};

}  // namespace palimpsest
