// How much memory the process may still take.
#pragma once

#include <cstdint>
#include <optional>

namespace palimpsest {

// Bytes: the least of what the system has available and what the process's control group leaves. Nothing if the system
// does not say.
std::optional<int64_t> AvailableMemory();

}  // namespace palimpsest
