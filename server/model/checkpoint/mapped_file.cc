#include "server/model/checkpoint/mapped_file.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/errno_status.h"

namespace palimpsest {
namespace {

// A range of addresses where a bus error means that a file has lost its pages. The list only grows, and its nodes are
// used again, so that the signal's handler can walk it at any time without a lock.
struct GuardedRange {
  std::atomic<bool> used{false};
  std::atomic<uintptr_t> begin{0};  // equal to the end: none
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> lost{false};
  GuardedRange* next = nullptr;  // constant once it is in the list
};
std::atomic<GuardedRange*> g_ranges{nullptr};
struct sigaction g_action_before;  // constant once the handler is there

// Gives the process zeros from the page on that is not there any more to the end of the file's range, so that the read
// that failed goes on. Only calls what a signal's handler may: the system itself for mmap, which is not on the list.
// (And ThreadSanitizer takes the function for a write to pages that others may be reading; they, too, find them gone.)
void OnBusError(int number, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (GuardedRange* range = g_ranges.load(std::memory_order_acquire); range != nullptr; range = range->next) {
    const uintptr_t begin = range->begin.load(std::memory_order_acquire);
    const uintptr_t end = range->end.load(std::memory_order_acquire);
    if (address < begin || address >= end) continue;
    const uintptr_t page = address & ~(static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)) - 1);
    range->lost.store(true, std::memory_order_release);
    if (syscall(SYS_mmap, page, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, off_t{0}) < 0) {
      break;
    }
    errno = saved_errno;
    return;
  }
  // Not ours: as if this handler were not there. The read is tried again when it returns.
  if ((g_action_before.sa_flags & SA_SIGINFO) != 0) {
    g_action_before.sa_sigaction(number, info, context);
  } else if (g_action_before.sa_handler != SIG_DFL && g_action_before.sa_handler != SIG_IGN) {
    g_action_before.sa_handler(number);
  } else {
    signal(number, SIG_DFL);
  }
  errno = saved_errno;
}

GuardedRange& Guard(const void* data, size_t size) {
  static std::once_flag installed;
  std::call_once(installed, [] {
    struct sigaction action {};
    action.sa_sigaction = OnBusError;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, nullptr, &g_action_before);
    sigaction(SIGBUS, &action, nullptr);
  });
  GuardedRange* range = g_ranges.load(std::memory_order_acquire);
  while (range != nullptr && range->used.exchange(true)) range = range->next;
  if (range == nullptr) {
    range = new GuardedRange;
    range->used = true;
    range->next = g_ranges.load();
    while (!g_ranges.compare_exchange_weak(range->next, range)) {
    }
  }
  range->lost = false;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  range->begin.store(begin, std::memory_order_release);
  range->end.store(begin + size, std::memory_order_release);
  return *range;
}

void Unguard(GuardedRange& range) {
  range.end.store(0, std::memory_order_release);
  range.begin.store(0, std::memory_order_release);
  range.used.store(false);
}

}  // namespace

class MappedFile::Mapping {
 public:
  Mapping(void* data, size_t size) : data_(data), size_(size), range_(Guard(data, size)) {}
  ~Mapping() {
    Unguard(range_);
    munmap(data_, size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::string_view bytes() const { return {static_cast<const char*>(data_), size_}; }
  bool lost() const { return range_.lost.load(std::memory_order_acquire); }

 private:
  void* const data_;
  const size_t size_;
  GuardedRange& range_;
};

MappedFile::MappedFile(std::string path, RegularFile file)
    : path_(std::move(path)), file_(std::move(file)), mapping_(nullptr, [](Mapping* mapping) { delete mapping; }) {}

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path, int64_t max_bytes) {
  absl::StatusOr<RegularFile> file = RegularFile::Open(path);
  if (!file.ok()) return file.status();
  if (file->size() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", file->size(), " bytes, at most ", max_bytes, " are read"));
  }
  const auto size = static_cast<size_t>(file->size());
  MappedFile mapped(path, *std::move(file));
  if (size == 0) return mapped;
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, mapped.file_.descriptor(), 0);
  if (data == MAP_FAILED) return ErrnoStatus(errno, path);
  madvise(data, size, MADV_WILLNEED);
  mapped.mapping_.reset(new Mapping(data, size));
  return mapped;
}

std::string_view MappedFile::bytes() const { return mapping_ == nullptr ? std::string_view() : mapping_->bytes(); }

absl::Status MappedFile::CheckUnchanged() const {
  if (absl::Status status = file_.CheckUnchanged(); !status.ok()) return status;
  if (mapping_ == nullptr || !mapping_->lost()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path_,
                                          ": could not be read to its end: it was cut short for a while, or the ",
                                          "disk failed; replace files by renaming"));
}

}  // namespace palimpsest
