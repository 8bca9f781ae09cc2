#include "server/engine/scheduler.h"

#include <algorithm>

#include "kernels/common/check.h"

namespace palimpsest {

Scheduler::Scheduler(int32_t lanes, int32_t prefill_budget)
    : prefill_budget_(prefill_budget), lanes_(static_cast<size_t>(lanes)) {}

void Scheduler::Enqueue(const Job& job) { line_.push_back(job); }

std::optional<Scheduler::Admission> Scheduler::Admit() {
  if (line_.empty() || running_ == static_cast<int32_t>(lanes_.size())) return std::nullopt;
  const auto free = std::ranges::find(lanes_, Phase::kFree, &Lane::phase);
  const auto index = static_cast<int32_t>(free - lanes_.begin());
  const Job& job = line_.front();
  *free = {.phase = job.feed               ? Phase::kFeeding
                    : job.prefill_rows > 0 ? Phase::kPrefilling
                                           : PhaseAfterPrompt(job),
           .job = job};
  if (free->phase == Phase::kPrefilling) turns_.push_back(index);
  line_.pop_front();
  ++running_;
  return Admission{.id = free->job.id, .lane = index};
}

bool Scheduler::Withdraw(uint64_t id) {
  const auto it = std::ranges::find(line_, id, &Job::id);
  if (it == line_.end()) return false;
  line_.erase(it);
  return true;
}

void Scheduler::Leave(int32_t lane) {
  PALIMPSEST_CHECK(lanes_[lane].phase != Phase::kFree);
  if (lanes_[lane].phase == Phase::kPrefilling) std::erase(turns_, lane);
  lanes_[lane].phase = Phase::kFree;
  --running_;
}

void Scheduler::Hold(int32_t lane, bool held) { lanes_[lane].held = held; }

void Scheduler::NextBatch(std::vector<Item>& items) {
  items.clear();
  for (int32_t i = 0; i < static_cast<int32_t>(lanes_.size()); ++i) {
    if (lanes_[i].phase == Phase::kDecoding && !lanes_[i].held) items.push_back({.lane = i, .work = Work::kDecode});
  }
  TakePrompts(items);
  // After the prompts: a lane that feeds its pending token now cannot take a chunk in the same batch.
  for (int32_t i = 0; i < static_cast<int32_t>(lanes_.size()); ++i) {
    Lane& lane = lanes_[i];
    if (lane.phase != Phase::kFeeding) continue;
    const bool completes = lane.job.prefill_rows == 0;
    items.push_back({.lane = i, .work = Work::kFeed, .completes_prompt = completes});
    lane.phase = completes ? PhaseAfterPrompt(lane.job) : Phase::kPrefilling;
    if (!completes) turns_.push_back(i);
  }
}

void Scheduler::TakePrompts(std::vector<Item>& items) {
  for (const int32_t index : turns_) lanes_[index].item = -1;
  int64_t budget = prefill_budget_;
  bool first = true;
  std::vector<int32_t> later;  // all that is left of them is a chunk of one row, which goes alone
  while (!turns_.empty()) {
    const int32_t index = turns_.front();
    Lane& lane = lanes_[index];
    const int64_t left = lane.job.prefill_rows - lane.prefilled;
    const auto rows = static_cast<int32_t>(std::min<int64_t>(kChunk, left));
    if (rows == 1 && lane.item >= 0) {
      later.push_back(index);
      turns_.pop_front();
      continue;
    }
    if (!first && rows > budget) break;
    first = false;
    budget -= rows;
    if (lane.item < 0) {
      lane.item = static_cast<int32_t>(items.size());
      items.push_back({.lane = index, .work = Work::kPrefill, .begin = lane.prefilled, .rows = 0});
    }
    items[lane.item].rows += rows;
    lane.prefilled += rows;
    turns_.pop_front();
    if (rows < left) {
      turns_.push_back(index);
    } else {
      items[lane.item].completes_prompt = true;
      lane.phase = PhaseAfterPrompt(lane.job);
    }
  }
  turns_.insert(turns_.begin(), later.begin(), later.end());
}

bool Scheduler::HasWork() const {
  if (!line_.empty() && running_ < static_cast<int32_t>(lanes_.size())) return true;
  return std::ranges::any_of(lanes_, [](const Lane& lane) {
    return lane.phase == Phase::kFeeding || lane.phase == Phase::kPrefilling ||
           (lane.phase == Phase::kDecoding && !lane.held);
  });
}

std::vector<uint64_t> Scheduler::Expired(absl::Time now) const {
  std::vector<uint64_t> expired;
  for (const Job& job : line_) {
    if (job.deadline <= now) expired.push_back(job.id);
  }
  for (const Lane& lane : lanes_) {
    if (lane.phase != Phase::kFree && lane.job.deadline <= now) expired.push_back(lane.job.id);
  }
  return expired;
}

absl::Time Scheduler::NextDeadline() const {
  absl::Time earliest = absl::InfiniteFuture();
  for (const Job& job : line_) earliest = std::min(earliest, job.deadline);
  for (const Lane& lane : lanes_) {
    if (lane.phase != Phase::kFree) earliest = std::min(earliest, lane.job.deadline);
  }
  return earliest;
}

}  // namespace palimpsest
