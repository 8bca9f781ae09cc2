#include "base/line_writer.h"

#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <string_view>
#include <system_error>
#include <utility>

namespace palimpsest {
namespace {

// What a pipe that says it has room takes without blocking, and without mixing it with what others write.
constexpr size_t kWriteBytes = PIPE_BUF;

}  // namespace

LineWriter::LineWriter(int descriptor, const Limits& limits, DropReport report)
    : descriptor_(descriptor), limits_(limits), report_(std::move(report)), stop_event_(eventfd(0, EFD_CLOEXEC)) {
  // The thread takes no signals: those of the process are somebody else's, and a broken pipe is an error of a write.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    thread_ = std::thread([this] { Run(); });
    has_thread_ = true;
  } catch (const std::system_error&) {
    // The system is out of threads, and lines that say so must get out: see Write.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

LineWriter::~LineWriter() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  const uint64_t one = 1;
  (void)!write(stop_event_, &one, sizeof one);
  if (thread_.joinable()) thread_.join();
  close(stop_event_);
}

void LineWriter::Write(std::string line) try {
  line += '\n';
  {
    absl::MutexLock lock(&mu_);
    if (static_cast<int64_t>(queue_.size()) >= limits_.lines ||
        queued_bytes_ + static_cast<int64_t>(line.size()) > limits_.bytes) {
      ++dropped_;
      return;
    }
    ReportDropped();
    Push({std::move(line)});
    // Without a thread the caller writes, as long as that does not block.
    if (has_thread_ || writing_) return;
    writing_ = true;
  }
  if (AwaitRoom(0)) WriteSome();
  absl::MutexLock lock(&mu_);
  writing_ = false;
} catch (const std::bad_alloc&) {
  absl::MutexLock lock(&mu_);
  ++dropped_;
}

bool LineWriter::Flush(absl::Duration timeout) {
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(this, &LineWriter::IsIdle), timeout);
}

int64_t LineWriter::dropped() const {
  absl::MutexLock lock(&mu_);
  return dropped_;
}

void LineWriter::Push(Line line) {
  queued_bytes_ += static_cast<int64_t>(line.text.size());
  queue_.push_back(std::move(line));
}

void LineWriter::ReportDropped() {
  const int64_t lines = dropped_ - reported_;
  if (lines == 0) return;
  Push({report_(lines) + "\n", lines});
  reported_ = dropped_;
}

// What was dropped is reported when the queue has run empty, or in front of the next line; not again and again to a
// descriptor that refuses it.
bool LineWriter::HasWork() const { return stop_ || !queue_.empty() || (dropped_ > reported_ && !failing_); }

bool LineWriter::IsIdle() const { return queue_.empty() && !writing_ && (dropped_ == reported_ || failing_); }

void LineWriter::Run() {
  for (;;) {
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &LineWriter::HasWork));
      if (stop_) return;
      if (queue_.empty()) ReportDropped();
      writing_ = true;
    }
    WriteSome();
    absl::MutexLock lock(&mu_);
    writing_ = false;
  }
}

void LineWriter::WriteSome() {
  std::string text;
  int64_t lines = 0, reported = 0;
  {
    absl::MutexLock lock(&mu_);
    while (!queue_.empty() && (text.empty() || text.size() + queue_.front().text.size() <= kWriteBytes)) {
      Line& line = queue_.front();
      text += line.text;
      lines += line.reported == 0 ? 1 : 0;
      reported += line.reported;
      queue_.pop_front();
    }
  }
  const bool written = WriteAll(text);
  absl::MutexLock lock(&mu_);
  queued_bytes_ -= static_cast<int64_t>(text.size());
  failing_ = !written;
  if (written) return;
  dropped_ += lines;
  reported_ -= reported;
}

bool LineWriter::WriteAll(const std::string& text) {
  // After half a line, so that whole ones begin at the beginning of a line.
  const std::string whole = inside_line_ ? "\n" + text : text;
  std::string_view left = whole;
  while (!left.empty()) {
    if (!AwaitRoom(-1)) return false;
    const ssize_t written = write(descriptor_, left.data(), std::min(left.size(), kWriteBytes));
    if (written >= 0) {
      inside_line_ = written > 0 ? left[static_cast<size_t>(written) - 1] != '\n' : inside_line_;
      left.remove_prefix(static_cast<size_t>(written));
    } else if (errno != EINTR && errno != EAGAIN) {
      return false;
    }
  }
  return true;
}

bool LineWriter::AwaitRoom(int timeout_ms) const {
  pollfd watched[] = {{descriptor_, POLLOUT, 0}, {stop_event_, POLLIN, 0}};
  // An error of the descriptor counts as room: the write will tell which it is.
  while (poll(watched, 2, timeout_ms) < 0) {
    if (errno != EINTR) return false;
  }
  return watched[0].revents != 0 && watched[1].revents == 0;
}

}  // namespace palimpsest
