// What the system said, as a status.
#pragma once

#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace palimpsest {

// The canonical code of an errno value. As absl::ErrnoToStatusCode, but for what depends on the path that was asked for
// and stays so until somebody changes it, which is never UNAVAILABLE or UNKNOWN: a loop of symbolic links is
// INVALID_ARGUMENT, a file where a folder should be is NOT_FOUND, a disk that fails to read is DATA_LOSS.
absl::StatusCode ErrnoCode(int error);

// "what: No such file or directory", with that code.
absl::Status ErrnoStatus(int error, absl::string_view what);
// Of an error that std::filesystem reported.
absl::Status ErrnoStatus(const std::error_code& error, absl::string_view what);

}  // namespace palimpsest
