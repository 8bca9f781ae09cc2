// Sessions and snapshots by name, in memory. Parked states are shared and never changed, so a fork or a snapshot is one
// more reference; but each counts as a whole state against the limits, so that none can fail to go its own way later.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/session/state.h"

namespace palimpsest {

enum class SessionCondition : uint8_t { kIdle, kActive, kQuarantined };

struct SessionInfo {
  std::string id;
  std::string model;              // id
  std::string model_fingerprint;  // of the state; empty where there is none yet
  SessionCondition condition = SessionCondition::kIdle;
  int64_t position = 0;
  int64_t state_bytes = 0;
  absl::Time create_time;
  absl::Time update_time;
  absl::Time expire_time = absl::InfiniteFuture();
  absl::Duration ttl = absl::InfiniteDuration();
  uint64_t version = 0;  // the etag
};

struct SnapshotInfo {
  std::string id;
  std::string model;  // id
  int64_t position = 0;
  int64_t size_bytes = 0;
  std::string digest;
  absl::Time create_time;
  absl::Time expire_time = absl::InfiniteFuture();
};

struct SessionStoreOptions {
  int64_t max_sessions = 1024;
  int64_t max_snapshots = 1024;
  absl::Duration default_ttl = absl::Hours(1);
};

class SessionStore;

// The right to append to one session. While it lives nobody else can append to, fork, snapshot or delete the session.
// Exactly one of Commit, Quarantine or Abandon ends it; the destructor abandons. Movable; used by one thread at a time.
class SessionLease {
 public:
  SessionLease() = default;
  SessionLease(SessionLease&& other) noexcept;
  SessionLease& operator=(SessionLease&& other) noexcept;
  ~SessionLease();

  explicit operator bool() const { return store_ != nullptr; }
  const std::string& id() const { return id_; }
  const std::string& model() const { return model_; }
  // The session's state when it was leased; null: empty.
  const StatePtr& state() const { return state_; }

  // The session now stands at `state`; its time to live begins anew at `now`, as it does with the other two.
  void Commit(StatePtr state, absl::Time now = absl::Now());
  // The session's numbers are no longer finite: it answers no more.
  void Quarantine(absl::Time now = absl::Now());
  // The session stays as it was. Does nothing when the lease has ended already.
  void Abandon(absl::Time now = absl::Now());

 private:
  friend class SessionStore;
  SessionStore* store_ = nullptr;
  std::string id_;
  std::string model_;
  StatePtr state_;
};

// Thread-safe. `mu_` is held for map operations only, never while bytes are copied. Must outlive its leases.
// All calls drop what has expired by `now` first. Time is an argument so that tests are exact. What is leased does not
// expire. Acquire, the end of a lease, Peek, Fork (of the parent) and UpdateTtl are uses: each begins the time to live
// anew. A time to live of InfiniteDuration never ends. Versions are unique in a store, so that the etag of a session
// that was deleted never fits a later one of the same id.
class SessionStore {
 public:
  explicit SessionStore(SessionStoreOptions options);

  struct NewSession {
    std::string id;     // empty: one is made, of a letter and 16 random hexadecimal digits
    std::string model;  // id
    int64_t state_bytes = 0;
    StatePtr state = nullptr;                          // null: empty
    std::optional<absl::Duration> ttl = std::nullopt;  // absent: the default
  };
  // ALREADY_EXISTS: the id is taken.  RESOURCE_EXHAUSTED: max_sessions.
  absl::StatusOr<SessionInfo> Create(NewSession session, absl::Time now);
  // All or none. NOT_FOUND / ABORTED / FAILED_PRECONDITION as Peek; ALREADY_EXISTS; RESOURCE_EXHAUSTED. `ids` has one
  // entry per child, each may be empty.
  absl::StatusOr<std::vector<SessionInfo>> Fork(const std::string& id, std::vector<std::string> ids,
                                                std::optional<absl::Duration> ttl, absl::Time now);
  absl::StatusOr<SessionInfo> Get(const std::string& id, absl::Time now);
  // By id, those after `after`, at most `limit`.
  std::vector<SessionInfo> List(const std::string& after, int32_t limit, absl::Time now);
  // `etag`: the version in decimal; empty: any. NOT_FOUND.  ABORTED: the etag is stale.
  absl::StatusOr<SessionInfo> UpdateTtl(const std::string& id, absl::Duration ttl, const std::string& etag,
                                        absl::Time now);
  // NOT_FOUND.  ABORTED: the etag is stale, or a lease is out.
  absl::Status Delete(const std::string& id, const std::string& etag, absl::Time now);
  // NOT_FOUND.  ABORTED: leased.  FAILED_PRECONDITION: quarantined.
  absl::StatusOr<SessionLease> Acquire(const std::string& id, absl::Time now);
  // The state of an idle session (null: empty) and its model, without taking a lease. Errors as Acquire.
  struct Parked {
    std::string model;
    StatePtr state;
  };
  absl::StatusOr<Parked> Peek(const std::string& id, absl::Time now);

  // ALREADY_EXISTS.  RESOURCE_EXHAUSTED: max_snapshots. `state` is not null. `id` empty: one is made. Takes as long as
  // a SHA-256 of the state.
  absl::StatusOr<SnapshotInfo> AddSnapshot(std::string id, std::string model, StatePtr state, absl::Duration ttl,
                                           absl::Time now);
  // NOT_FOUND, as the three below.
  absl::StatusOr<SnapshotInfo> GetSnapshot(const std::string& id, absl::Time now);
  absl::StatusOr<StatePtr> SnapshotState(const std::string& id, absl::Time now);
  std::vector<SnapshotInfo> ListSnapshots(const std::string& after, int32_t limit, absl::Time now);
  absl::Status DeleteSnapshot(const std::string& id, absl::Time now);

  // Forgets the sessions and snapshots of a model that is unloaded. Leased ones go when their lease ends.
  void DropModel(const std::string& model);
  void DropExpired(absl::Time now);

  // Whether a session of the model has a state of this fingerprint.
  bool HasStatesOf(const std::string& model, const std::string& fingerprint) const;

  struct Counts {
    int64_t idle = 0;
    int64_t active = 0;
    int64_t quarantined = 0;
    int64_t snapshots = 0;
    int64_t state_bytes = 0;  // of distinct states held
  };
  Counts counts() const;
  std::map<std::string, Counts> counts_by_model() const;

 private:
  friend class SessionLease;
  struct Entry {
    SessionInfo info;
    StatePtr state;
    bool dropped = false;  // its model was unloaded while a lease was out: goes when the lease ends
  };
  struct SnapshotEntry {
    SnapshotInfo info;
    StatePtr state;
  };
  enum class LeaseEnd : uint8_t { kCommit, kQuarantine, kAbandon };
  // States to let go once mu_ is released: giving a state back to the system takes time.
  using Trash = std::vector<StatePtr>;

  void EndLease(const std::string& id, LeaseEnd end, StatePtr state, absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);
  void DropExpiredLocked(absl::Time now, Trash& trash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The session, if it can be read from: errors as Acquire.
  absl::StatusOr<Entry*> FindIdle(const std::string& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Use(Entry& entry, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Enters a session whose id is free and not empty.
  SessionInfo Insert(std::string id, std::string model, int64_t state_bytes, StatePtr state, absl::Duration ttl,
                     absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckRoom(int64_t more) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const SessionStoreOptions options_;
  mutable absl::Mutex mu_;
  std::map<std::string, Entry> sessions_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, SnapshotEntry> snapshots_ ABSL_GUARDED_BY(mu_);
  uint64_t last_version_ ABSL_GUARDED_BY(mu_) = 0;
  // Nothing expires before this; saves looking through the maps at each call.
  absl::Time no_expiry_before_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
};

}  // namespace palimpsest
