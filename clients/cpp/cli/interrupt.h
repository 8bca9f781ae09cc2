// Ctrl-C and SIGTERM, turned into cancellation of the calls in progress.
#pragma once

#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "clients/cpp/client.h"

namespace palimpsest::cli {

// One per process, made before any other thread so that all inherit its blocked signals; a thread of its own waits for
// them. While no Scope stands, a signal ends the process at once with 128 + its number. While one stands, the first
// signal cancels the scope's calls and the second ends the process.
class Interrupt {
 public:
  Interrupt();
  // Ends the waiting thread.
  ~Interrupt();

  class Scope {
   public:
    explicit Scope(Interrupt& interrupt);
    ~Scope();
    Scope(const Scope&) = delete;

    // Give this to the calls to be cancelled.
    client::Cancellation* cancellation() { return &cancellation_; }
    bool interrupted() const { return cancellation_.cancelled(); }
    // Readable once a signal came.
    int fd() const { return fd_; }
    // Waits. True: the time is over; false: a signal came.
    bool SleepFor(absl::Duration time) const;

   private:
    friend class Interrupt;
    Interrupt& interrupt_;
    Scope* const outer_;
    const int fd_;
    client::Cancellation cancellation_;
  };

  // 0, or the exit code that tells of the last signal that a Scope took and that was not Forgiven.
  int exit_code() const ABSL_LOCKS_EXCLUDED(mu_);
  // The signal has been dealt with: the program goes on.
  void Forgive() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Wait() ABSL_LOCKS_EXCLUDED(mu_);

  mutable absl::Mutex mu_;
  Scope* scope_ ABSL_GUARDED_BY(mu_) = nullptr;  // the innermost one
  int signal_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // constant after construction
};

// Reads lines from stdin without losing sight of an interrupt.
class LineReader {
 public:
  enum class Result { kLine, kEnd, kInterrupted };
  // The next line, without its newline.
  Result Next(const Interrupt::Scope& scope, std::string* line);

 private:
  std::string buffer_;
  bool ended_ = false;
};

}  // namespace palimpsest::cli
