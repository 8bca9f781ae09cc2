#include "server/metrics/process_collector.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace palimpsest {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

std::string ReadAll(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class ProcessCollector : public prometheus::Collectable {
 public:
  std::vector<MetricFamily> Collect() const override {
    std::vector<MetricFamily> families;
    auto add = [&families](const char* name, const char* help, MetricType type, double value) {
      prometheus::ClientMetric metric;
      if (type == MetricType::Counter) {
        metric.counter.value = value;
      } else {
        metric.gauge.value = value;
      }
      families.push_back(MetricFamily{name, help, type, {metric}});
    };

    // Field numbers are those of proc(5), section /proc/pid/stat. The second, the command in parentheses, may hold
    // anything, so the count begins after its end.
    const std::string stat = ReadAll("/proc/self/stat");
    const size_t close = stat.rfind(')');
    std::vector<std::string> fields;
    if (close != std::string::npos) fields = absl::StrSplit(stat.substr(close + 1), ' ', absl::SkipEmpty());
    auto field = [&fields](size_t number) {
      double value = 0;
      return number - 3 < fields.size() && absl::SimpleAtod(fields[number - 3], &value) ? value : 0;
    };
    if (!fields.empty()) {
      const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
      add("process_cpu_seconds_total", "Processor time used.", MetricType::Counter, (field(14) + field(15)) / ticks);
      add("process_threads", "Threads.", MetricType::Gauge, field(20));
      add("process_virtual_memory_bytes", "Address space.", MetricType::Gauge, field(23));
      add("process_resident_memory_bytes", "Resident memory.", MetricType::Gauge,
          field(24) * static_cast<double>(sysconf(_SC_PAGESIZE)));
      for (const absl::string_view line : absl::StrSplit(ReadAll("/proc/stat"), '\n')) {
        const std::vector<std::string> words = absl::StrSplit(line, ' ');
        double boot = 0;
        if (words.size() == 2 && words[0] == "btime" && absl::SimpleAtod(words[1], &boot)) {
          add("process_start_time_seconds", "When the process began, since the epoch.", MetricType::Gauge,
              boot + field(22) / ticks);
        }
      }
    }

    std::error_code error;
    std::filesystem::directory_iterator descriptors("/proc/self/fd", error);
    if (!error) {
      int64_t count = -1;  // not the one that reads this list
      for (const std::filesystem::directory_iterator end; descriptors != end && !error; descriptors.increment(error)) {
        ++count;
      }
      add("process_open_fds", "Open file descriptors.", MetricType::Gauge, static_cast<double>(count));
    }
    rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
      add("process_max_fds", "Most file descriptors that may be open.", MetricType::Gauge,
          static_cast<double>(limit.rlim_cur));
    }
    return families;
  }
};

}  // namespace

std::shared_ptr<prometheus::Collectable> MakeProcessCollector() { return std::make_shared<ProcessCollector>(); }

}  // namespace palimpsest
