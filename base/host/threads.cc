#include "base/host/threads.h"

#include <pthread.h>
#include <semaphore.h>
#include <sys/resource.h>

#include <algorithm>
#include <climits>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/host/control_group.h"

namespace palimpsest {

std::string ThreadLimits() {
  rlimit limit{};
  std::string text = "RLIMIT_NPROC ";
  if (getrlimit(RLIMIT_NPROC, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    absl::StrAppend(&text, limit.rlim_cur, " for all processes of the user (ulimit -u)");
  } else {
    absl::StrAppend(&text, "unlimited");
  }
  if (const std::optional<int64_t> group = GroupThreads()) {
    absl::StrAppend(&text, ", pids.max ", *group, " of its control group");
  }
  return text;
}

absl::StatusOr<std::thread> StartThread(std::function<void()> run) {
  try {
    return std::thread(std::move(run));
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a thread cannot be started (", error.code().message(), "); the limits are: ", ThreadLimits()));
  }
}

absl::Status CheckThreads(int32_t count) {
  sem_t end;
  sem_init(&end, 0, 0);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  // Stacks of the usual size are part of the memory plan. Larger ones (ulimit -s) may not fit the addresses that there
  // are, and are asked for as they will be.
  constexpr size_t kUsualStack = size_t{16} << 20;
  size_t stack = 0;
  pthread_attr_getstacksize(&attributes, &stack);
  if (stack <= kUsualStack) {
    pthread_attr_setstacksize(&attributes, std::max<size_t>(PTHREAD_STACK_MIN, 64 << 10));
  }
  std::vector<pthread_t> threads;
  int error = 0;
  while (std::cmp_less(threads.size(), count)) {
    pthread_t thread;
    error = pthread_create(
        &thread, &attributes,
        +[](void* semaphore) -> void* {
          while (sem_wait(static_cast<sem_t*>(semaphore)) != 0) {
          }
          return nullptr;
        },
        &end);
    if (error != 0) break;
    threads.push_back(thread);
  }
  for (size_t i = 0; i < threads.size(); ++i) sem_post(&end);
  for (const pthread_t thread : threads) pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  sem_destroy(&end);
  if (error == 0) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the server needs ", count, " more threads, ", threads.size(),
                                                   " can be had (", std::generic_category().message(error),
                                                   "); the limits are: ", ThreadLimits()));
}

}  // namespace palimpsest
