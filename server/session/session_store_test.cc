#include "server/session/session_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace palimpsest {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

constexpr char kMe[] = "me";
const absl::Time kStart = absl::FromUnixSeconds(1'000'000);

StatePtr StateAt(int64_t position, int64_t bytes = 64) {
  auto state = std::make_shared<State>();
  state->format = {.model_fingerprint = std::string(64, 'a'), .layout_hash = 1, .bytes = bytes, .vocabulary = 10};
  for (int64_t p = 0; p < position; ++p) state->head.Append(1);
  state->data = AlignedBytes(bytes);
  return state;
}

SessionStore::NewSession New(std::string id, StatePtr state = nullptr, std::optional<absl::Duration> ttl = {}) {
  return {.id = std::move(id), .model = "m", .state_bytes = 64, .state = std::move(state), .ttl = ttl};
}

std::vector<std::string> Ids(const std::vector<SessionInfo>& sessions) {
  std::vector<std::string> ids;
  for (const SessionInfo& info : sessions) ids.push_back(info.id);
  return ids;
}

class SessionStoreTest : public ::testing::Test {
 protected:
  SessionStore store_{{.max_sessions = 5, .max_snapshots = 2, .default_ttl = absl::Hours(1)}};
};

TEST_F(SessionStoreTest, ANewSessionIsWhatWasAskedFor) {
  const StatePtr state = StateAt(3);
  const auto info = store_.Create(kMe, New("a", state), kStart);
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->id, "a");
  EXPECT_EQ(info->model, "m");
  EXPECT_EQ(info->condition, SessionCondition::kIdle);
  EXPECT_EQ(info->position, 3);
  EXPECT_EQ(info->state_bytes, 64);
  EXPECT_EQ(info->create_time, kStart);
  EXPECT_EQ(info->expire_time, kStart + absl::Hours(1));
  EXPECT_EQ(store_.Peek(kMe, "a", kStart)->state, state);
  EXPECT_EQ(store_.Create(kMe, New("a"), kStart).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(store_.Get(kMe, "b", kStart).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SessionStoreTest, MakesIdsThatDiffer) {
  const std::string first = store_.Create(kMe, New(""), kStart)->id;
  const std::string second = store_.Create(kMe, New(""), kStart)->id;
  EXPECT_THAT(first, MatchesRegex("s[0-9a-f]{16}"));
  EXPECT_NE(first, second);
}

TEST_F(SessionStoreTest, HoldsNoMoreThanItsLimit) {
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(store_.Create(kMe, New(""), kStart).ok());
  const auto refused = store_.Create(kMe, New("x"), kStart);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.status().message(), HasSubstr("holds 5 sessions, its limit is 5"));
}

TEST_F(SessionStoreTest, ALeaseKeepsEveryoneElseOut) {
  ASSERT_TRUE(store_.Create(kMe, New("a", StateAt(1)), kStart).ok());
  SessionLease lease = *store_.Acquire(kMe, "a", kStart);
  EXPECT_TRUE(lease);
  EXPECT_EQ(lease.id(), "a");
  EXPECT_EQ(lease.model(), "m");
  EXPECT_EQ(lease.state()->head.position, 1);
  EXPECT_EQ(store_.Get(kMe, "a", kStart)->condition, SessionCondition::kActive);
  EXPECT_EQ(store_.Acquire(kMe, "a", kStart).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(store_.Peek(kMe, "a", kStart).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(store_.Fork(kMe, "a", {"b"}, {}, kStart).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(store_.Delete(kMe, "a", "", kStart).code(), absl::StatusCode::kAborted);

  lease.Commit(StateAt(9), kStart);
  EXPECT_FALSE(lease);
  EXPECT_EQ(store_.Get(kMe, "a", kStart)->position, 9);
  EXPECT_EQ(store_.Get(kMe, "a", kStart)->condition, SessionCondition::kIdle);
  EXPECT_TRUE(store_.Delete(kMe, "a", "", kStart).ok());
}

TEST_F(SessionStoreTest, ALeaseThatIsAbandonedOrDestroyedChangesNothing) {
  const StatePtr state = StateAt(4);
  const uint64_t version = store_.Create(kMe, New("a", state), kStart)->version;
  store_.Acquire(kMe, "a", kStart)->Abandon(kStart);
  { SessionLease lease = *store_.Acquire(kMe, "a", kStart); }
  {
    SessionLease lease = *store_.Acquire(kMe, "a", kStart);
    SessionLease moved = std::move(lease);
    EXPECT_FALSE(lease);
    EXPECT_EQ(moved.id(), "a");
    SessionLease assigned;
    assigned = std::move(moved);
    EXPECT_EQ(store_.Get(kMe, "a", kStart)->condition, SessionCondition::kActive);
    assigned = SessionLease();
    EXPECT_EQ(store_.Get(kMe, "a", kStart)->condition, SessionCondition::kIdle);
  }
  EXPECT_EQ(store_.Peek(kMe, "a", kStart)->state, state);
  EXPECT_EQ(store_.Get(kMe, "a", kStart)->version, version);
}

TEST_F(SessionStoreTest, AQuarantinedSessionAnswersNoMore) {
  ASSERT_TRUE(store_.Create(kMe, New("a", StateAt(1)), kStart).ok());
  store_.Acquire(kMe, "a", kStart)->Quarantine(kStart);
  EXPECT_EQ(store_.Get(kMe, "a", kStart)->condition, SessionCondition::kQuarantined);
  EXPECT_EQ(store_.Acquire(kMe, "a", kStart).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store_.Peek(kMe, "a", kStart).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store_.Fork(kMe, "a", {""}, {}, kStart).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store_.counts().quarantined, 1);
  EXPECT_TRUE(store_.Delete(kMe, "a", "", kStart).ok());
}

TEST_F(SessionStoreTest, ForksShareTheStateAndThenGoTheirOwnWay) {
  const StatePtr state = StateAt(7);
  ASSERT_TRUE(store_.Create(kMe, New("a", state, absl::Minutes(5)), kStart).ok());
  const auto children = store_.Fork(kMe, "a", {"c", "", "b"}, {}, kStart);
  ASSERT_TRUE(children.ok());
  EXPECT_THAT(Ids(*children), ElementsAre("c", MatchesRegex("s[0-9a-f]{16}"), "b"));
  for (const SessionInfo& child : *children) {
    EXPECT_EQ(child.position, 7);
    EXPECT_EQ(child.model, "m");
    EXPECT_EQ(child.ttl, absl::Minutes(5));
    EXPECT_EQ(store_.Peek(kMe, child.id, kStart)->state, state);
  }
  EXPECT_EQ(store_.counts().state_bytes, 64);
  store_.Acquire(kMe, "b", kStart)->Commit(StateAt(8), kStart);
  EXPECT_EQ(store_.Peek(kMe, "a", kStart)->state, state);
  EXPECT_EQ(store_.counts().state_bytes, 128);
  EXPECT_EQ((*store_.Fork(kMe, "a", {"d"}, absl::InfiniteDuration(), kStart))[0].expire_time, absl::InfiniteFuture());
}

TEST_F(SessionStoreTest, AForkIsAllOrNone) {
  ASSERT_TRUE(store_.Create(kMe, New("a"), kStart).ok());
  ASSERT_TRUE(store_.Create(kMe, New("taken"), kStart).ok());
  EXPECT_EQ(store_.Fork(kMe, "a", {"b", "taken"}, {}, kStart).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(store_.Fork(kMe, "a", {"b", "b"}, {}, kStart).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(store_.Fork(kMe, "a", {"b", "", "", ""}, {}, kStart).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store_.Fork(kMe, "none", {"b"}, {}, kStart).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Ids(store_.List(kMe, "", 10, kStart)), ElementsAre("a", "taken"));
}

TEST_F(SessionStoreTest, ListsInPagesById) {
  for (const char* id : {"d", "b", "a", "c"}) ASSERT_TRUE(store_.Create(kMe, New(id), kStart).ok());
  EXPECT_THAT(Ids(store_.List(kMe, "", 3, kStart)), ElementsAre("a", "b", "c"));
  EXPECT_THAT(Ids(store_.List(kMe, "c", 3, kStart)), ElementsAre("d"));
  EXPECT_THAT(Ids(store_.List(kMe, "bb", 1, kStart)), ElementsAre("c"));
}

TEST_F(SessionStoreTest, ExpiresAtItsTimeAndNotBefore) {
  ASSERT_TRUE(store_.Create(kMe, New("a", nullptr, absl::Minutes(10)), kStart).ok());
  ASSERT_TRUE(store_.Create(kMe, New("b", nullptr, absl::InfiniteDuration()), kStart).ok());
  ASSERT_TRUE(store_.Create(kMe, New("c", nullptr, absl::Minutes(20)), kStart).ok());
  EXPECT_TRUE(store_.Get(kMe, "a", kStart + absl::Minutes(10) - absl::Nanoseconds(1)).ok());
  EXPECT_EQ(store_.Get(kMe, "a", kStart + absl::Minutes(10)).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Ids(store_.List(kMe, "", 10, kStart + absl::Minutes(10))), ElementsAre("b", "c"));
  store_.DropExpired(kStart + absl::Minutes(20));
  EXPECT_EQ(store_.counts().idle, 1);
  EXPECT_TRUE(store_.Get(kMe, "b", kStart + absl::Hours(100'000)).ok());
}

TEST_F(SessionStoreTest, EachUseBeginsTheTimeToLiveAnew) {
  const absl::Duration ttl = absl::Minutes(10);
  const absl::Duration step = absl::Minutes(9);
  absl::Time now = kStart;
  ASSERT_TRUE(store_.Create(kMe, New("a", StateAt(1), ttl), now).ok());
  ASSERT_TRUE(store_.Peek(kMe, "a", now += step).ok());
  ASSERT_TRUE(store_.Fork(kMe, "a", {"b"}, {}, now += step).ok());
  ASSERT_TRUE(store_.UpdateTtl(kMe, "a", ttl, "", now += step).ok());
  SessionLease lease = *store_.Acquire(kMe, "a", now += step);
  // What is leased does not expire, however long the call takes.
  now += absl::Hours(5);
  EXPECT_TRUE(store_.Get(kMe, "a", now).ok());
  lease.Abandon(now);
  ASSERT_TRUE(store_.Get(kMe, "a", now += step).ok());
  // Looking is no use.
  EXPECT_FALSE(store_.Get(kMe, "a", now + absl::Minutes(1)).ok());
}

TEST_F(SessionStoreTest, TheEtagChangesWithTheSessionAndGuardsIt) {
  const auto tag = [&] { return absl::StrCat(store_.Get(kMe, "a", kStart)->version); };
  ASSERT_TRUE(store_.Create(kMe, New("a", StateAt(1)), kStart).ok());
  const std::string created = tag();
  store_.Acquire(kMe, "a", kStart)->Commit(StateAt(2), kStart);
  const std::string committed = tag();
  EXPECT_NE(created, committed);
  EXPECT_EQ(store_.UpdateTtl(kMe, "a", absl::Hours(2), created, kStart).status().code(), absl::StatusCode::kAborted);
  const auto updated = store_.UpdateTtl(kMe, "a", absl::Hours(2), committed, kStart + absl::Minutes(1));
  ASSERT_TRUE(updated.ok());
  EXPECT_EQ(updated->ttl, absl::Hours(2));
  EXPECT_EQ(updated->update_time, kStart + absl::Minutes(1));
  EXPECT_EQ(updated->expire_time, kStart + absl::Minutes(121));
  EXPECT_NE(tag(), committed);
  const auto stale = store_.Delete(kMe, "a", committed, kStart);
  EXPECT_EQ(stale.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(stale.message(), HasSubstr(tag()));
  const std::string last = tag();
  EXPECT_TRUE(store_.Delete(kMe, "a", last, kStart).ok());
  ASSERT_TRUE(store_.Create(kMe, New("a"), kStart).ok());
  EXPECT_NE(tag(), last);
}

TEST_F(SessionStoreTest, SnapshotsLiveOnTheirOwn) {
  const StatePtr state = StateAt(5);
  ASSERT_TRUE(store_.Create(kMe, New("a", state), kStart).ok());
  const auto info = store_.AddSnapshot(kMe, "x", "m", state, absl::InfiniteDuration(), kStart);
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->position, 5);
  EXPECT_EQ(info->digest, StateDigest(*state));
  EXPECT_EQ(info->size_bytes, std::ssize(*SerializeSnapshot(*state)));
  EXPECT_EQ(info->expire_time, absl::InfiniteFuture());
  ASSERT_TRUE(store_.Delete(kMe, "a", "", kStart).ok());
  EXPECT_EQ(*store_.SnapshotState(kMe, "x", kStart), state);
  EXPECT_EQ(store_.AddSnapshot(kMe, "x", "m", state, absl::Hours(1), kStart).status().code(),
            absl::StatusCode::kAlreadyExists);
  const auto made = store_.AddSnapshot(kMe, "", "m", state, absl::Hours(1), kStart);
  ASSERT_TRUE(made.ok());
  EXPECT_THAT(made->id, MatchesRegex("p[0-9a-f]{16}"));
  EXPECT_EQ(store_.AddSnapshot(kMe, "y", "m", state, absl::Hours(1), kStart).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store_.ListSnapshots(kMe, "", 10, kStart).size(), 2);
  EXPECT_EQ(store_.ListSnapshots(kMe, made->id, 10, kStart).size(), 1);
  EXPECT_EQ(store_.ListSnapshots(kMe, "", 1, kStart)[0].id, made->id);
  EXPECT_EQ(store_.GetSnapshot(kMe, made->id, kStart + absl::Hours(1)).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(store_.DeleteSnapshot(kMe, "x", kStart).ok());
  EXPECT_EQ(store_.DeleteSnapshot(kMe, "x", kStart).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_.SnapshotState(kMe, "x", kStart).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SessionStoreTest, AnUnloadedModelTakesItsSessionsAlong) {
  ASSERT_TRUE(store_.Create(kMe, New("a", StateAt(1)), kStart).ok());
  ASSERT_TRUE(store_.Create(kMe, New("leased", StateAt(1)), kStart).ok());
  SessionStore::NewSession other = New("other");
  other.model = "n";
  ASSERT_TRUE(store_.Create(kMe, std::move(other), kStart).ok());
  ASSERT_TRUE(store_.AddSnapshot(kMe, "x", "m", StateAt(1), absl::Hours(1), kStart).ok());
  SessionLease lease = *store_.Acquire(kMe, "leased", kStart);
  store_.DropModel("m");
  EXPECT_THAT(Ids(store_.List(kMe, "", 10, kStart)), ElementsAre("other"));
  EXPECT_TRUE(store_.ListSnapshots(kMe, "", 10, kStart).empty());
  lease.Commit(StateAt(2), kStart);
  EXPECT_THAT(Ids(store_.List(kMe, "", 10, kStart)), ElementsAre("other"));
}

TEST_F(SessionStoreTest, OneOfManyThreadsGetsTheLease) {
  ASSERT_TRUE(store_.Create(kMe, New("a"), kStart).ok());
  std::atomic<int> held = 0;
  std::atomic<int> commits = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        absl::StatusOr<SessionLease> lease = store_.Acquire(kMe, "a", kStart);
        if (!lease.ok()) continue;
        EXPECT_EQ(++held, 1);
        const int64_t position = lease->state() == nullptr ? 0 : lease->state()->head.position;
        --held;
        ++commits;
        lease->Commit(StateAt(position + 1, 0), kStart);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store_.Get(kMe, "a", kStart)->position, commits);
}

}  // namespace
}  // namespace palimpsest
