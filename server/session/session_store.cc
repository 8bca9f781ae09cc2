#include "server/session/session_store.h"

#include <openssl/rand.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/common/check.h"

namespace palimpsest {
namespace {

// Nobody can guess an id that the server made.
std::string RandomId(char letter) {
  std::array<unsigned char, 8> bytes;
  PALIMPSEST_CHECK(RAND_bytes(bytes.data(), bytes.size()) == 1);
  const absl::string_view raw(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return absl::StrCat(std::string(1, letter), absl::BytesToHexString(raw));
}

// `id`, or one that is not in `map` if it is empty.
template <typename Map>
std::string IdOrNew(std::string id, char letter, const Map& map) {
  while (id.empty()) {
    std::string made = RandomId(letter);
    if (!map.contains(made)) id = std::move(made);
  }
  return id;
}

absl::Status NoSession(const std::string& id) {
  return absl::NotFoundError(absl::StrCat("no session \"", id, "\": never created, deleted or expired"));
}

absl::Status NoSnapshot(const std::string& id) {
  return absl::NotFoundError(absl::StrCat("no snapshot \"", id, "\": never created, deleted or expired"));
}

absl::Status SessionTaken(const std::string& id) {
  return absl::AlreadyExistsError(absl::StrCat("session id \"", id, "\" is taken; choose another or leave it empty"));
}

absl::Status CheckEtag(const SessionInfo& info, const std::string& etag) {
  if (etag.empty() || etag == absl::StrCat(info.version)) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("session \"", info.id, "\" has changed: its etag is \"", info.version,
                                         "\", not \"", etag, "\"; get it again and retry"));
}

absl::Status Leased(const std::string& id) {
  return absl::AbortedError(absl::StrCat("another call holds session \"", id, "\"; retry when it has ended"));
}

std::string FingerprintOf(const StatePtr& state) { return state == nullptr ? "" : state->format.model_fingerprint; }

}  // namespace

SessionLease::SessionLease(SessionLease&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)),
      id_(std::move(other.id_)),
      model_(std::move(other.model_)),
      state_(std::move(other.state_)) {}

SessionLease& SessionLease::operator=(SessionLease&& other) noexcept {
  if (this == &other) return *this;
  Abandon();
  store_ = std::exchange(other.store_, nullptr);
  id_ = std::move(other.id_);
  model_ = std::move(other.model_);
  state_ = std::move(other.state_);
  return *this;
}

SessionLease::~SessionLease() { Abandon(); }

void SessionLease::Commit(StatePtr state, absl::Time now) {
  PALIMPSEST_CHECK(store_ != nullptr);
  std::exchange(store_, nullptr)->EndLease(id_, SessionStore::LeaseEnd::kCommit, std::move(state), now);
}

void SessionLease::Quarantine(absl::Time now) {
  PALIMPSEST_CHECK(store_ != nullptr);
  std::exchange(store_, nullptr)->EndLease(id_, SessionStore::LeaseEnd::kQuarantine, nullptr, now);
}

void SessionLease::Abandon(absl::Time now) {
  if (store_ == nullptr) return;
  std::exchange(store_, nullptr)->EndLease(id_, SessionStore::LeaseEnd::kAbandon, nullptr, now);
}

SessionStore::SessionStore(SessionStoreOptions options) : options_(std::move(options)) {}

absl::StatusOr<SessionInfo> SessionStore::Create(NewSession session, absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
  if (sessions_.contains(session.id)) return SessionTaken(session.id);
  if (absl::Status status = CheckRoom(1); !status.ok()) return status;
  return Insert(IdOrNew(std::move(session.id), 's', sessions_), std::move(session.model), session.state_bytes,
                std::move(session.state), session.ttl.value_or(options_.default_ttl), now);
}

absl::StatusOr<std::vector<SessionInfo>> SessionStore::Fork(const std::string& id, std::vector<std::string> ids,
                                                            std::optional<absl::Duration> ttl, absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
  absl::StatusOr<Entry*> parent = FindIdle(id);
  if (!parent.ok()) return parent.status();
  absl::flat_hash_set<std::string> named;
  for (const std::string& child : ids) {
    if (child.empty()) continue;
    if (sessions_.contains(child) || !named.insert(child).second) return SessionTaken(child);
  }
  if (absl::Status status = CheckRoom(static_cast<int64_t>(ids.size())); !status.ok()) return status;
  // Nothing can fail from here on.
  Use(**parent, now);
  const Entry source = **parent;
  std::vector<SessionInfo> children(ids.size());
  // The named ones first, so that no id made here takes the name of a later one.
  for (const bool make : {false, true}) {
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i].empty() != make) continue;
      children[i] = Insert(make ? IdOrNew("", 's', sessions_) : ids[i], source.info.model, source.info.state_bytes,
                           source.state, ttl.value_or(source.info.ttl), now);
    }
  }
  return children;
}

absl::StatusOr<SessionInfo> SessionStore::Get(const std::string& id, absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return NoSession(id);
  return it->second.info;
}

std::vector<SessionInfo> SessionStore::List(const std::string& after, int32_t limit, absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
  std::vector<SessionInfo> found;
  for (auto it = sessions_.upper_bound(after); it != sessions_.end() && std::ssize(found) < limit; ++it) {
    found.push_back(it->second.info);
  }
  return found;
}

absl::StatusOr<SessionInfo> SessionStore::UpdateTtl(const std::string& id, absl::Duration ttl, const std::string& etag,
                                                    absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return NoSession(id);
  SessionInfo& info = it->second.info;
  if (absl::Status status = CheckEtag(info, etag); !status.ok()) return status;
  info.ttl = ttl;
  info.update_time = now;
  info.version = ++last_version_;
  Use(it->second, now);
  return info;
}

absl::Status SessionStore::Delete(const std::string& id, const std::string& etag, absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return NoSession(id);
  if (absl::Status status = CheckEtag(it->second.info, etag); !status.ok()) return status;
  if (it->second.info.condition == SessionCondition::kActive) return Leased(id);
  trash.push_back(std::move(it->second.state));
  sessions_.erase(it);
  return absl::OkStatus();
}

absl::StatusOr<SessionLease> SessionStore::Acquire(const std::string& id, absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
  absl::StatusOr<Entry*> entry = FindIdle(id);
  if (!entry.ok()) return entry.status();
  (*entry)->info.condition = SessionCondition::kActive;
  Use(**entry, now);
  SessionLease lease;
  lease.store_ = this;
  lease.id_ = id;
  lease.model_ = (*entry)->info.model;
  lease.state_ = (*entry)->state;
  return lease;
}

absl::StatusOr<SessionStore::Parked> SessionStore::Peek(const std::string& id, absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
  absl::StatusOr<Entry*> entry = FindIdle(id);
  if (!entry.ok()) return entry.status();
  Use(**entry, now);
  return Parked{.model = (*entry)->info.model, .state = (*entry)->state};
}

absl::StatusOr<SnapshotInfo> SessionStore::AddSnapshot(std::string id, std::string model, StatePtr state,
                                                       absl::Duration ttl, absl::Time now) {
  PALIMPSEST_CHECK(state != nullptr);
  SnapshotInfo info{.id = std::move(id),
                    .model = std::move(model),
                    .position = state->head.position,
                    .size_bytes = SnapshotBytes(*state),
                    .digest = StateDigest(*state),
                    .create_time = now,
                    .expire_time = now + ttl};
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
  if (snapshots_.contains(info.id)) {
    return absl::AlreadyExistsError(
        absl::StrCat("snapshot id \"", info.id, "\" is taken; choose another or leave it empty"));
  }
  if (std::ssize(snapshots_) >= options_.max_snapshots) {
    return absl::ResourceExhaustedError(absl::StrCat("the server holds ", snapshots_.size(),
                                                     " snapshots, its limit is ", options_.max_snapshots,
                                                     "; delete one or wait for one to expire"));
  }
  info.id = IdOrNew(std::move(info.id), 'p', snapshots_);
  no_expiry_before_ = std::min(no_expiry_before_, info.expire_time);
  return snapshots_.emplace(info.id, SnapshotEntry{info, std::move(state)}).first->second.info;
}

absl::StatusOr<SnapshotInfo> SessionStore::GetSnapshot(const std::string& id, absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
  const auto it = snapshots_.find(id);
  if (it == snapshots_.end()) return NoSnapshot(id);
  return it->second.info;
}

absl::StatusOr<StatePtr> SessionStore::SnapshotState(const std::string& id, absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
  const auto it = snapshots_.find(id);
  if (it == snapshots_.end()) return NoSnapshot(id);
  return it->second.state;
}

std::vector<SnapshotInfo> SessionStore::ListSnapshots(const std::string& after, int32_t limit, absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
  std::vector<SnapshotInfo> found;
  for (auto it = snapshots_.upper_bound(after); it != snapshots_.end() && std::ssize(found) < limit; ++it) {
    found.push_back(it->second.info);
  }
  return found;
}

absl::Status SessionStore::DeleteSnapshot(const std::string& id, absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
  const auto it = snapshots_.find(id);
  if (it == snapshots_.end()) return NoSnapshot(id);
  trash.push_back(std::move(it->second.state));
  snapshots_.erase(it);
  return absl::OkStatus();
}

void SessionStore::DropModel(const std::string& model) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    if (it->second.info.model != model) {
      ++it;
    } else if (it->second.info.condition == SessionCondition::kActive) {
      (it++)->second.dropped = true;
    } else {
      trash.push_back(std::move(it->second.state));
      it = sessions_.erase(it);
    }
  }
  for (auto it = snapshots_.begin(); it != snapshots_.end();) {
    if (it->second.info.model != model) {
      ++it;
      continue;
    }
    trash.push_back(std::move(it->second.state));
    it = snapshots_.erase(it);
  }
}

bool SessionStore::HasStatesOf(const std::string& model, const std::string& fingerprint) const {
  absl::MutexLock lock(&mu_);
  return std::any_of(sessions_.begin(), sessions_.end(), [&](const auto& session) {
    return session.second.info.model == model && session.second.info.model_fingerprint == fingerprint;
  });
}

void SessionStore::DropExpired(absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, trash);
}

SessionStore::Counts SessionStore::counts() const {
  Counts sum;
  for (const auto& [model, counts] : counts_by_model()) {
    sum.idle += counts.idle;
    sum.active += counts.active;
    sum.quarantined += counts.quarantined;
    sum.snapshots += counts.snapshots;
    sum.state_bytes += counts.state_bytes;
  }
  return sum;
}

std::map<std::string, SessionStore::Counts> SessionStore::counts_by_model() const {
  std::map<std::string, Counts> all;
  absl::flat_hash_set<const State*> seen;
  const auto count = [&seen](const StatePtr& state, Counts& counts) {
    if (state != nullptr && seen.insert(state.get()).second) counts.state_bytes += state->data.size();
  };
  absl::MutexLock lock(&mu_);
  for (const auto& [id, entry] : sessions_) {
    Counts& counts = all[entry.info.model];
    count(entry.state, counts);
    switch (entry.info.condition) {
      case SessionCondition::kIdle:
        ++counts.idle;
        break;
      case SessionCondition::kActive:
        ++counts.active;
        break;
      case SessionCondition::kQuarantined:
        ++counts.quarantined;
        break;
    }
  }
  for (const auto& [id, entry] : snapshots_) {
    Counts& counts = all[entry.info.model];
    count(entry.state, counts);
    ++counts.snapshots;
  }
  return all;
}

void SessionStore::EndLease(const std::string& id, LeaseEnd end, StatePtr state, absl::Time now) {
  Trash trash;
  absl::MutexLock lock(&mu_);
  const auto it = sessions_.find(id);
  PALIMPSEST_CHECK(it != sessions_.end() && it->second.info.condition == SessionCondition::kActive);
  Entry& entry = it->second;
  trash.push_back(std::move(state));
  if (entry.dropped) {
    trash.push_back(std::move(entry.state));
    sessions_.erase(it);
    return;
  }
  entry.info.condition = end == LeaseEnd::kQuarantine ? SessionCondition::kQuarantined : SessionCondition::kIdle;
  if (end == LeaseEnd::kCommit) {
    std::swap(entry.state, trash.back());
    entry.info.position = entry.state == nullptr ? 0 : entry.state->head.position;
    entry.info.model_fingerprint = FingerprintOf(entry.state);
  }
  if (end != LeaseEnd::kAbandon) {
    entry.info.update_time = now;
    entry.info.version = ++last_version_;
  }
  Use(entry, now);
}

void SessionStore::DropExpiredLocked(absl::Time now, Trash& trash) {
  if (now < no_expiry_before_) return;
  no_expiry_before_ = absl::InfiniteFuture();
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    const SessionInfo& info = it->second.info;
    if (info.condition != SessionCondition::kActive && info.expire_time <= now) {
      trash.push_back(std::move(it->second.state));
      it = sessions_.erase(it);
      continue;
    }
    // The end of a lease sets the time anew.
    if (info.condition != SessionCondition::kActive) no_expiry_before_ = std::min(no_expiry_before_, info.expire_time);
    ++it;
  }
  for (auto it = snapshots_.begin(); it != snapshots_.end();) {
    if (it->second.info.expire_time <= now) {
      trash.push_back(std::move(it->second.state));
      it = snapshots_.erase(it);
      continue;
    }
    no_expiry_before_ = std::min(no_expiry_before_, it->second.info.expire_time);
    ++it;
  }
}

absl::StatusOr<SessionStore::Entry*> SessionStore::FindIdle(const std::string& id) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return NoSession(id);
  switch (it->second.info.condition) {
    case SessionCondition::kIdle:
      break;
    case SessionCondition::kActive:
      return Leased(id);
    case SessionCondition::kQuarantined:
      return absl::FailedPreconditionError(absl::StrCat(
          "session \"", id, "\" is quarantined: its numbers stopped being finite; delete it or go back to a snapshot"));
  }
  return &it->second;
}

void SessionStore::Use(Entry& entry, absl::Time now) {
  entry.info.expire_time = now + entry.info.ttl;
  no_expiry_before_ = std::min(no_expiry_before_, entry.info.expire_time);
}

SessionInfo SessionStore::Insert(std::string id, std::string model, int64_t state_bytes, StatePtr state,
                                 absl::Duration ttl, absl::Time now) {
  Entry entry;
  entry.info = {.id = id,
                .model = std::move(model),
                .model_fingerprint = FingerprintOf(state),
                .position = state == nullptr ? 0 : state->head.position,
                .state_bytes = state_bytes,
                .create_time = now,
                .update_time = now,
                .ttl = ttl,
                .version = ++last_version_};
  entry.state = std::move(state);
  Use(entry, now);
  const auto [it, inserted] = sessions_.emplace(std::move(id), std::move(entry));
  PALIMPSEST_CHECK(inserted);
  return it->second.info;
}

absl::Status SessionStore::CheckRoom(int64_t more) const {
  if (std::ssize(sessions_) + more <= options_.max_sessions) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the server holds ", sessions_.size(), " sessions, its limit is ",
                                                   options_.max_sessions, ", and ", more,
                                                   " more are asked for; delete some or wait for some to expire"));
}

}  // namespace palimpsest
