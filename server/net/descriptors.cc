#include "server/net/descriptors.h"

#include <dirent.h>
#include <sys/resource.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace palimpsest {
namespace {

// What gRPC, the metrics page and the listener open when they start.
constexpr int64_t kForLibraries = 16;

int64_t DescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return int64_t{1} << 30;
  return static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, rlim_t{1} << 30));
}

// Those of the standard streams alone if the folder cannot be read.
int64_t OpenDescriptors() {
  DIR* const folder = opendir("/proc/self/fd");
  if (folder == nullptr) return 3;
  int64_t count = 0;
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

}  // namespace

int64_t RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);  // what holds is asked for below
  }
  return DescriptorLimit();
}

absl::StatusOr<int64_t> ConnectionsThatFit(int64_t wanted, int64_t limit, int64_t open) {
  const int64_t reserve = kForLibraries + std::min<int64_t>(128, limit / 4);
  const int64_t fit = std::max<int64_t>(0, (limit - open - reserve) / kDescriptorsPerConnection);
  if (fit < 1) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the limit of ", limit, " descriptors leaves room for no connection: ", open, " are open and ",
                     reserve, " are for libraries and files; raise it (ulimit -n)"));
  }
  if (wanted > fit) {
    return absl::InvalidArgumentError(absl::StrCat("--max_connections is ", wanted, ", of ", kDescriptorsPerConnection,
                                                   " descriptors each; accepted: 0 (as many as fit) to ", fit,
                                                   ", which is what the limit of ", limit,
                                                   " descriptors leaves (ulimit -n)"));
  }
  return wanted > 0 ? wanted : std::min(fit, kMostConnectionsByDefault);
}

absl::StatusOr<int64_t> ConnectionsThatFit(int64_t wanted) {
  return ConnectionsThatFit(wanted, DescriptorLimit(), OpenDescriptors());
}

}  // namespace palimpsest
