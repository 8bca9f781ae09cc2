// What the control groups of this process leave it: those of a container, a pod or a systemd unit, and all that they
// are in. Version 1, version 2, and both at once.
//
// `root` stands before every path that is read; tests put a tree of their own there.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace palimpsest {

// Bytes that the process may still take before the nearest limit; nothing if there is no limit. Pages of files do not
// count as taken: the system drops them when memory is asked for.
std::optional<int64_t> GroupMemoryLeft(const std::string& root = "");

// Processors' worth of time that the process may use, for example 1.5; nothing if there is no limit.
std::optional<double> GroupProcessors(const std::string& root = "");

// Threads that all processes of the group with the lowest limit may have; nothing if there is no limit.
std::optional<int64_t> GroupThreads(const std::string& root = "");

}  // namespace palimpsest
