#include "server/engine/scheduler.h"

#include <algorithm>
#include <string_view>
#include <tuple>

#include "base/check.h"

namespace palimpsest {

Scheduler::Scheduler(int32_t lanes, int32_t prefill_budget)
    : prefill_budget_(prefill_budget), lanes_(static_cast<size_t>(lanes)) {}

void Scheduler::Enqueue(const Job& job) {
  const Owner* const next = NextForLane();
  if (next == nullptr) Forget();
  // Of these nothing is left to remember: they would go on from `next`, too.
  std::erase_if(owners_,
                [&](const auto& owner) { return !owner->HasJobs() && (next == nullptr || owner->used <= next->used); });
  Owner* owner = Find(job.owner);
  if (owner == nullptr) {
    owner = owners_.emplace_back(std::make_unique<Owner>()).get();
    owner->name = job.owner;
  }
  owner->share = job.share;
  // Who comes back goes on from where those stand that have waited meanwhile.
  if (owner->line.empty() && next != nullptr) owner->used = std::max(owner->used, next->used);
  owner->line.push_back({.job = job, .number = ++arrivals_});
  ++waiting_;
}

// Nobody waits for a lane, so whatever was used was taken from nobody.
void Scheduler::Forget() {
  for (const auto& owner : owners_) owner->used = 0.0;
  for (Lane& lane : lanes_) lane.rows_paid = lane.rows_run;
}

Scheduler::Owner* Scheduler::Find(const std::string& name) const {
  const auto it = std::ranges::find(owners_, name, [](const auto& owner) { return std::string_view(owner->name); });
  return it == owners_.end() ? nullptr : it->get();
}

Scheduler::Owner* Scheduler::NextForLane() const {
  const auto rank = [](const Owner& owner) {
    return std::tuple(owner.used, owner.lanes / owner.share.weight, owner.line.front().number);
  };
  Owner* next = nullptr;
  for (const auto& owner : owners_) {
    if (owner->MayHaveLane() && (next == nullptr || rank(*owner) < rank(*next))) next = owner.get();
  }
  return next;
}

std::optional<Scheduler::Admission> Scheduler::Admit() {
  if (running_ == static_cast<int32_t>(lanes_.size())) return std::nullopt;
  Owner* const owner = NextForLane();
  if (owner == nullptr) return std::nullopt;
  auto chosen = owner->line.begin();
  if (owner->least_is_next) {
    chosen = std::ranges::min_element(owner->line, {}, [](const Waiting& waiting) { return waiting.job.work(); });
  }
  owner->least_is_next = !owner->least_is_next;

  const auto free = std::ranges::find(lanes_, Phase::kFree, &Lane::phase);
  const auto index = static_cast<int32_t>(free - lanes_.begin());
  free->owner = owner;
  free->job = std::move(chosen->job);
  owner->line.erase(chosen);
  ++owner->lanes;
  --waiting_;
  ++running_;
  const Job& job = free->job;
  free->rows_paid = job.work() - job.decode_rows + std::min(job.decode_rows, kReplyRowsPaidAhead);
  owner->used += static_cast<double>(free->rows_paid) / owner->share.weight;
  if (job.feed) {
    free->phase = Phase::kFeeding;
  } else if (job.prefill_rows > 0) {
    BeginPrefill(index);
  } else {
    free->phase = PhaseAfterPrompt(job);
  }
  return Admission{.id = job.id, .lane = index};
}

bool Scheduler::Withdraw(uint64_t id) {
  for (const auto& owner : owners_) {
    const auto it = std::ranges::find(owner->line, id, [](const Waiting& waiting) { return waiting.job.id; });
    if (it == owner->line.end()) continue;
    owner->line.erase(it);
    --waiting_;
    return true;
  }
  return false;
}

void Scheduler::Leave(int32_t index) {
  Lane& lane = lanes_[index];
  PALIMPSEST_CHECK(lane.phase != Phase::kFree);
  Owner& owner = *lane.owner;
  if (lane.phase == Phase::kPrefilling) std::erase(owner.turns, index);
  owner.used -= static_cast<double>(lane.rows_paid - lane.rows_run) / owner.share.weight;
  --owner.lanes;
  lane = Lane();
  --running_;
}

void Scheduler::Pause(int32_t lane, bool paused) { lanes_[lane].paused = paused; }

void Scheduler::Run(Lane& lane, int64_t rows) {
  lane.rows_run += rows;
  if (lane.rows_run <= lane.rows_paid) return;
  lane.owner->used += static_cast<double>(lane.rows_run - lane.rows_paid) / lane.owner->share.weight;
  lane.rows_paid = lane.rows_run;
}

void Scheduler::NextBatch(std::vector<Item>& items) {
  items.clear();
  for (int32_t i = 0; i < static_cast<int32_t>(lanes_.size()); ++i) {
    if (lanes_[i].phase != Phase::kDecoding || lanes_[i].paused) continue;
    items.push_back({.lane = i, .work = Work::kDecode});
    Run(lanes_[i], 1);
  }
  TakePrompts(items);
  // After the prompts: a lane that feeds its pending token now cannot take a chunk in the same batch.
  for (int32_t i = 0; i < static_cast<int32_t>(lanes_.size()); ++i) {
    Lane& lane = lanes_[i];
    if (lane.phase != Phase::kFeeding) continue;
    const bool completes = lane.job.prefill_rows == 0;
    items.push_back({.lane = i, .work = Work::kFeed, .completes_prompt = completes});
    Run(lane, 1);
    if (completes) {
      lane.phase = PhaseAfterPrompt(lane.job);
    } else {
      BeginPrefill(i);
    }
  }
}

void Scheduler::BeginPrefill(int32_t index) {
  Owner& owner = *lanes_[index].owner;
  lanes_[index].phase = Phase::kPrefilling;
  if (owner.turns.empty()) {
    if (const Owner* const next = NextForPrefill()) {
      owner.prefilled = std::max(owner.prefilled, next->prefilled);
    } else {
      for (const auto& other : owners_) other->prefilled = 0.0;
    }
  }
  owner.turns.push_back(index);
}

Scheduler::Owner* Scheduler::NextForPrefill() const {
  Owner* next = nullptr;
  for (const auto& owner : owners_) {
    if (owner->MayPrefill() && (next == nullptr || owner->prefilled < next->prefilled)) next = owner.get();
  }
  return next;
}

void Scheduler::TakePrompts(std::vector<Item>& items) {
  int64_t budget = prefill_budget_;
  bool first = true;
  while (Owner* const owner = NextForPrefill()) {
    const int32_t index = owner->turns.front();
    Lane& lane = lanes_[index];
    const int64_t left = lane.job.prefill_rows - lane.prefilled;
    const auto rows = static_cast<int32_t>(std::min<int64_t>(kChunk, left));
    if (rows == 1 && lane.item >= 0) {
      owner->later.push_back(index);
      owner->turns.pop_front();
      continue;
    }
    if (!first && rows > budget) break;
    if (owner->batch_rows > 0 && owner->batch_rows + rows > owner->share.prefill_budget) {
      owner->budget_is_used = true;
      continue;
    }
    first = false;
    budget -= rows;
    owner->batch_rows += rows;
    owner->prefilled += rows / owner->share.weight;
    if (lane.item < 0) {
      lane.item = static_cast<int32_t>(items.size());
      items.push_back({.lane = index, .work = Work::kPrefill, .begin = lane.prefilled, .rows = 0});
    }
    items[lane.item].rows += rows;
    lane.prefilled += rows;
    Run(lane, rows);
    owner->turns.pop_front();
    if (rows < left) {
      owner->turns.push_back(index);
    } else {
      items[lane.item].completes_prompt = true;
      lane.phase = PhaseAfterPrompt(lane.job);
    }
  }
  for (const auto& owner : owners_) {
    owner->turns.insert(owner->turns.begin(), owner->later.begin(), owner->later.end());
    owner->later.clear();
    owner->batch_rows = 0;
    owner->budget_is_used = false;
    for (const int32_t index : owner->turns) lanes_[index].item = -1;
  }
}

bool Scheduler::HasWork() const {
  if (running_ < static_cast<int32_t>(lanes_.size()) && NextForLane() != nullptr) return true;
  return std::ranges::any_of(lanes_, [](const Lane& lane) {
    return lane.phase == Phase::kFeeding || lane.phase == Phase::kPrefilling ||
           (lane.phase == Phase::kDecoding && !lane.paused);
  });
}

std::vector<uint64_t> Scheduler::Expired(absl::Time now) const {
  std::vector<uint64_t> expired;
  for (const auto& owner : owners_) {
    for (const Waiting& waiting : owner->line) {
      if (waiting.job.deadline <= now) expired.push_back(waiting.job.id);
    }
  }
  for (const Lane& lane : lanes_) {
    if (lane.phase != Phase::kFree && lane.job.deadline <= now) expired.push_back(lane.job.id);
  }
  return expired;
}

absl::Time Scheduler::NextDeadline() const {
  absl::Time earliest = absl::InfiniteFuture();
  for (const auto& owner : owners_) {
    for (const Waiting& waiting : owner->line) earliest = std::min(earliest, waiting.job.deadline);
  }
  for (const Lane& lane : lanes_) {
    if (lane.phase != Phase::kFree) earliest = std::min(earliest, lane.job.deadline);
  }
  return earliest;
}

std::optional<uint64_t> Scheduler::first_waiting() const {
  const Waiting* first = nullptr;
  for (const auto& owner : owners_) {
    if (!owner->line.empty() && (first == nullptr || owner->line.front().number < first->number)) {
      first = &owner->line.front();
    }
  }
  return first == nullptr ? std::nullopt : std::optional(first->job.id);
}

std::optional<uint64_t> Scheduler::newest_waiting(const std::string& name) const {
  const Owner* const owner = Find(name);
  if (owner == nullptr || owner->line.empty()) return std::nullopt;
  return owner->line.back().job.id;
}

}  // namespace palimpsest
