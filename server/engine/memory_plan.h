// The arithmetic of memory: all that the server can be asked to hold, against what there is. Numbers in, numbers out.
//
// What models take is known when they are loaded. What is left is shared between messages, answers that wait to be
// read, remembered answers and parked states, by flags or, where they are 0, by a rule: of what is left, messages get a
// quarter (16 MiB to 2 GiB), answers an eighth (16 to 256 MiB), remembered answers a sixteenth (1 to 64 MiB), and
// parked states the rest.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/host/available_memory.h"

namespace palimpsest {

// What the flags say. 0: to be found.
struct MemoryFlags {
  int64_t max_state_bytes = 0;
  int64_t max_rpc_memory_bytes = 0;
  int64_t max_reply_bytes = 0;
  int64_t max_request_id_bytes = 0;
  int32_t max_transfers = 32;
};

// What one model takes of the host's memory.
struct ModelMemory {
  std::string id;
  int64_t weight_bytes = 0;  // the first four: 0 where they are in a device's
  int64_t slot_bytes = 0;    // of one
  int64_t batch_bytes = 0;   // workspace and logits of the largest batch
  int32_t slots = 0;
  int64_t parked_bytes = 0;    // ParkedBytes of a state
  int64_t snapshot_bytes = 0;  // MaxSnapshotBytes
};

struct MemoryPlan {
  struct Row {
    std::string what;  // "slots of models/books"
    int64_t bytes = 0;
    std::string how;  // "64 x 373760", or the flag that changes it
  };
  std::vector<Row> rows;
  int64_t needed = 0;  // the sum of the rows
  MemoryLimit limit;   // the one that is reached first. Its name is empty where nothing is limited.
  int64_t max_state_bytes = 0;
  int64_t max_rpc_memory_bytes = 0;
  int64_t max_reply_bytes = 0;
  int64_t max_request_id_bytes = 0;

  // A line for each row, and the sums.
  std::string Table() const;
};

// `parked` is what is parked already: the plan leaves room for it. RESOURCE_EXHAUSTED: it does not fit; the message has
// the table and the cure.
absl::StatusOr<MemoryPlan> PlanMemory(const MemoryFlags& flags, std::span<const ModelMemory> models,
                                      std::span<const MemoryLimit> limits, int64_t parked);

}  // namespace palimpsest
