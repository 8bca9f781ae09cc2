// CHECK for broken invariants of our own: prints the condition and the place, then aborts. Bad input from outside is
// never checked this way: it is an absl::Status.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace palimpsest::check_internal {

// Says nothing where standard error would block (a pipe that nobody reads): a process that hangs is worse.
[[noreturn]] inline void Fail(const char* file, int line, const char* condition) {
  pollfd room{STDERR_FILENO, POLLOUT, 0};
  if (poll(&room, 1, 0) == 1) std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace palimpsest::check_internal

#define PALIMPSEST_CHECK(condition)                                       \
  do {                                                                    \
    if (!(condition)) [[unlikely]]                                        \
      ::palimpsest::check_internal::Fail(__FILE__, __LINE__, #condition); \
  } while (false)
