// An allocation that fails is an error of the request that asked for it, not the end of the process.
#pragma once

#include <new>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace palimpsest {

inline absl::Status NoMemory(absl::string_view what) {
  return absl::ResourceExhaustedError(
      absl::StrCat("the system has no memory left for ", what,
                   "; retry later, or give the server more memory, or lower limits (docs/operations.md)"));
}

// What `act`, which returns a Status or a StatusOr, returns; RESOURCE_EXHAUSTED where it runs out of memory.
template <class Act>
auto OrNoMemory(absl::string_view what, const Act& act) -> decltype(act()) {
  try {
    return act();
  } catch (const std::bad_alloc&) {
    return NoMemory(what);
  }
}

}  // namespace palimpsest
