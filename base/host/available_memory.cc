#include "base/host/available_memory.h"

#include <algorithm>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/host/control_group.h"

namespace palimpsest {
namespace {

// The first number after `key` on the line of the file that begins with it; nothing where it says "unlimited".
std::optional<int64_t> NumberAfter(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!absl::StartsWith(line, key)) continue;
    const std::vector<std::string> words =
        absl::StrSplit(line.substr(key.size()), absl::ByAnyChar(" \t"), absl::SkipEmpty());
    int64_t number = 0;
    if (!words.empty() && absl::SimpleAtoi(words[0], &number)) return number;
    return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

std::vector<MemoryLimit> MemoryLimits(const std::string& root) {
  constexpr int64_t kKibibyte = 1024;
  std::vector<MemoryLimit> limits;
  if (const auto available = NumberAfter(root + "/proc/meminfo", "MemAvailable:")) {
    limits.push_back({.name = "MemAvailable", .left = *available * kKibibyte});
  }
  if (const auto left = GroupMemoryLeft(root)) limits.push_back({.name = "control group", .left = *left});
  const struct {
    const char* name;
    const char* limit;
    const char* used;
  } kRows[] = {{"RLIMIT_AS", "Max address space", "VmSize:"}, {"RLIMIT_DATA", "Max data size", "VmData:"}};
  for (const auto& row : kRows) {
    const auto limit = NumberAfter(root + "/proc/self/limits", row.limit);
    const auto used = NumberAfter(root + "/proc/self/status", row.used);
    if (!limit || !used) continue;
    limits.push_back({.name = row.name, .left = std::max<int64_t>(*limit - *used * kKibibyte, 0), .mapped = true});
  }
  return limits;
}

std::optional<int64_t> AvailableMemory(const std::string& root) {
  std::optional<int64_t> least;
  for (const MemoryLimit& limit : MemoryLimits(root)) least = std::min(least.value_or(limit.left), limit.left);
  return least;
}

}  // namespace palimpsest
