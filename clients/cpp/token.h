// Bearer tokens: who calls.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace palimpsest::client {

// INVALID_ARGUMENT unless `token` has only what RFC 6750 allows: A-Z a-z 0-9 - . _ ~ + / and = at its end. The error
// does not show the token. `source` says where it came from.
absl::Status CheckToken(absl::string_view token, absl::string_view source);

// The token in a file, without the white space around it. NOT_FOUND and the like: it cannot be read; INVALID_ARGUMENT:
// it does not hold a token.
absl::StatusOr<std::string> ReadTokenFile(const std::string& path);

}  // namespace palimpsest::client
