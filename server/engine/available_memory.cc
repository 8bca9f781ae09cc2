#include "server/engine/available_memory.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace palimpsest {
namespace {

std::optional<int64_t> ReadNumber(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;  // no such file, or "max"
}

}  // namespace

std::optional<int64_t> AvailableMemory() {
  std::optional<int64_t> available;
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  int64_t kibibytes = 0;
  for (std::string unit; meminfo >> key >> kibibytes;) {
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") available = kibibytes * 1024;
  }
  // Version 2 control groups, as containers have them.
  const std::optional<int64_t> limit = ReadNumber("/sys/fs/cgroup/memory.max");
  const std::optional<int64_t> used = ReadNumber("/sys/fs/cgroup/memory.current");
  if (limit && used) {
    const int64_t left = std::max<int64_t>(*limit - *used, 0);
    available = std::min(available.value_or(left), left);
  }
  return available;
}

}  // namespace palimpsest
