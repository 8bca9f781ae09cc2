#include "server/engine/waiting_room.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace palimpsest {
namespace {

double Load(const WaitingRoom::Count& count, int32_t more = 0) { return (count.waiting + more) / count.weight; }

}  // namespace

absl::Status WaitingRoom::Enter(const std::string& owner, const EngineShare& share) {
  const auto found = owners_.find(owner);
  Count count = found == owners_.end() ? Count{} : found->second;
  count.weight = share.weight;
  const int32_t slots = std::min(share.max_slots.value_or(slots_), slots_);
  const int32_t places = std::min(share.max_queue.value_or(max_queue_), max_queue_);
  const int32_t own = count.waiting + count.running;
  if (own >= slots + places && slots + places < slots_ + max_queue_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the share of owner ", owner, " is used up: ", own, " of its requests are here, it may have ",
                     slots, " slots (max_slots) and ", places, " places in the queue (max_queue); retry later"));
  }
  if (here_ - making_room_ >= slots_ + max_queue_) {
    Count* most = nullptr;
    for (auto& [name, other] : owners_) {
      if (other.waiting > 0 && (most == nullptr || Load(other) > Load(*most))) most = &other;
    }
    // In the place of another it must not have more than that one is left with.
    if (most == nullptr || Load(count, 1) > Load(*most, -1)) {
      return absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", here_ - making_room_,
                                                       " requests are here, ", slots_, " of them run at once, and ",
                                                       own, " are of owner ", owner, "; retry later"));
    }
    --most->waiting;
    ++most->making_room;
    ++making_room_;
  }
  ++count.waiting;
  owners_[owner] = count;
  ++here_;
  return absl::OkStatus();
}

std::vector<std::string> WaitingRoom::making_room() const {
  std::vector<std::string> owners;
  if (making_room_ == 0) return owners;
  for (const auto& [name, count] : owners_) owners.insert(owners.end(), static_cast<size_t>(count.making_room), name);
  return owners;
}

void WaitingRoom::MakeRoom(const std::string& owner) {
  PALIMPSEST_CHECK(owners_.at(owner).making_room > 0);
  --owners_.at(owner).making_room;
  EraseIfGone(owner);
}

void WaitingRoom::GetSlot(const std::string& owner) {
  Count& count = owners_.at(owner);
  PALIMPSEST_CHECK(count.waiting > 0);
  --count.waiting;
  ++count.running;
}

void WaitingRoom::End(const std::string& owner, bool has_slot) {
  Count& count = owners_.at(owner);
  if (has_slot) {
    --count.running;
  } else if (count.waiting > 0) {
    --count.waiting;
  } else {
    // It was to make room, and has done so by itself.
    PALIMPSEST_CHECK(count.making_room > 0);
    --count.making_room;
    --making_room_;
  }
  EraseIfGone(owner);
}

void WaitingRoom::Leave(bool made_room) {
  --here_;
  if (made_room) --making_room_;
}

int32_t WaitingRoom::waiting() const {
  int32_t waiting = 0;
  for (const auto& [name, count] : owners_) waiting += count.waiting + count.making_room;
  return waiting;
}

void WaitingRoom::EraseIfGone(const std::string& owner) {
  const auto it = owners_.find(owner);
  if (it->second.waiting + it->second.running + it->second.making_room == 0) owners_.erase(it);
}

}  // namespace palimpsest
