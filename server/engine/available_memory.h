// How much memory the process may still take.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace palimpsest {

// Bytes: the least of what the system has available and what the process's control groups leave. Nothing if the system
// does not say. `root` as in control_group.h.
std::optional<int64_t> AvailableMemory(const std::string& root = "");

}  // namespace palimpsest
