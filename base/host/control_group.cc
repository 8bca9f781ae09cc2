#include "base/host/control_group.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace palimpsest {
namespace {

constexpr char kMount[] = "/sys/fs/cgroup";
// Version 1 has no word for "none": this and more, the largest number of pages, means it.
constexpr int64_t kUnlimited = int64_t{1} << 60;

std::optional<int64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;  // no such file, or "max"
}

// The sum of some values of a file with a "name value" on each line.
int64_t SumOf(const std::string& path, std::initializer_list<std::string_view> names) {
  std::ifstream file(path);
  std::string name;
  int64_t value = 0, sum = 0;
  while (file >> name >> value) {
    if (std::find(names.begin(), names.end(), name) != names.end()) sum += value;
  }
  return sum;
}

// The folders of the process's group of `controller` (empty: version 2) and of those that it is in. In a container the
// path may be that of the host, of which the container sees the end only: what is not there is left out.
std::vector<std::string> Groups(const std::string& root, const std::string& controller) {
  std::ifstream file(absl::StrCat(root, "/proc/self/cgroup"));
  for (std::string line; std::getline(file, line);) {
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    const std::vector<std::string> controllers = absl::StrSplit(fields[1], ',');
    if (std::find(controllers.begin(), controllers.end(), controller) == controllers.end()) continue;
    // Beside version 1, version 2 has a folder of its own.
    std::vector<std::string> mounts = {absl::StrCat(root, kMount, "/", controller)};
    if (controller.empty()) mounts = {absl::StrCat(root, kMount), absl::StrCat(root, kMount, "/unified")};
    std::vector<std::string> folders;
    for (const std::string& mount : mounts) {
      for (std::filesystem::path path = fields[2]; path.has_relative_path(); path = path.parent_path()) {
        folders.push_back(absl::StrCat(mount, path.string()));
      }
      folders.push_back(mount);
    }
    return folders;
  }
  return {};
}

template <class T>
void Lower(std::optional<T>& least, T value) {
  least = std::min(least.value_or(value), value);
}

}  // namespace

std::optional<int64_t> GroupMemoryLeft(const std::string& root) {
  std::optional<int64_t> left;
  const auto take = [&left](std::optional<int64_t> limit, std::optional<int64_t> used, int64_t files) {
    if (!limit || !used || *limit >= kUnlimited) return;
    Lower(left, std::max<int64_t>(*limit - std::max<int64_t>(*used - files, 0), 0));
  };
  for (const std::string& group : Groups(root, "")) {
    const int64_t files = SumOf(group + "/memory.stat", {"inactive_file", "active_file"});
    for (const char* limit : {"/memory.max", "/memory.high"}) {
      take(ReadNumber(group + limit), ReadNumber(group + "/memory.current"), files);
    }
  }
  for (const std::string& group : Groups(root, "memory")) {
    const int64_t files = SumOf(group + "/memory.stat", {"total_inactive_file", "total_active_file"});
    take(ReadNumber(group + "/memory.limit_in_bytes"), ReadNumber(group + "/memory.usage_in_bytes"), files);
  }
  return left;
}

std::optional<double> GroupProcessors(const std::string& root) {
  std::optional<double> processors;
  const auto take = [&processors](int64_t quota, int64_t period) {
    if (quota > 0 && period > 0) Lower(processors, static_cast<double>(quota) / static_cast<double>(period));
  };
  for (const std::string& group : Groups(root, "")) {
    std::ifstream file(group + "/cpu.max");
    int64_t quota = 0, period = 0;
    if (file >> quota >> period) take(quota, period);  // not with "max 100000"
  }
  for (const std::string& group : Groups(root, "cpu")) {
    take(ReadNumber(group + "/cpu.cfs_quota_us").value_or(-1), ReadNumber(group + "/cpu.cfs_period_us").value_or(0));
  }
  return processors;
}

std::optional<int64_t> GroupThreads(const std::string& root) {
  std::optional<int64_t> threads;
  for (const char* const controller : {"", "pids"}) {
    for (const std::string& group : Groups(root, controller)) {
      if (const std::optional<int64_t> most = ReadNumber(group + "/pids.max")) Lower(threads, *most);
    }
  }
  return threads;
}

}  // namespace palimpsest
