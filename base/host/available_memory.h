// How much memory the process may still take, and who says so.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace palimpsest {

struct MemoryLimit {
  std::string name;  // for messages: "MemAvailable", "control group", "RLIMIT_AS" or "RLIMIT_DATA"
  int64_t left = 0;  // bytes
  // What counts is what is mapped, whether it is used or not: stacks of threads and the allocator's reserves, too.
  bool mapped = false;
};

// All there are: what the system has available, what the process's control groups leave, and its resource limits less
// what it has mapped. `root` as in control_group.h.
std::vector<MemoryLimit> MemoryLimits(const std::string& root = "");

// The least of them, in bytes. Nothing if there are none.
std::optional<int64_t> AvailableMemory(const std::string& root = "");

}  // namespace palimpsest
