// The file of --auth_tokens_file: the owners of one that is accepted are found by what it says of them, and by nothing
// else.
#include "absl/strings/match.h"
#include "base/check.h"
#include "base/resource_id.h"
#include "server/auth/tokens.h"
#include "tests/fuzz/fuzz.h"

namespace palimpsest::fuzz {

void Run(std::string_view input) {
  const absl::StatusOr<OwnerTable> table = OwnerTable::Parse(input, "tokens.json");
  if (!table.ok()) {
    PALIMPSEST_CHECK(absl::IsInvalidArgument(table.status()) &&
                     absl::StartsWith(table.status().message(), "tokens.json: "));
    return;
  }
  PALIMPSEST_CHECK(table->owners().size() <= OwnerTable::kMaxOwners);
  for (const auto& [id, owner] : table->owners()) {
    PALIMPSEST_CHECK(IsResourceId(id) && owner.identity.owner == id && table->FindOwner(id) == &owner);
    PALIMPSEST_CHECK(owner.share.weight > 0 && owner.share.max_slots.value_or(0) >= 0 &&
                     owner.share.max_queue.value_or(0) >= 0 && owner.share.prefill_budget.value_or(0) >= 0 &&
                     owner.share.max_sessions.value_or(0) >= 0 && owner.share.max_snapshots.value_or(0) >= 0 &&
                     owner.share.max_state_bytes.value_or(0) >= 0);
  }
  // The seeds have the hash of this one.
  const OwnerTable::Owner* const found = table->FindToken("foo");
  PALIMPSEST_CHECK(found == nullptr || table->FindOwner(found->identity.owner) == found);
  // A hash opens nothing, and neither does no token.
  PALIMPSEST_CHECK(table->FindToken("2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae") == nullptr);
  PALIMPSEST_CHECK(table->FindOwner("") == nullptr && table->FindCertificate("") == nullptr);
}

}  // namespace palimpsest::fuzz
