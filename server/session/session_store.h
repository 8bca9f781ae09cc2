// Sessions and snapshots in memory, by owner and name: two owners may use the same name, and neither sees the other's.
// Parked states are shared and never changed, so a fork or a snapshot is one more reference; but each counts as a whole
// state against the limits, so that none can fail to go its own way later. A session counts from its creation on: its
// first reply parks a state.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/steady_clock.h"
#include "server/session/parked_account.h"
#include "server/session/state.h"

namespace palimpsest {

enum class SessionCondition : uint8_t { kIdle, kActive, kQuarantined };

// Who owns everything where callers are not told apart.
inline constexpr char kDefaultOwner[] = "default";

// Owner and id.
using ParkedKey = std::pair<std::string, std::string>;

// Times are steady (steady_clock.h); what leaves the process is ToWallTime of them.
struct SessionInfo {
  std::string owner;
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
  std::string owner;
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
  // ParkedBytes of all sessions and snapshots together. 0: what SetMaxStateBytes says, and no limit before it does.
  int64_t max_state_bytes = 0;
  absl::Duration default_ttl = absl::Hours(1);
  // What one owner may have of all this; null: as much as there is. Called under the store's lock: it must return
  // quickly and not call the store.
  std::function<SessionShare(const std::string& owner)> share = nullptr;
};

class SessionStore;

// The right to append to one session. While it lives nobody else can append to, fork or snapshot the session.
// Exactly one of Commit, Quarantine or Abandon ends it; the destructor abandons. Movable; used by one thread at a time.
// A session that was deleted meanwhile is gone: what is committed then is let go.
class SessionLease {
 public:
  SessionLease() = default;
  SessionLease(SessionLease&& other) noexcept;
  SessionLease& operator=(SessionLease&& other) noexcept;
  ~SessionLease();

  explicit operator bool() const { return store_ != nullptr; }
  const std::string& owner() const { return key_.first; }
  const std::string& id() const { return key_.second; }
  // For SetEnding and SetBreak. No two leases of a store have the same; never 0.
  uint64_t serial() const { return serial_; }
  const std::string& model() const { return model_; }
  // The session's state when it was leased; null: empty.
  const StatePtr& state() const { return state_; }

  // The session now stands at `state`; its time to live begins anew at `now`, as it does with the other two.
  void Commit(StatePtr state, absl::Time now = SteadyNow());
  // The session's numbers are no longer finite: it answers no more.
  void Quarantine(absl::Time now = SteadyNow());
  // The session stays as it was. Does nothing when the lease has ended already.
  void Abandon(absl::Time now = SteadyNow());

 private:
  friend class SessionStore;
  SessionStore* store_ = nullptr;
  ParkedKey key_;
  uint64_t serial_ = 0;
  std::string model_;
  StatePtr state_;
};

// Thread-safe. `mu_` is held for map operations only, never while bytes are copied or a function from outside is called
// (but SessionStoreOptions::share). Must outlive its leases and rooms.
//
// All calls drop what has expired by `now`, a steady time, first. Time is an argument so that tests are exact. What is
// leased does not expire. Acquire, the end of a lease, Peek, Fork (of the parent) and UpdateTtl are uses: each begins
// the time to live anew. A time to live of InfiniteDuration never ends. Versions are unique in a store, so that the
// etag of a session that was deleted never fits a later one of the same id.
//
// RESOURCE_EXHAUSTED: a limit of the server or the owner's share is used up; TakeLimit says which.
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
  // ALREADY_EXISTS: the id is taken.  RESOURCE_EXHAUSTED.
  absl::StatusOr<SessionInfo> Create(const std::string& owner, NewSession session, absl::Time now);
  // All or none. NOT_FOUND / ABORTED / FAILED_PRECONDITION as Peek; ALREADY_EXISTS; RESOURCE_EXHAUSTED. `ids` has one
  // entry per child, each may be empty.
  absl::StatusOr<std::vector<SessionInfo>> Fork(const std::string& owner, const std::string& id,
                                                std::vector<std::string> ids, std::optional<absl::Duration> ttl,
                                                absl::Time now);
  absl::StatusOr<SessionInfo> Get(const std::string& owner, const std::string& id, absl::Time now);
  // By id, those after `after`, at most `limit`.
  std::vector<SessionInfo> List(const std::string& owner, const std::string& after, int32_t limit, absl::Time now);
  // The same over all owners, by owner and id.
  std::vector<SessionInfo> ListAll(const ParkedKey& after, int32_t limit, absl::Time now);
  // `etag`: the version in decimal; empty: any. NOT_FOUND.  ABORTED: the etag is stale.
  absl::StatusOr<SessionInfo> UpdateTtl(const std::string& owner, const std::string& id, absl::Duration ttl,
                                        const std::string& etag, absl::Time now);
  // NOT_FOUND.  ABORTED: the etag is stale, or a lease is out. With `force` a lease is broken (see Break) and the
  // session is gone at once; its bytes count until the lease ends.
  absl::Status Delete(const std::string& owner, const std::string& id, const std::string& etag, absl::Time now,
                      bool force = false);
  // NOT_FOUND.  ABORTED: leased.  FAILED_PRECONDITION: quarantined.
  absl::StatusOr<SessionLease> Acquire(const std::string& owner, const std::string& id, absl::Time now);
  // The state of an idle session (null: empty) and its model, without taking a lease. Errors as Acquire.
  struct Parked {
    std::string model;
    StatePtr state;
  };
  absl::StatusOr<Parked> Peek(const std::string& owner, const std::string& id, absl::Time now);

  // A caller that stops a reply and calls the same session at once finds it leased still, for the moment that the
  // engine needs. So the holder says that it is on its way out, and who comes waits for that.
  //
  // The lease of this serial will end soon. Does nothing once it has ended.
  void SetEnding(uint64_t lease);
  // Calls `then` exactly once: at once, on this thread, unless the session is leased and that lease is ending; else
  // when it has ended, on the thread that ends it (the engine's, as a rule), or when `until` has passed, on the thread
  // of the next call that drops what has expired: at the latest the server's DropExpired of every second. No lock is
  // held, but those threads have other things to do: `then` hands over to another. Whether the session can be had then
  // is for the call itself to find out: another may have been faster.
  void AwaitEnding(const std::string& owner, const std::string& id, absl::Time until, std::function<void()> then);

  // What makes the holder of this lease end it, such as to cancel its call. Called at most once, by Break or a forced
  // Delete, or here if either came first, on any thread, perhaps when the lease has just ended: it must keep alive what
  // it uses, and hand over or return quickly. Does nothing once the lease has ended.
  void SetBreak(uint64_t lease, std::function<void()> break_off);
  // Has the holder of the session's lease end it, if there is one: AwaitEnding waits for that. NOT_FOUND.
  absl::Status Break(const std::string& owner, const std::string& id, absl::Time now);

  // ALREADY_EXISTS.  RESOURCE_EXHAUSTED. `state` is not null. `id` empty: one is made. Takes as long as a SHA-256 of
  // the state.
  absl::StatusOr<SnapshotInfo> AddSnapshot(const std::string& owner, std::string id, std::string model, StatePtr state,
                                           absl::Duration ttl, absl::Time now);
  // NOT_FOUND, as the ones below.
  absl::StatusOr<SnapshotInfo> GetSnapshot(const std::string& owner, const std::string& id, absl::Time now);
  absl::StatusOr<StatePtr> SnapshotState(const std::string& owner, const std::string& id, absl::Time now);
  std::vector<SnapshotInfo> ListSnapshots(const std::string& owner, const std::string& after, int32_t limit,
                                          absl::Time now);
  std::vector<SnapshotInfo> ListAllSnapshots(const ParkedKey& after, int32_t limit, absl::Time now);
  absl::Status DeleteSnapshot(const std::string& owner, const std::string& id, absl::Time now);

  // Room for a state that is no session's and no snapshot's, such as one that came with a request: it counts until the
  // last copy of what is returned is gone. KeepRoom binds that to the state itself. RESOURCE_EXHAUSTED.
  absl::StatusOr<std::shared_ptr<const void>> Reserve(const std::string& owner, int64_t state_bytes);

  // Forgets the sessions and snapshots of a model that is unloaded. The bytes of leased ones count until they end.
  void DropModel(const std::string& model);
  // Also calls those of AwaitEnding who have waited long enough.
  void DropExpired(absl::Time now);

  // Whether a session of the model has a state of this fingerprint.
  bool HasStatesOf(const std::string& model, const std::string& fingerprint) const;

  // From now on, in place of SessionStoreOptions::max_state_bytes. False, and all is as before: more is parked.
  bool SetMaxStateBytes(int64_t bytes);

  struct Counts {
    int64_t idle = 0;
    int64_t active = 0;
    int64_t quarantined = 0;
    int64_t snapshots = 0;
    int64_t state_bytes = 0;  // of distinct states held
  };
  Counts counts() const;
  std::map<std::string, Counts> counts_by_model() const;

  struct Use {
    ParkedUse all;  // as admitted: each state whole, those reserved and those of deleted sessions' leases included
    SessionShare limits;
    std::map<std::string, ParkedUse> by_owner;  // of owners who have anything
    std::map<std::string, int64_t> refusals;    // so far, by what TakeLimit says
  };
  Use use() const;

 private:
  friend class SessionLease;
  struct Entry {
    SessionInfo info;
    StatePtr state;
    uint64_t lease = 0;  // while active: its serial
  };
  struct SnapshotEntry {
    SnapshotInfo info;
    StatePtr state;
  };
  struct Waiter {
    absl::Time until;
    std::function<void()> then;
  };
  struct Lease {
    ParkedKey key;
    // Of a session that was deleted meanwhile: what it still counts as. The name may be another session's by now.
    std::optional<ParkedUse> deleted;
    bool ending = false;
    bool broken = false;
    std::function<void()> break_off = nullptr;
    std::vector<Waiter> waiters;
  };
  enum class LeaseEnd : uint8_t { kCommit, kQuarantine, kAbandon };
  using Sessions = std::map<ParkedKey, Entry>;
  using Snapshots = std::map<ParkedKey, SnapshotEntry>;

  // What is left to do once mu_ is released: states to let go, since giving one back to the system takes time, and
  // functions from outside to call. Stands before the lock in each function, so that it goes after it.
  struct Later {
    ~Later();
    std::vector<StatePtr> trash;
    std::vector<std::function<void()>> calls;
  };

  void EndLease(uint64_t serial, LeaseEnd end, StatePtr state, absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);
  void DropExpiredLocked(absl::Time now, Later& later) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The session, if it can be read from: errors as Acquire.
  absl::StatusOr<Entry*> FindIdle(const ParkedKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Touch(Entry& entry, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Enters a session whose id is free and not empty, and for which there is room.
  SessionInfo Insert(ParkedKey key, std::string model, int64_t state_bytes, StatePtr state, absl::Duration ttl,
                     absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Sessions::iterator Erase(Sessions::iterator session, Later& later) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Snapshots::iterator Erase(Snapshots::iterator snapshot, Later& later) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static void BreakLocked(Lease& lease, Later& later);
  void Unreserve(const std::string& owner, const ParkedUse& use) ABSL_LOCKS_EXCLUDED(mu_);

  const SessionStoreOptions options_;
  mutable absl::Mutex mu_;
  Sessions sessions_ ABSL_GUARDED_BY(mu_);
  Snapshots snapshots_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<uint64_t, Lease> leases_ ABSL_GUARDED_BY(mu_);  // those that are out, by serial
  ParkedAccount account_ ABSL_GUARDED_BY(mu_);
  uint64_t last_version_ ABSL_GUARDED_BY(mu_) = 0;  // of versions and of serials
  // Nothing expires before this; saves looking through the maps at each call.
  absl::Time no_expiry_before_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
};

// The same state, which gives `room` back when it goes.
StatePtr KeepRoom(StatePtr state, std::shared_ptr<const void> room);

}  // namespace palimpsest
