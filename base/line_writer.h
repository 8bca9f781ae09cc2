// Lines on their way to a descriptor that may be slow, stuck or gone: whoever writes one never waits.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace palimpsest {

// A bounded queue and one thread that empties it. A line that finds no room, or that the descriptor refuses (a full
// disk, a pipe without a reader), is dropped and counted, and a line says how many were as soon as one can be written
// again. Thread-safe.
class LineWriter {
 public:
  struct Limits {
    int64_t lines = 16384;
    int64_t bytes = 4 << 20;
  };
  // The line, without its end, that reports that so many lines were dropped. It must not throw or write lines itself.
  using DropReport = std::function<std::string(int64_t lines)>;

  // `descriptor` stays the caller's; it must stay open, and may be in blocking mode or not.
  LineWriter(int descriptor, const Limits& limits, DropReport report);
  // Lines that are still queued are lost.
  ~LineWriter();
  LineWriter(const LineWriter&) = delete;
  LineWriter& operator=(const LineWriter&) = delete;

  // Takes a line without its end.
  void Write(std::string line) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits until every line that was taken is written or dropped. False: `timeout` was over before.
  bool Flush(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);
  // Since the beginning.
  int64_t dropped() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Line {
    std::string text;      // with its end
    int64_t reported = 0;  // lines whose loss it reports
  };

  void Push(Line line) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReportDropped() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool HasWork() const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  bool IsIdle() const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  // Writes what is at the front of the queue.
  void WriteSome() ABSL_LOCKS_EXCLUDED(mu_);
  // False: the descriptor refuses. Gives up, too, when this object is to go.
  bool WriteAll(const std::string& text);
  // False: not within `timeout_ms` (-1: however long it takes), or this object is to go.
  bool AwaitRoom(int timeout_ms) const;

  const int descriptor_;
  const Limits limits_;
  const DropReport report_;
  int stop_event_ = -1;  // readable when this object is to go
  bool has_thread_ = false;
  bool inside_line_ = false;  // the descriptor took the beginning of a line only; the writing thread's

  mutable absl::Mutex mu_;  // never held while the descriptor is written to
  std::deque<Line> queue_ ABSL_GUARDED_BY(mu_);
  int64_t queued_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // with what is being written
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool failing_ ABSL_GUARDED_BY(mu_) = false;  // the descriptor refused the last that it was given
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  int64_t dropped_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t reported_ ABSL_GUARDED_BY(mu_) = 0;  // of the dropped ones, those that a line reports
  std::thread thread_;
};

}  // namespace palimpsest
