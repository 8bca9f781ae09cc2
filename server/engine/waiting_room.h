// Who may still come in: how many requests are here, by owner, and which is refused when there are too many.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace palimpsest {

// What an owner may use of one engine. A limit that is not set is the engine's own.
struct EngineShare {
  double weight = 1.0;  // of its work against that of the others, where both wait; less than 0.001 counts as that
  std::optional<int32_t> max_slots = std::nullopt;  // at least 1
  std::optional<int32_t> max_queue = std::nullopt;
  std::optional<int32_t> prefill_budget = std::nullopt;  // prompt tokens in one batch, at least one chunk
};

// Plain data, not thread-safe. A request enters, may get a slot, ends, and leaves once its end has been told. The queue
// is everybody's until it is full. Then a request of an owner that has fewer waiting, for its weight, takes the place
// of the newest one of the owner that has most.
class WaitingRoom {
 public:
  struct Count {
    int32_t waiting = 0;  // without those that make room
    int32_t running = 0;
    int32_t making_room = 0;  // to be refused, although they have waited
    double weight = 1.0;
  };

  WaitingRoom(int32_t slots, int32_t max_queue) : slots_(slots), max_queue_(max_queue) {}

  // OK: the request counts as waiting. RESOURCE_EXHAUSTED, with the numbers and the limit's name: the owner's share is
  // used up, or the queue is full and nobody has more in it.
  absl::Status Enter(const std::string& owner, const EngineShare& share);
  // Owners whose newest waiting requests are to be refused, once for each request. For each MakeRoom is to be called
  // before another of the owner's gets a slot.
  std::vector<std::string> making_room() const;
  void MakeRoom(const std::string& owner);
  void GetSlot(const std::string& owner);
  // Of a request that waits, or has a slot, and makes no room.
  void End(const std::string& owner, bool has_slot);
  // `made_room`: its place was another's already.
  void Leave(bool made_room);

  // Requests whose end has not been told.
  int32_t here() const { return here_; }
  int32_t waiting() const;
  // Those that have requests waiting or running.
  const std::map<std::string, Count>& owners() const { return owners_; }

 private:
  void EraseIfGone(const std::string& owner);

  const int32_t slots_;
  const int32_t max_queue_;
  int32_t here_ = 0;
  int32_t making_room_ = 0;  // of these, whose places are others' already
  std::map<std::string, Count> owners_;
};

}  // namespace palimpsest
