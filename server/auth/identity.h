// Who calls, and what they may do.
#pragma once

#include <cstdint>
#include <string>

namespace palimpsest {

// Sessions, snapshots and request ids belong to `owner`: 1 to 63 characters of [a-z0-9-]. The defaults are those of a
// server that does not ask who calls: everybody is one owner, and may do everything.
struct Identity {
  std::string owner = "default";
  bool user = true;     // generate, score, tokenize; sessions and snapshots of the owner; look at the models
  bool admin = true;    // load and unload models; list the sessions and snapshots of all owners
  bool metrics = true;  // read the metrics page
};

// Whom a method is for.
enum class MayCall : uint8_t { kUser, kAdmin, kUserOrAdmin };

}  // namespace palimpsest
