#include "server/engine/memory_plan.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"

namespace palimpsest {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// What the server takes beside all that is counted: gRPC, its threads, the tables of sessions, metrics and logs.
constexpr int64_t kProcessBytes = 48 * kMiB;
// What stacks and the allocator's arenas have mapped beside that (main.cc bounds the arenas where this counts).
constexpr int64_t kMappedBytes = 256 * kMiB;
// Of what there is, the part that is left alone: the allocator's gaps and the system's tables.
constexpr int64_t kMarginPart = 16;

struct Share {
  int64_t part;  // of what is left
  int64_t least;
  int64_t most;
};
constexpr Share kRpcShare{4, 16 * kMiB, 2048 * kMiB};
constexpr Share kReplyShare{8, 16 * kMiB, 256 * kMiB};
constexpr Share kRequestIdShare{16, 1 * kMiB, 64 * kMiB};

int64_t Of(const Share& share, int64_t left) { return std::clamp(left / share.part, share.least, share.most); }

int64_t ProcessBytes(const MemoryLimit& limit) {
  return kProcessBytes + limit.left / kMarginPart + (limit.mapped ? kMappedBytes : 0);
}

}  // namespace

std::string MemoryPlan::Table() const {
  std::string table;
  for (const Row& row : rows) {
    absl::StrAppend(&table, "\n  ", row.bytes, "  ", row.what, row.how.empty() ? "" : absl::StrCat(" (", row.how, ")"));
  }
  absl::StrAppend(&table, "\n  ", needed, "  in all");
  if (!limit.name.empty()) absl::StrAppend(&table, ", of ", limit.left, " that ", limit.name, " left at start");
  return table;
}

absl::StatusOr<MemoryPlan> PlanMemory(const MemoryFlags& flags, std::span<const ModelMemory> models,
                                      std::span<const MemoryLimit> limits, int64_t parked) {
  MemoryPlan plan;
  plan.limit.left = kNoLimit;
  // What counts is what a limit leaves for the rest.
  for (const MemoryLimit& limit : limits) {
    if (plan.limit.name.empty() || limit.left - ProcessBytes(limit) < plan.limit.left - ProcessBytes(plan.limit)) {
      plan.limit = limit;
    }
  }
  const bool limited = !plan.limit.name.empty();
  const auto add = [&plan](std::string what, int64_t bytes, std::string how) {
    if (bytes == 0) return;
    plan.rows.push_back({std::move(what), bytes, std::move(how)});
    plan.needed += bytes;
  };
  const auto product = [](int64_t count, int64_t bytes) { return absl::StrCat(count, " x ", bytes); };

  add("process", limited ? ProcessBytes(plan.limit) : kProcessBytes, "");
  int64_t snapshot_bytes = 0, parked_bytes = 0;
  for (const ModelMemory& model : models) {
    const std::string name = absl::StrCat("models/", model.id);
    const int64_t slots = model.slots;
    add("weights of " + name, model.weight_bytes, "");
    add("slots of " + name, slots * model.slot_bytes, "--slots: " + product(slots, model.slot_bytes));
    add("batches of " + name, model.batch_bytes, "--slots, --prefill_budget");
    add("states that replies of " + name + " leave", slots * model.parked_bytes, product(slots, model.parked_bytes));
    snapshot_bytes = std::max(snapshot_bytes, model.snapshot_bytes);
    parked_bytes = std::max(parked_bytes, model.parked_bytes);
  }
  // Of an upload there are the bytes and the state that is made of them.
  add("uploads and downloads", flags.max_transfers * 2 * snapshot_bytes,
      "--max_transfers: " + product(flags.max_transfers, 2 * snapshot_bytes));

  plan.max_rpc_memory_bytes = flags.max_rpc_memory_bytes;
  plan.max_reply_bytes = flags.max_reply_bytes;
  plan.max_request_id_bytes = flags.max_request_id_bytes;
  plan.max_state_bytes = flags.max_state_bytes;
  const int64_t taken = plan.needed + flags.max_rpc_memory_bytes + flags.max_reply_bytes + flags.max_request_id_bytes +
                        flags.max_state_bytes;
  const int64_t left = limited ? std::max<int64_t>(plan.limit.left - taken, 0) : kNoLimit;
  if (flags.max_rpc_memory_bytes == 0) plan.max_rpc_memory_bytes = Of(kRpcShare, left);
  if (flags.max_reply_bytes == 0) plan.max_reply_bytes = Of(kReplyShare, left);
  if (flags.max_request_id_bytes == 0) plan.max_request_id_bytes = Of(kRequestIdShare, left);
  add("messages on their way", plan.max_rpc_memory_bytes, "--max_rpc_memory_bytes");
  add("answers that wait to be read", plan.max_reply_bytes, "--max_reply_bytes");
  add("answers remembered by request id", plan.max_request_id_bytes, "--max_request_id_bytes");
  // With less than one state no session could be made at all.
  const int64_t least = std::max(parked, parked_bytes);
  if (flags.max_state_bytes == 0) {
    plan.max_state_bytes = limited ? std::max(plan.limit.left - plan.needed, least) : kNoLimit;
  }
  if (plan.max_state_bytes < least) {
    return absl::ResourceExhaustedError(absl::StrCat("--max_state_bytes is ", plan.max_state_bytes, ", and ", least,
                                                     " are needed: ", parked,
                                                     " are parked, and one state of each model must fit"));
  }
  if (limited || flags.max_state_bytes != 0)
    add("parked sessions and snapshots", plan.max_state_bytes, "--max_state_bytes");
  if (!limited || plan.needed <= plan.limit.left) return plan;
  return absl::ResourceExhaustedError(
      absl::StrCat("the memory does not suffice: ", plan.needed, " bytes are needed, ", plan.limit.left, " are left (",
                   plan.limit.name, "). Lower --slots or another flag of these, unload a model, or give the server ",
                   plan.needed - plan.limit.left, " bytes more:", plan.Table()));
}

}  // namespace palimpsest
