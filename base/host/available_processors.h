// How many threads of arithmetic make sense here.
#pragma once

#include <cstdint>
#include <string>

namespace palimpsest {

// Processors that the process may run on (its affinity), but no more than the whole ones of its control groups' quota:
// with one thread more, all of them would stand still at the end of each period, in the middle of a batch. At least 1.
// `root` as in control_group.h.
int32_t AvailableProcessors(const std::string& root = "");

}  // namespace palimpsest
