#include "clients/cpp/cli/interrupt.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>

namespace palimpsest::cli {
namespace {

sigset_t Signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGUSR1);  // from the destructor: end the thread
  return signals;
}

}  // namespace

Interrupt::Interrupt() {
  const sigset_t signals = Signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  thread_ = std::thread(&Interrupt::Wait, this);
}

Interrupt::~Interrupt() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  pthread_kill(thread_.native_handle(), SIGUSR1);
  thread_.join();
}

void Interrupt::Wait() {
  const sigset_t signals = Signals();
  while (true) {
    int signal = 0;
    if (sigwait(&signals, &signal) != 0) continue;
    absl::MutexLock lock(&mu_);
    if (stopping_) return;
    if (signal == SIGUSR1) continue;
    if (scope_ == nullptr || scope_->interrupted()) _exit(128 + signal);
    signal_ = signal;
    scope_->cancellation_.Cancel();
    const uint64_t one = 1;
    (void)!write(scope_->fd_, &one, sizeof(one));
  }
}

int Interrupt::exit_code() const {
  absl::MutexLock lock(&mu_);
  return signal_ == 0 ? 0 : 128 + signal_;
}

void Interrupt::Forgive() {
  absl::MutexLock lock(&mu_);
  signal_ = 0;
}

Interrupt::Scope::Scope(Interrupt& interrupt)
    : interrupt_(interrupt),
      outer_([&interrupt] {
        absl::MutexLock lock(&interrupt.mu_);
        return interrupt.scope_;
      }()),
      fd_(eventfd(0, EFD_CLOEXEC)) {
  absl::MutexLock lock(&interrupt_.mu_);
  interrupt_.scope_ = this;
}

Interrupt::Scope::~Scope() {
  {
    absl::MutexLock lock(&interrupt_.mu_);
    interrupt_.scope_ = outer_;
  }
  close(fd_);
}

bool Interrupt::Scope::SleepFor(absl::Duration time) const {
  pollfd fd = {fd_, POLLIN, 0};
  const absl::Time end = absl::Now() + time;
  while (true) {
    const int64_t left = absl::ToInt64Milliseconds(end - absl::Now() + absl::Microseconds(999));
    if (left <= 0) return !interrupted();
    if (poll(&fd, 1, static_cast<int>(std::min<int64_t>(left, 1 << 30))) > 0) return false;
  }
}

LineReader::Result LineReader::Next(const Interrupt::Scope& scope, std::string* line) {
  while (true) {
    const size_t newline = buffer_.find('\n');
    if (newline != std::string::npos || (ended_ && !buffer_.empty())) {
      *line = buffer_.substr(0, newline);
      buffer_.erase(0, newline == std::string::npos ? newline : newline + 1);
      return Result::kLine;
    }
    if (ended_) return Result::kEnd;
    pollfd fds[] = {{STDIN_FILENO, POLLIN, 0}, {scope.fd(), POLLIN, 0}};
    if (poll(fds, 2, -1) < 0 && errno != EINTR) return Result::kEnd;
    if (fds[1].revents != 0) return Result::kInterrupted;
    if (fds[0].revents == 0) continue;
    char bytes[4096];
    const ssize_t count = read(STDIN_FILENO, bytes, sizeof(bytes));
    if (count > 0) buffer_.append(bytes, count);
    if (count <= 0) ended_ = true;
  }
}

}  // namespace palimpsest::cli
