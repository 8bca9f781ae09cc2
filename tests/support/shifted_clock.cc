// Loaded into a process with LD_PRELOAD, this adds to its wall clock the nanoseconds that the file named by
// SHIFTED_CLOCK_FILE holds (eight bytes, which may change at any time). Other clocks stay as they are.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

namespace {

const volatile int64_t* Shift() {
  static const volatile int64_t* const shift = []() -> const volatile int64_t* {
    static const int64_t none = 0;
    const char* const path = getenv("SHIFTED_CLOCK_FILE");
    const int fd = path == nullptr ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return &none;
    void* const mapped = mmap(nullptr, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    return mapped == MAP_FAILED ? &none : static_cast<const volatile int64_t*>(mapped);
  }
  ();
  return shift;
}

}  // namespace

extern "C" int clock_gettime(clockid_t clock, timespec* time) {
  const long failed = syscall(SYS_clock_gettime, clock, time);
  if (failed != 0 || clock != CLOCK_REALTIME) return static_cast<int>(failed);
  constexpr int64_t kSecond = 1'000'000'000;
  const int64_t shifted = time->tv_sec * kSecond + time->tv_nsec + *Shift();
  time->tv_sec = shifted / kSecond;
  time->tv_nsec = shifted % kSecond;
  return 0;
}
