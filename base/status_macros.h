// The happy path straight: an error is returned to whoever called, as it is. For functions that return absl::Status or
// absl::StatusOr.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns the status that the expression gives, unless it is OK.
#define PALIMPSEST_RETURN_IF_ERROR(...)                                                         \
  do {                                                                                          \
    if (absl::Status palimpsest_status = (__VA_ARGS__); !palimpsest_status.ok()) [[unlikely]] { \
      return palimpsest_status;                                                                 \
    }                                                                                           \
  } while (false)

// Assigns the value of an absl::StatusOr, or returns its status. `lhs` may declare a variable, which then lives as long
// as any declared here:
//   PALIMPSEST_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxBytes));
// It is two statements: after an `if` without braces it does not compile.
#define PALIMPSEST_ASSIGN_OR_RETURN(lhs, ...) \
  PALIMPSEST_ASSIGN_OR_RETURN_INTERNAL(PALIMPSEST_CONCAT_INTERNAL(palimpsest_status_or_, __LINE__), lhs, __VA_ARGS__)

#define PALIMPSEST_ASSIGN_OR_RETURN_INTERNAL(status_or, lhs, ...) \
  auto status_or = (__VA_ARGS__);                                 \
  if (!status_or.ok()) [[unlikely]]                               \
    return std::move(status_or).status();                         \
  lhs = *std::move(status_or)

#define PALIMPSEST_CONCAT_INTERNAL(a, b) PALIMPSEST_CONCAT_INTERNAL_(a, b)
#define PALIMPSEST_CONCAT_INTERNAL_(a, b) a##b
