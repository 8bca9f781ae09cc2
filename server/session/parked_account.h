// What is parked, in all and by owner, against the server's limits and the owners' shares.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace palimpsest {

struct ParkedUse {
  int64_t sessions = 0;
  int64_t snapshots = 0;
  int64_t state_bytes = 0;  // ParkedBytes of each
};

// The most of each, of the server or of one owner.
struct SessionShare {
  static constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
  int64_t max_sessions = kNoLimit;
  int64_t max_snapshots = kNoLimit;
  int64_t max_state_bytes = kNoLimit;
};

// Not thread-safe: SessionStore's lock guards it.
class ParkedAccount {
 public:
  // `share` tells an owner's share each time it is needed; null: owners have none. It must not call back.
  ParkedAccount(SessionShare limits, std::function<SessionShare(const std::string& owner)> share);

  // RESOURCE_EXHAUSTED: there is no room for `more`. The message has the numbers and names the flag or the share;
  // TakeLimit tells it to programs.
  absl::Status Admit(const std::string& owner, const ParkedUse& more);
  void Add(const std::string& owner, const ParkedUse& more);
  void Remove(const std::string& owner, const ParkedUse& less);

  const ParkedUse& used() const { return used_; }
  const std::map<std::string, ParkedUse>& used_by_owner() const { return by_owner_; }  // of those who have anything
  const SessionShare& limits() const { return limits_; }
  void SetMaxStateBytes(int64_t most) { limits_.max_state_bytes = most; }
  // How often Admit has refused, by what TakeLimit says.
  const std::map<std::string, int64_t>& refusals() const { return refusals_; }

 private:
  SessionShare limits_;
  const std::function<SessionShare(const std::string& owner)> share_;
  ParkedUse used_;
  std::map<std::string, ParkedUse> by_owner_;
  std::map<std::string, int64_t> refusals_;
};

// Removes from a status what it says to programs of the limit that was reached, and returns it: "max_sessions",
// "max_snapshots" or "max_state_bytes", with "share." in front where it is the owner's. Empty: it says nothing.
std::string TakeLimit(absl::Status& status);

}  // namespace palimpsest
