#include "server/rpc/background.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/errors/errors.h"

namespace palimpsest {

DeliveryThread::DeliveryThread() : thread_([this] { Run(); }) {}

DeliveryThread::~DeliveryThread() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  thread_.join();
}

void DeliveryThread::Post(std::shared_ptr<Deliverable> item) {
  absl::MutexLock lock(&mu_);
  queue_.push_back(std::move(item));
}

void DeliveryThread::Run() {
  std::vector<std::shared_ptr<Deliverable>> taken;
  for (;;) {
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &DeliveryThread::Due));
      if (queue_.empty()) return;
      taken.swap(queue_);
    }
    for (const std::shared_ptr<Deliverable>& item : taken) item->Deliver();
    taken.clear();
  }
}

WorkThreads::WorkThreads(int32_t threads, int32_t queue) : queue_(queue) {
  for (int32_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Loop(); });
}

WorkThreads::~WorkThreads() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

absl::Status WorkThreads::Run(const std::string& connection, std::function<void()> task) {
  absl::MutexLock lock(&mu_);
  const auto found = tasks_.find(connection);
  const int64_t own = found == tasks_.end() ? 0 : std::ssize(found->second);
  const int32_t most = std::max(queue_ / 4, 1);
  if (own >= most || waiting_ >= queue_) {
    return WithReason(
        absl::ResourceExhaustedError(absl::StrCat(
            own >= most ? own : waiting_, " long requests wait to be read already",
            own >= most ? " on this connection" : "", "; retry when they have been, or send shorter ones")),
        "WORK_QUEUE_FULL");
  }
  if (own == 0) turns_.push_back(connection);
  tasks_[connection].push_back(std::move(task));
  ++waiting_;
  return absl::OkStatus();
}

void WorkThreads::Loop() {
  for (;;) {
    std::function<void()> task;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &WorkThreads::Due));
      if (waiting_ == 0) return;
      const auto turn = tasks_.find(turns_.front());
      task = std::move(turn->second.front());
      turn->second.pop_front();
      --waiting_;
      if (turn->second.empty()) {
        tasks_.erase(turn);
      } else {
        turns_.push_back(std::move(turns_.front()));
      }
      turns_.pop_front();
    }
    task();
  }
}

struct TaskThreads::Task {
  std::atomic<bool> done{false};
  std::thread thread;
};

TaskThreads::TaskThreads() = default;

TaskThreads::~TaskThreads() {
  std::vector<std::unique_ptr<Task>> tasks;
  {
    absl::MutexLock lock(&mu_);
    tasks.swap(tasks_);
  }
  for (const auto& task : tasks) task->thread.join();
}

void TaskThreads::Run(std::function<void()> task) {
  absl::MutexLock lock(&mu_);
  std::erase_if(tasks_, [](const std::unique_ptr<Task>& old) {
    if (!old->done) return false;
    old->thread.join();
    return true;
  });
  Task* const added = tasks_.emplace_back(std::make_unique<Task>()).get();
  added->thread = std::thread([added, task = std::move(task)] {
    task();
    added->done = true;
  });
}

}  // namespace palimpsest
