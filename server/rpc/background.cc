#include "server/rpc/background.h"

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/status.h"

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

absl::Status WorkThreads::Run(std::function<void()> task) {
  absl::MutexLock lock(&mu_);
  if (std::ssize(tasks_) >= queue_) {
    return WithReason(absl::ResourceExhaustedError(absl::StrCat(queue_,
                                                                " long requests wait to be read already; retry, "
                                                                "or send shorter ones")),
                      "WORK_QUEUE_FULL");
  }
  tasks_.push_back(std::move(task));
  return absl::OkStatus();
}

void WorkThreads::Loop() {
  for (;;) {
    std::function<void()> task;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &WorkThreads::Due));
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
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
