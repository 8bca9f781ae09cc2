// How many descriptors this process may have, and how many connections that is.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

namespace palimpsest {

// Raises the soft limit of descriptors (RLIMIT_NOFILE) to the hard one. Returns the limit that then holds.
int64_t RaiseDescriptorLimit();

// Descriptors that a connection takes: the transport's, and the listener's duplicate of it (listener.h).
inline constexpr int64_t kDescriptorsPerConnection = 2;
// What is taken when nobody says: beyond it the memory of the connections counts for more than their descriptors.
inline constexpr int64_t kMostConnectionsByDefault = 4096;

// How many connections there may be. `wanted` 0: as many as fit, at most kMostConnectionsByDefault. `limit` and `open`
// are the process's descriptors; a part stays free for files, scrapes and what the libraries open.
// INVALID_ARGUMENT: `wanted` do not fit.  RESOURCE_EXHAUSTED: not even one fits.
absl::StatusOr<int64_t> ConnectionsThatFit(int64_t wanted, int64_t limit, int64_t open);

// The same for this process as it is now.
absl::StatusOr<int64_t> ConnectionsThatFit(int64_t wanted);

}  // namespace palimpsest
