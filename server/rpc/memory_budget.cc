#include "server/rpc/memory_budget.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace palimpsest {
namespace {

void LogPlan(const MemoryPlan& plan) {
  std::vector<std::pair<std::string, std::string>> values;
  for (const MemoryPlan::Row& row : plan.rows) {
    values.emplace_back(absl::StrReplaceAll(row.what, {{" ", "_"}, {"/", "_"}}), absl::StrCat(row.bytes));
  }
  values.emplace_back("needed", absl::StrCat(plan.needed));
  if (!plan.limit.name.empty()) {
    values.emplace_back("left_at_start", absl::StrCat(plan.limit.left));
    values.emplace_back("limited_by", plan.limit.name);
  }
  LogEvent("memory", values);
}

}  // namespace

MemoryBudget::MemoryBudget(const MemoryFlags& flags, std::vector<MemoryLimit> limits, SessionStore* sessions,
                           RequestTable* requests, ReplyBudget* replies)
    : flags_(flags), limits_(std::move(limits)), sessions_(sessions), requests_(requests), replies_(replies) {}

absl::Status MemoryBudget::Use(const std::map<int64_t, ModelMemory>& models) {
  std::vector<ModelMemory> list;
  for (const auto& [key, model] : models) list.push_back(model);
  PALIMPSEST_ASSIGN_OR_RETURN(MemoryPlan plan, PlanMemory(flags_, list, limits_, sessions_->use().all.state_bytes));
  if (!sessions_->SetMaxStateBytes(plan.max_state_bytes)) {
    return absl::ResourceExhaustedError("sessions were made meanwhile, and the memory is theirs; retry");
  }
  plan_ = std::move(plan);
  replies_->SetMaxBytes(plan_.max_reply_bytes);
  requests_->SetMaxBytes(plan_.max_request_id_bytes);
  quota_.Resize(static_cast<size_t>(plan_.max_rpc_memory_bytes));
  return absl::OkStatus();
}

absl::Status MemoryBudget::Begin() {
  absl::MutexLock lock(&mu_);
  return Use(models_);
}

absl::StatusOr<std::shared_ptr<const void>> MemoryBudget::Admit(ModelMemory model) {
  absl::MutexLock lock(&mu_);
  std::map<int64_t, ModelMemory> models = models_;
  const int64_t key = ++last_key_;
  models[key] = std::move(model);
  PALIMPSEST_RETURN_IF_ERROR(Use(models));
  models_ = std::move(models);
  LogPlan(plan_);
  // Only the end of it counts: there is nothing to point to.
  return std::shared_ptr<const void>(static_cast<const void*>(this), [this, key](const void*) { Release(key); });
}

void MemoryBudget::Release(int64_t key) {
  absl::MutexLock lock(&mu_);
  models_.erase(key);
  // With a model less it fits: it did with it, but for what was parked since, which the limit then bounded.
  Use(models_).IgnoreError();
}

MemoryPlan MemoryBudget::plan() const {
  absl::MutexLock lock(&mu_);
  return plan_;
}

}  // namespace palimpsest
