#include "server/rpc/background.h"

#include <atomic>
#include <utility>

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
