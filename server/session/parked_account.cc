#include "server/session/parked_account.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace palimpsest {
namespace {

constexpr absl::string_view kLimit = "palimpsest.dev/limit";

constexpr struct {
  const char* name;
  const char* what;
  int64_t ParkedUse::*used;
  int64_t SessionShare::*most;
} kRows[] = {
    {"max_sessions", "sessions", &ParkedUse::sessions, &SessionShare::max_sessions},
    {"max_snapshots", "snapshots", &ParkedUse::snapshots, &SessionShare::max_snapshots},
    {"max_state_bytes", "bytes of parked states", &ParkedUse::state_bytes, &SessionShare::max_state_bytes},
};

void Add(ParkedUse& to, const ParkedUse& more, int64_t sign) {
  for (const auto& row : kRows) to.*row.used += sign * (more.*row.used);
}

// `whose`: "" of the server, else an owner's name.
absl::Status Check(const ParkedUse& used, const ParkedUse& more, const SessionShare& limits, const std::string& whose) {
  for (const auto& row : kRows) {
    const int64_t has = used.*row.used, wants = more.*row.used, most = limits.*row.most;
    // An excess that is there already, because a share was lowered, is no reason to refuse what does not add to it.
    if (wants == 0 || has <= most - wants) continue;
    absl::Status status = absl::ResourceExhaustedError(
        whose.empty() ? absl::StrCat("the server holds ", has, " ", row.what, ", its limit is ", most, " (--", row.name,
                                     "), and ", wants, " more are asked for; delete some or wait for some to expire")
                      : absl::StrCat("the share of \"", whose, "\" is used up: it holds ", has, " ", row.what,
                                     ", its share is ", most, " (", row.name, "), and ", wants,
                                     " more are asked for; delete some or wait for some to expire"));
    status.SetPayload(kLimit, absl::Cord(absl::StrCat(whose.empty() ? "" : "share.", row.name)));
    return status;
  }
  return absl::OkStatus();
}

}  // namespace

ParkedAccount::ParkedAccount(SessionShare limits, std::function<SessionShare(const std::string& owner)> share)
    : limits_(limits), share_(std::move(share)) {}

absl::Status ParkedAccount::Admit(const std::string& owner, const ParkedUse& more) {
  absl::Status status;
  if (share_ != nullptr) {
    const auto found = by_owner_.find(owner);
    status = Check(found == by_owner_.end() ? ParkedUse{} : found->second, more, share_(owner), owner);
  }
  if (status.ok()) status = Check(used_, more, limits_, "");
  if (!status.ok()) {
    absl::Status copy = status;
    ++refusals_[TakeLimit(copy)];
  }
  return status;
}

void ParkedAccount::Add(const std::string& owner, const ParkedUse& more) {
  palimpsest::Add(used_, more, 1);
  palimpsest::Add(by_owner_[owner], more, 1);
}

void ParkedAccount::Remove(const std::string& owner, const ParkedUse& less) {
  palimpsest::Add(used_, less, -1);
  const auto found = by_owner_.find(owner);
  PALIMPSEST_CHECK(found != by_owner_.end());
  palimpsest::Add(found->second, less, -1);
  const ParkedUse& left = found->second;
  PALIMPSEST_CHECK(left.sessions >= 0 && left.snapshots >= 0 && left.state_bytes >= 0);
  if (left.sessions == 0 && left.snapshots == 0 && left.state_bytes == 0) by_owner_.erase(found);
}

std::string TakeLimit(absl::Status& status) {
  const auto limit = status.GetPayload(kLimit);
  if (!limit.has_value()) return "";
  status.ErasePayload(kLimit);
  return std::string(*limit);
}

}  // namespace palimpsest
