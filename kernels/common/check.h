// CHECK for broken invariants of our own: prints the condition and the place, then aborts. Bad input from outside is
// never checked this way: it is an absl::Status.
#pragma once

#include <cstdio>
#include <cstdlib>

#define PALIMPSEST_CHECK(condition)                                                      \
  do {                                                                                   \
    if (!(condition)) [[unlikely]] {                                                     \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)
