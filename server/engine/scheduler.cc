#include "server/engine/scheduler.h"

#include <algorithm>
#include <string_view>
#include <tuple>

#include "base/check.h"

namespace palimpsest {

Scheduler::Scheduler(int32_t slots, int32_t prefill_budget)
    : prefill_budget_(prefill_budget), slots_(static_cast<size_t>(slots)) {}

void Scheduler::Enqueue(const Job& job) {
  const Owner* const next = NextForSlot();
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

// Nobody waits for a slot, so whatever was used was taken from nobody.
void Scheduler::Forget() {
  for (const auto& owner : owners_) owner->used = 0.0;
  for (Slot& slot : slots_) slot.rows_paid = slot.rows_run;
}

Scheduler::Owner* Scheduler::Find(const std::string& name) const {
  const auto it = std::ranges::find(owners_, name, [](const auto& owner) { return std::string_view(owner->name); });
  return it == owners_.end() ? nullptr : it->get();
}

Scheduler::Owner* Scheduler::NextForSlot() const {
  const auto rank = [](const Owner& owner) {
    return std::tuple(owner.used, owner.slots / owner.share.weight, owner.line.front().number);
  };
  Owner* next = nullptr;
  for (const auto& owner : owners_) {
    if (owner->MayHaveSlot() && (next == nullptr || rank(*owner) < rank(*next))) next = owner.get();
  }
  return next;
}

std::optional<Scheduler::Admission> Scheduler::Admit() {
  if (running_ == static_cast<int32_t>(slots_.size())) return std::nullopt;
  Owner* const owner = NextForSlot();
  if (owner == nullptr) return std::nullopt;
  auto chosen = owner->line.begin();
  if (owner->least_is_next) {
    chosen = std::ranges::min_element(owner->line, {}, [](const Waiting& waiting) { return waiting.job.work(); });
  }
  owner->least_is_next = !owner->least_is_next;

  const auto free = std::ranges::find(slots_, Phase::kFree, &Slot::phase);
  const auto index = static_cast<int32_t>(free - slots_.begin());
  free->owner = owner;
  free->job = std::move(chosen->job);
  owner->line.erase(chosen);
  ++owner->slots;
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
  return Admission{.id = job.id, .slot = index};
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
  Slot& slot = slots_[index];
  PALIMPSEST_CHECK(slot.phase != Phase::kFree);
  Owner& owner = *slot.owner;
  if (slot.phase == Phase::kPrefilling) std::erase(owner.turns, index);
  owner.used -= static_cast<double>(slot.rows_paid - slot.rows_run) / owner.share.weight;
  --owner.slots;
  slot = Slot();
  --running_;
}

void Scheduler::Pause(int32_t slot, bool paused) { slots_[slot].paused = paused; }

void Scheduler::Run(Slot& slot, int64_t rows) {
  slot.rows_run += rows;
  if (slot.rows_run <= slot.rows_paid) return;
  slot.owner->used += static_cast<double>(slot.rows_run - slot.rows_paid) / slot.owner->share.weight;
  slot.rows_paid = slot.rows_run;
}

void Scheduler::NextBatch(std::vector<Item>& items) {
  items.clear();
  for (int32_t i = 0; i < static_cast<int32_t>(slots_.size()); ++i) {
    if (slots_[i].phase != Phase::kDecoding || slots_[i].paused) continue;
    items.push_back({.slot = i, .work = Work::kDecode});
    Run(slots_[i], 1);
  }
  TakePrompts(items);
  // After the prompts: a slot that feeds its pending token now cannot take a chunk in the same batch.
  for (int32_t i = 0; i < static_cast<int32_t>(slots_.size()); ++i) {
    Slot& slot = slots_[i];
    if (slot.phase != Phase::kFeeding) continue;
    const bool completes = slot.job.prefill_rows == 0;
    items.push_back({.slot = i, .work = Work::kFeed, .completes_prompt = completes});
    Run(slot, 1);
    if (completes) {
      slot.phase = PhaseAfterPrompt(slot.job);
    } else {
      BeginPrefill(i);
    }
  }
}

void Scheduler::BeginPrefill(int32_t index) {
  Owner& owner = *slots_[index].owner;
  slots_[index].phase = Phase::kPrefilling;
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
    Slot& slot = slots_[index];
    const int64_t left = slot.job.prefill_rows - slot.prefilled;
    const auto rows = static_cast<int32_t>(std::min<int64_t>(kChunk, left));
    if (rows == 1 && slot.item >= 0) {
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
    if (slot.item < 0) {
      slot.item = static_cast<int32_t>(items.size());
      items.push_back({.slot = index, .work = Work::kPrefill, .begin = slot.prefilled, .rows = 0});
    }
    items[slot.item].rows += rows;
    slot.prefilled += rows;
    Run(slot, rows);
    owner->turns.pop_front();
    if (rows < left) {
      owner->turns.push_back(index);
    } else {
      items[slot.item].completes_prompt = true;
      slot.phase = PhaseAfterPrompt(slot.job);
    }
  }
  for (const auto& owner : owners_) {
    owner->turns.insert(owner->turns.begin(), owner->later.begin(), owner->later.end());
    owner->later.clear();
    owner->batch_rows = 0;
    owner->budget_is_used = false;
    for (const int32_t index : owner->turns) slots_[index].item = -1;
  }
}

bool Scheduler::HasWork() const {
  if (running_ < static_cast<int32_t>(slots_.size()) && NextForSlot() != nullptr) return true;
  return std::ranges::any_of(slots_, [](const Slot& slot) {
    return slot.phase == Phase::kFeeding || slot.phase == Phase::kPrefilling ||
           (slot.phase == Phase::kDecoding && !slot.paused);
  });
}

std::vector<uint64_t> Scheduler::Expired(absl::Time now) const {
  std::vector<uint64_t> expired;
  for (const auto& owner : owners_) {
    for (const Waiting& waiting : owner->line) {
      if (waiting.job.deadline <= now) expired.push_back(waiting.job.id);
    }
  }
  for (const Slot& slot : slots_) {
    if (slot.phase != Phase::kFree && slot.job.deadline <= now) expired.push_back(slot.job.id);
  }
  return expired;
}

absl::Time Scheduler::NextDeadline() const {
  absl::Time earliest = absl::InfiniteFuture();
  for (const auto& owner : owners_) {
    for (const Waiting& waiting : owner->line) earliest = std::min(earliest, waiting.job.deadline);
  }
  for (const Slot& slot : slots_) {
    if (slot.phase != Phase::kFree) earliest = std::min(earliest, slot.job.deadline);
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
