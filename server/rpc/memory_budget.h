// Keeps to the arithmetic of memory (server/engine/memory_plan.h) while models come and go: what they leave is shared
// out anew each time, to the session store, the answers and gRPC.
#pragma once

#include <grpcpp/resource_quota.h>

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/engine/memory_plan.h"
#include "server/rpc/reply_budget.h"
#include "server/rpc/request_table.h"
#include "server/session/session_store.h"

namespace palimpsest {

// Thread-safe. Must outlive the rooms that it gives.
class MemoryBudget {
 public:
  // `limits`: what there is before anything is loaded. The pointers must live as long as this.
  MemoryBudget(const MemoryFlags& flags, std::vector<MemoryLimit> limits, SessionStore* sessions,
               RequestTable* requests, ReplyBudget* replies);

  // Whether the server fits at all, with no model. Call once, first: bounds are set from then on. RESOURCE_EXHAUSTED:
  // it does not; the message has the numbers.
  absl::Status Begin();
  // Room for a model until what is returned is let go; logs the plan. RESOURCE_EXHAUSTED: it does not fit beside those
  // there are and what is parked; nothing has changed.
  absl::StatusOr<std::shared_ptr<const void>> Admit(ModelMemory model);

  MemoryPlan plan() const;
  // Bounded by MemoryPlan::max_rpc_memory_bytes, whatever that is at the time.
  grpc::ResourceQuota& quota() { return quota_; }

 private:
  // The plan with these models, put in force if it fits.
  absl::Status Use(const std::map<int64_t, ModelMemory>& models) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Release(int64_t key);

  const MemoryFlags flags_;
  const std::vector<MemoryLimit> limits_;
  SessionStore* const sessions_;
  RequestTable* const requests_;
  ReplyBudget* const replies_;
  grpc::ResourceQuota quota_{"palimpsest"};
  mutable absl::Mutex mu_;
  std::map<int64_t, ModelMemory> models_ ABSL_GUARDED_BY(mu_);
  int64_t last_key_ ABSL_GUARDED_BY(mu_) = 0;
  MemoryPlan plan_ ABSL_GUARDED_BY(mu_);
};

}  // namespace palimpsest
