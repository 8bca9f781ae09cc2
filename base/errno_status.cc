#include "base/errno_status.h"

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace palimpsest {

absl::StatusCode ErrnoCode(int error) {
  switch (error) {
    case ELOOP:
      return absl::StatusCode::kInvalidArgument;
    case ENOTDIR:
      return absl::StatusCode::kNotFound;
    case EIO:
      return absl::StatusCode::kDataLoss;
    default:
      return absl::ErrnoToStatusCode(error);
  }
}

absl::Status ErrnoStatus(int error, absl::string_view what) {
  return absl::Status(ErrnoCode(error), absl::StrCat(what, ": ", std::generic_category().message(error)));
}

absl::Status ErrnoStatus(const std::error_code& error, absl::string_view what) {
  return ErrnoStatus(error.default_error_condition().value(), what);
}

}  // namespace palimpsest
