// How much of the server one owner may use.
#pragma once

#include <cstdint>
#include <optional>

namespace palimpsest {

// A limit that is not set is the server's own. Slots, queue and prefill budget are those of one model; sessions,
// snapshots and bytes are those of all models together.
struct OwnerShare {
  double weight = 1;  // of the owner's work against that of the others, where both wait
  std::optional<int32_t> max_slots;
  std::optional<int32_t> max_queue;
  std::optional<int32_t> prefill_budget;  // prompt tokens in one batch
  std::optional<int64_t> max_sessions;
  std::optional<int64_t> max_snapshots;
  std::optional<int64_t> max_state_bytes;  // of parked sessions and snapshots

  bool operator==(const OwnerShare&) const = default;
};

}  // namespace palimpsest
