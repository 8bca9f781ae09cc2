// Threads for what must not hold up the callers' or the engine's.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace palimpsest {

// Something that has output for a client.
class Deliverable {
 public:
  virtual ~Deliverable() = default;
  // Called on the delivery thread, once for each Post.
  virtual void Deliver() = 0;
};

// One thread that turns what engines produced into messages and starts their writes. Engines only append to its queue,
// so that serialising and system calls never hold up a batch; what piles up meanwhile leaves in one message.
// Thread-safe.
class DeliveryThread {
 public:
  DeliveryThread();
  // Delivers what is queued, then ends.
  ~DeliveryThread();

  void Post(std::shared_ptr<Deliverable> item);

 private:
  void Run();
  bool Due() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stop_ || !queue_.empty(); }

  absl::Mutex mu_;  // not held while delivering
  std::vector<std::shared_ptr<Deliverable>> queue_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// A fixed number of threads for requests whose reading takes long: parsing and turning text into tokens. gRPC's own
// threads, which all calls share, health's among them, stay free. Connections take turns, so that one which sends many
// long requests holds up its own only. Thread-safe.
class WorkThreads {
 public:
  // `queue`: tasks that may wait. One connection may have a quarter of that.
  WorkThreads(int32_t threads, int32_t queue);
  // Runs what waits, then ends.
  ~WorkThreads();

  // `connection`: gRPC's name of the peer. RESOURCE_EXHAUSTED (WORK_QUEUE_FULL): as many wait as may, in all or of this
  // connection, and `task` will not run.
  absl::Status Run(const std::string& connection, std::function<void()> task);

 private:
  void Loop();
  bool Due() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stop_ || waiting_ > 0; }

  const int32_t queue_;
  absl::Mutex mu_;  // not held while a task runs
  absl::flat_hash_map<std::string, std::deque<std::function<void()>>> tasks_ ABSL_GUARDED_BY(mu_);  // none empty
  std::deque<std::string> turns_ ABSL_GUARDED_BY(mu_);  // the connections of `tasks_`, whose turn is next in front
  int32_t waiting_ ABSL_GUARDED_BY(mu_) = 0;            // tasks of all of them
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

// Runs each task on a thread of its own: for the few calls that take seconds, loading and unloading a model. Callers
// bound their number. Thread-safe.
class TaskThreads {
 public:
  TaskThreads();
  // Waits for the tasks.
  ~TaskThreads();

  void Run(std::function<void()> task);

 private:
  struct Task;
  absl::Mutex mu_;
  std::vector<std::unique_ptr<Task>> tasks_ ABSL_GUARDED_BY(mu_);
};

}  // namespace palimpsest
