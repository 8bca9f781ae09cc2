#include "base/host/available_processors.h"

#include <sched.h>

#include <algorithm>
#include <thread>

#include "base/host/control_group.h"

namespace palimpsest {

int32_t AvailableProcessors(const std::string& root) {
  auto processors = static_cast<int32_t>(std::thread::hardware_concurrency());
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) processors = CPU_COUNT(&allowed);
  if (const std::optional<double> quota = GroupProcessors(root)) {
    processors = static_cast<int32_t>(std::min<double>(processors, *quota));
  }
  return std::max(processors, 1);
}

}  // namespace palimpsest
