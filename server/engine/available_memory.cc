#include "server/engine/available_memory.h"

#include <algorithm>
#include <fstream>

#include "server/engine/control_group.h"

namespace palimpsest {

std::optional<int64_t> AvailableMemory(const std::string& root) {
  std::optional<int64_t> available;
  std::ifstream meminfo(root + "/proc/meminfo");
  std::string key;
  int64_t kibibytes = 0;
  for (std::string unit; meminfo >> key >> kibibytes;) {
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") available = kibibytes * 1024;
  }
  if (const std::optional<int64_t> left = GroupMemoryLeft(root)) {
    available = std::min(available.value_or(*left), *left);
  }
  return available;
}

}  // namespace palimpsest
