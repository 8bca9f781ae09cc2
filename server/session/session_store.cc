#include "server/session/session_store.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/random.h"
#include "base/status_macros.h"

namespace palimpsest {
namespace {

// Nobody can guess an id that the server made.
std::string RandomId(char letter) {
  return absl::StrCat(std::string(1, letter), absl::BytesToHexString(SecretBytes(8)));
}

// The owner's key of `id`, or of one that is not in `map` if it is empty.
template <typename Map>
ParkedKey KeyOrNew(const std::string& owner, std::string id, char letter, const Map& map) {
  ParkedKey key(owner, std::move(id));
  while (key.second.empty()) {
    key.second = RandomId(letter);
    if (map.contains(key)) key.second.clear();
  }
  return key;
}

// Those after `after`, at most `limit`, while `wanted` says so.
template <typename Info, typename Map, typename Wanted>
std::vector<Info> InfosAfter(const Map& map, const ParkedKey& after, int32_t limit, const Wanted& wanted) {
  std::vector<Info> found;
  for (auto it = map.upper_bound(after); it != map.end() && std::ssize(found) < limit && wanted(it->first); ++it) {
    found.push_back(it->second.info);
  }
  return found;
}

constexpr auto kOfAll = [](const ParkedKey&) { return true; };
auto OfOwner(const std::string& owner) {
  return [&owner](const ParkedKey& key) { return key.first == owner; };
}

// Of sessions whose states have so many bytes.
ParkedUse UseOf(int64_t state_bytes, int64_t count = 1) {
  return {.sessions = count, .state_bytes = count * ParkedBytes(state_bytes)};
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
      key_(std::move(other.key_)),
      serial_(other.serial_),
      model_(std::move(other.model_)),
      state_(std::move(other.state_)) {}

SessionLease& SessionLease::operator=(SessionLease&& other) noexcept {
  if (this == &other) return *this;
  Abandon();
  store_ = std::exchange(other.store_, nullptr);
  key_ = std::move(other.key_);
  serial_ = other.serial_;
  model_ = std::move(other.model_);
  state_ = std::move(other.state_);
  return *this;
}

SessionLease::~SessionLease() { Abandon(); }

void SessionLease::Commit(StatePtr state, absl::Time now) {
  PALIMPSEST_CHECK(store_ != nullptr);
  std::exchange(store_, nullptr)->EndLease(serial_, SessionStore::LeaseEnd::kCommit, std::move(state), now);
}

void SessionLease::Quarantine(absl::Time now) {
  PALIMPSEST_CHECK(store_ != nullptr);
  std::exchange(store_, nullptr)->EndLease(serial_, SessionStore::LeaseEnd::kQuarantine, nullptr, now);
}

void SessionLease::Abandon(absl::Time now) {
  if (store_ == nullptr) return;
  std::exchange(store_, nullptr)->EndLease(serial_, SessionStore::LeaseEnd::kAbandon, nullptr, now);
}

SessionStore::Later::~Later() {
  for (const std::function<void()>& call : calls) call();
}

SessionStore::SessionStore(SessionStoreOptions options)
    : options_(std::move(options)),
      account_({.max_sessions = options_.max_sessions,
                .max_snapshots = options_.max_snapshots,
                .max_state_bytes = options_.max_state_bytes > 0 ? options_.max_state_bytes : SessionShare::kNoLimit},
               options_.share) {}

absl::StatusOr<SessionInfo> SessionStore::Create(const std::string& owner, NewSession session, absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  if (sessions_.contains({owner, session.id})) return SessionTaken(session.id);
  const ParkedUse use = UseOf(session.state_bytes);
  PALIMPSEST_RETURN_IF_ERROR(account_.Admit(owner, use));
  return Insert(KeyOrNew(owner, std::move(session.id), 's', sessions_), std::move(session.model), session.state_bytes,
                std::move(session.state), session.ttl.value_or(options_.default_ttl), now);
}

absl::StatusOr<std::vector<SessionInfo>> SessionStore::Fork(const std::string& owner, const std::string& id,
                                                            std::vector<std::string> ids,
                                                            std::optional<absl::Duration> ttl, absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  PALIMPSEST_ASSIGN_OR_RETURN(Entry * parent, FindIdle({owner, id}));
  absl::flat_hash_set<std::string> named;
  for (const std::string& child : ids) {
    if (child.empty()) continue;
    if (sessions_.contains({owner, child}) || !named.insert(child).second) return SessionTaken(child);
  }
  PALIMPSEST_RETURN_IF_ERROR(account_.Admit(owner, UseOf(parent->info.state_bytes, std::ssize(ids))));
  // Nothing can fail from here on.
  Touch(*parent, now);
  const Entry source = *parent;
  std::vector<SessionInfo> children(ids.size());
  // The named ones first, so that no id made here takes the name of a later one.
  for (const bool make : {false, true}) {
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i].empty() != make) continue;
      children[i] = Insert(KeyOrNew(owner, ids[i], 's', sessions_), source.info.model, source.info.state_bytes,
                           source.state, ttl.value_or(source.info.ttl), now);
    }
  }
  return children;
}

absl::StatusOr<SessionInfo> SessionStore::Get(const std::string& owner, const std::string& id, absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  const auto it = sessions_.find({owner, id});
  if (it == sessions_.end()) return NoSession(id);
  return it->second.info;
}

std::vector<SessionInfo> SessionStore::List(const std::string& owner, const std::string& after, int32_t limit,
                                            absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  return InfosAfter<SessionInfo>(sessions_, {owner, after}, limit, OfOwner(owner));
}

std::vector<SessionInfo> SessionStore::ListAll(const ParkedKey& after, int32_t limit, absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  return InfosAfter<SessionInfo>(sessions_, after, limit, kOfAll);
}

absl::StatusOr<SessionInfo> SessionStore::UpdateTtl(const std::string& owner, const std::string& id, absl::Duration ttl,
                                                    const std::string& etag, absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  const auto it = sessions_.find({owner, id});
  if (it == sessions_.end()) return NoSession(id);
  SessionInfo& info = it->second.info;
  PALIMPSEST_RETURN_IF_ERROR(CheckEtag(info, etag));
  info.ttl = ttl;
  info.update_time = now;
  info.version = ++last_version_;
  Touch(it->second, now);
  return info;
}

absl::Status SessionStore::Delete(const std::string& owner, const std::string& id, const std::string& etag,
                                  absl::Time now, bool force) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  const auto it = sessions_.find({owner, id});
  if (it == sessions_.end()) return NoSession(id);
  PALIMPSEST_RETURN_IF_ERROR(CheckEtag(it->second.info, etag));
  if (it->second.lease != 0) {
    if (!force) return Leased(id);
    BreakLocked(leases_.at(it->second.lease), later);
  }
  Erase(it, later);
  return absl::OkStatus();
}

absl::StatusOr<SessionLease> SessionStore::Acquire(const std::string& owner, const std::string& id, absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  PALIMPSEST_ASSIGN_OR_RETURN(Entry * found, FindIdle({owner, id}));
  Entry& entry = *found;
  entry.info.condition = SessionCondition::kActive;
  entry.lease = ++last_version_;
  Touch(entry, now);
  SessionLease lease;
  lease.store_ = this;
  lease.key_ = {owner, id};
  lease.serial_ = entry.lease;
  lease.model_ = entry.info.model;
  lease.state_ = entry.state;
  leases_[entry.lease].key = lease.key_;
  return lease;
}

absl::StatusOr<SessionStore::Parked> SessionStore::Peek(const std::string& owner, const std::string& id,
                                                        absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  PALIMPSEST_ASSIGN_OR_RETURN(Entry * entry, FindIdle({owner, id}));
  Touch(*entry, now);
  return Parked{.model = entry->info.model, .state = entry->state};
}

void SessionStore::SetEnding(uint64_t lease) {
  absl::MutexLock lock(&mu_);
  if (const auto found = leases_.find(lease); found != leases_.end()) found->second.ending = true;
}

void SessionStore::AwaitEnding(const std::string& owner, const std::string& id, absl::Time until,
                               std::function<void()> then) {
  Later later;
  absl::MutexLock lock(&mu_);
  const auto session = sessions_.find({owner, id});
  if (session != sessions_.end() && session->second.lease != 0) {
    Lease& lease = leases_.at(session->second.lease);
    if (lease.ending) {
      no_expiry_before_ = std::min(no_expiry_before_, until);
      lease.waiters.push_back({until, std::move(then)});
      return;
    }
  }
  later.calls.push_back(std::move(then));
}

void SessionStore::SetBreak(uint64_t lease, std::function<void()> break_off) {
  Later later;
  absl::MutexLock lock(&mu_);
  const auto found = leases_.find(lease);
  if (found == leases_.end()) return;
  if (found->second.broken) {
    later.calls.push_back(std::move(break_off));
  } else {
    found->second.break_off = std::move(break_off);
  }
}

absl::Status SessionStore::Break(const std::string& owner, const std::string& id, absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  const auto it = sessions_.find({owner, id});
  if (it == sessions_.end()) return NoSession(id);
  if (it->second.lease != 0) BreakLocked(leases_.at(it->second.lease), later);
  return absl::OkStatus();
}

void SessionStore::BreakLocked(Lease& lease, Later& later) {
  lease.ending = true;
  lease.broken = true;
  if (lease.break_off != nullptr) later.calls.push_back(std::exchange(lease.break_off, nullptr));
}

absl::StatusOr<SnapshotInfo> SessionStore::AddSnapshot(const std::string& owner, std::string id, std::string model,
                                                       StatePtr state, absl::Duration ttl, absl::Time now) {
  PALIMPSEST_CHECK(state != nullptr);
  const ParkedUse use{.snapshots = 1, .state_bytes = ParkedBytes(state->data.size())};
  {
    // What there is no room for is not worth a checksum.
    absl::MutexLock lock(&mu_);
    PALIMPSEST_RETURN_IF_ERROR(account_.Admit(owner, use));
    account_.Add(owner, use);
  }
  SnapshotInfo info{.owner = owner,
                    .id = std::move(id),
                    .model = std::move(model),
                    .position = state->head.position,
                    .size_bytes = SnapshotBytes(*state),
                    .digest = StateDigest(*state),
                    .create_time = now,
                    .expire_time = now + ttl};
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  if (snapshots_.contains({owner, info.id})) {
    account_.Remove(owner, use);
    return absl::AlreadyExistsError(
        absl::StrCat("snapshot id \"", info.id, "\" is taken; choose another or leave it empty"));
  }
  ParkedKey key = KeyOrNew(owner, std::move(info.id), 'p', snapshots_);
  info.id = key.second;
  no_expiry_before_ = std::min(no_expiry_before_, info.expire_time);
  return snapshots_.emplace(std::move(key), SnapshotEntry{info, std::move(state)}).first->second.info;
}

absl::StatusOr<SnapshotInfo> SessionStore::GetSnapshot(const std::string& owner, const std::string& id,
                                                       absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  const auto it = snapshots_.find({owner, id});
  if (it == snapshots_.end()) return NoSnapshot(id);
  return it->second.info;
}

absl::StatusOr<StatePtr> SessionStore::SnapshotState(const std::string& owner, const std::string& id, absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  const auto it = snapshots_.find({owner, id});
  if (it == snapshots_.end()) return NoSnapshot(id);
  return it->second.state;
}

std::vector<SnapshotInfo> SessionStore::ListSnapshots(const std::string& owner, const std::string& after, int32_t limit,
                                                      absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  return InfosAfter<SnapshotInfo>(snapshots_, {owner, after}, limit, OfOwner(owner));
}

std::vector<SnapshotInfo> SessionStore::ListAllSnapshots(const ParkedKey& after, int32_t limit, absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  return InfosAfter<SnapshotInfo>(snapshots_, after, limit, kOfAll);
}

absl::Status SessionStore::DeleteSnapshot(const std::string& owner, const std::string& id, absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
  const auto it = snapshots_.find({owner, id});
  if (it == snapshots_.end()) return NoSnapshot(id);
  Erase(it, later);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const void>> SessionStore::Reserve(const std::string& owner, int64_t state_bytes) {
  const ParkedUse use{.state_bytes = ParkedBytes(state_bytes)};
  absl::MutexLock lock(&mu_);
  PALIMPSEST_RETURN_IF_ERROR(account_.Admit(owner, use));
  account_.Add(owner, use);
  // Only the end of it counts: there is nothing to point to.
  return std::shared_ptr<const void>(static_cast<const void*>(this),
                                     [this, owner, use](const void*) { Unreserve(owner, use); });
}

void SessionStore::Unreserve(const std::string& owner, const ParkedUse& use) {
  absl::MutexLock lock(&mu_);
  account_.Remove(owner, use);
}

StatePtr KeepRoom(StatePtr state, std::shared_ptr<const void> room) {
  const State* const raw = state.get();
  return StatePtr(raw, [state = std::move(state), room = std::move(room)](const State*) mutable {
    state.reset();  // first: it is still there while the room is
    room.reset();
  });
}

void SessionStore::DropModel(const std::string& model) {
  Later later;
  absl::MutexLock lock(&mu_);
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    it = it->second.info.model == model ? Erase(it, later) : std::next(it);
  }
  for (auto it = snapshots_.begin(); it != snapshots_.end();) {
    it = it->second.info.model == model ? Erase(it, later) : std::next(it);
  }
}

bool SessionStore::HasStatesOf(const std::string& model, const std::string& fingerprint) const {
  absl::MutexLock lock(&mu_);
  return std::any_of(sessions_.begin(), sessions_.end(), [&](const auto& session) {
    return session.second.info.model == model && session.second.info.model_fingerprint == fingerprint;
  });
}

void SessionStore::DropExpired(absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  DropExpiredLocked(now, later);
}

bool SessionStore::SetMaxStateBytes(int64_t bytes) {
  absl::MutexLock lock(&mu_);
  if (account_.used().state_bytes > bytes) return false;
  account_.SetMaxStateBytes(bytes);
  return true;
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

SessionStore::Use SessionStore::use() const {
  absl::MutexLock lock(&mu_);
  return {.all = account_.used(),
          .limits = account_.limits(),
          .by_owner = account_.used_by_owner(),
          .refusals = account_.refusals()};
}

void SessionStore::EndLease(uint64_t serial, LeaseEnd end, StatePtr state, absl::Time now) {
  Later later;
  absl::MutexLock lock(&mu_);
  const auto found = leases_.find(serial);
  PALIMPSEST_CHECK(found != leases_.end());
  const Lease lease = std::move(found->second);
  leases_.erase(found);
  for (const Waiter& waiter : lease.waiters) later.calls.push_back(waiter.then);
  later.trash.push_back(std::move(state));
  if (lease.deleted.has_value()) {
    account_.Remove(lease.key.first, *lease.deleted);
    return;
  }
  Entry& entry = sessions_.at(lease.key);
  PALIMPSEST_CHECK(entry.lease == serial);
  entry.lease = 0;
  entry.info.condition = end == LeaseEnd::kQuarantine ? SessionCondition::kQuarantined : SessionCondition::kIdle;
  if (end == LeaseEnd::kCommit) {
    std::swap(entry.state, later.trash.back());
    entry.info.position = entry.state == nullptr ? 0 : entry.state->head.position;
    entry.info.model_fingerprint = FingerprintOf(entry.state);
  }
  if (end != LeaseEnd::kAbandon) {
    entry.info.update_time = now;
    entry.info.version = ++last_version_;
  }
  Touch(entry, now);
}

void SessionStore::DropExpiredLocked(absl::Time now, Later& later) {
  if (now < no_expiry_before_) return;
  absl::Time next = absl::InfiniteFuture();
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    // The end of a lease sets the time anew.
    if (it->second.lease != 0) {
      ++it;
    } else if (it->second.info.expire_time <= now) {
      it = Erase(it, later);
    } else {
      next = std::min(next, (it++)->second.info.expire_time);
    }
  }
  for (auto it = snapshots_.begin(); it != snapshots_.end();) {
    if (it->second.info.expire_time <= now) {
      it = Erase(it, later);
    } else {
      next = std::min(next, (it++)->second.info.expire_time);
    }
  }
  for (auto& [serial, lease] : leases_) {
    std::erase_if(lease.waiters, [&](Waiter& waiter) {
      if (waiter.until > now) {
        next = std::min(next, waiter.until);
        return false;
      }
      later.calls.push_back(std::move(waiter.then));
      return true;
    });
  }
  no_expiry_before_ = next;
}

SessionStore::Sessions::iterator SessionStore::Erase(Sessions::iterator session, Later& later) {
  Entry& entry = session->second;
  const ParkedUse use = UseOf(entry.info.state_bytes);
  later.trash.push_back(std::move(entry.state));
  if (entry.lease != 0) {
    Lease& lease = leases_.at(entry.lease);
    lease.deleted = use;  // the holder has its state still, and is making another
    for (Waiter& waiter : lease.waiters) later.calls.push_back(std::move(waiter.then));
    lease.waiters.clear();
  } else {
    account_.Remove(session->first.first, use);
  }
  return sessions_.erase(session);
}

SessionStore::Snapshots::iterator SessionStore::Erase(Snapshots::iterator snapshot, Later& later) {
  SnapshotEntry& entry = snapshot->second;
  account_.Remove(snapshot->first.first, {.snapshots = 1, .state_bytes = ParkedBytes(entry.state->data.size())});
  later.trash.push_back(std::move(entry.state));
  return snapshots_.erase(snapshot);
}

absl::StatusOr<SessionStore::Entry*> SessionStore::FindIdle(const ParkedKey& key) {
  const auto it = sessions_.find(key);
  if (it == sessions_.end()) return NoSession(key.second);
  switch (it->second.info.condition) {
    case SessionCondition::kIdle:
      break;
    case SessionCondition::kActive:
      return Leased(key.second);
    case SessionCondition::kQuarantined:
      return absl::FailedPreconditionError(
          absl::StrCat("session \"", key.second,
                       "\" is quarantined: its numbers stopped being finite; delete it or go back to a snapshot"));
  }
  return &it->second;
}

void SessionStore::Touch(Entry& entry, absl::Time now) {
  entry.info.expire_time = now + entry.info.ttl;
  no_expiry_before_ = std::min(no_expiry_before_, entry.info.expire_time);
}

SessionInfo SessionStore::Insert(ParkedKey key, std::string model, int64_t state_bytes, StatePtr state,
                                 absl::Duration ttl, absl::Time now) {
  Entry entry;
  entry.info = {.owner = key.first,
                .id = key.second,
                .model = std::move(model),
                .model_fingerprint = FingerprintOf(state),
                .position = state == nullptr ? 0 : state->head.position,
                .state_bytes = state_bytes,
                .create_time = now,
                .update_time = now,
                .ttl = ttl,
                .version = ++last_version_};
  entry.state = std::move(state);
  Touch(entry, now);
  account_.Add(key.first, UseOf(entry.info.state_bytes));
  const auto [it, inserted] = sessions_.emplace(std::move(key), std::move(entry));
  PALIMPSEST_CHECK(inserted);
  return it->second.info;
}

}  // namespace palimpsest
