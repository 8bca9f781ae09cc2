// Owners, limits and shares of what is parked; leases that end, are broken, and outlive their session.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/session/session_store.h"

namespace palimpsest {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

const absl::Time kStart = absl::FromUnixSeconds(1'000'000);
constexpr int64_t kBytes = 64;

StatePtr StateAt(int64_t position) {
  auto state = std::make_shared<State>();
  state->format = {.model_fingerprint = std::string(64, 'a'), .layout_hash = 1, .bytes = kBytes, .vocabulary = 10};
  for (int64_t p = 0; p < position; ++p) state->head.Append(1);
  state->data = AlignedBytes(kBytes);
  return state;
}

SessionStore::NewSession New(std::string id, StatePtr state = nullptr) {
  return {.id = std::move(id), .model = "m", .state_bytes = kBytes, .state = std::move(state)};
}

template <class Infos>
std::vector<std::string> Names(const Infos& infos) {
  std::vector<std::string> names;
  for (const auto& info : infos) names.push_back(absl::StrCat(info.owner, "/", info.id));
  return names;
}

std::string LimitOf(absl::Status status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  return TakeLimit(status);
}

TEST(Owners, MayUseTheSameNamesAndDoNotSeeEachOther) {
  SessionStore store({});
  ASSERT_TRUE(store.Create("ann", New("a", StateAt(1)), kStart).ok());
  ASSERT_TRUE(store.Create("bob", New("a", StateAt(2)), kStart).ok());
  ASSERT_TRUE(store.Create("bob", New("b"), kStart).ok());
  ASSERT_TRUE(store.AddSnapshot("ann", "x", "m", StateAt(1), absl::Hours(1), kStart).ok());
  ASSERT_TRUE(store.AddSnapshot("bob", "x", "m", StateAt(2), absl::Hours(1), kStart).ok());
  EXPECT_EQ(store.Get("ann", "a", kStart)->position, 1);
  EXPECT_EQ(store.Get("bob", "a", kStart)->position, 2);
  EXPECT_EQ((*store.SnapshotState("bob", "x", kStart))->head.position, 2);

  const auto not_found = [](const auto& result) { return absl::IsNotFound(result.status()); };
  EXPECT_TRUE(not_found(store.Get("ann", "b", kStart)));
  EXPECT_TRUE(not_found(store.Peek("ann", "b", kStart)));
  EXPECT_TRUE(not_found(store.Acquire("ann", "b", kStart)));
  EXPECT_TRUE(not_found(store.Fork("ann", "b", {""}, {}, kStart)));
  EXPECT_TRUE(not_found(store.UpdateTtl("ann", "b", absl::Hours(1), "", kStart)));
  EXPECT_TRUE(absl::IsNotFound(store.Delete("ann", "b", "", kStart, /*force=*/true)));
  EXPECT_TRUE(absl::IsNotFound(store.Break("ann", "b", kStart)));
  EXPECT_TRUE(not_found(store.GetSnapshot("cleo", "x", kStart)));
  EXPECT_TRUE(absl::IsNotFound(store.DeleteSnapshot("cleo", "x", kStart)));

  ASSERT_TRUE(store.Delete("ann", "a", "", kStart).ok());
  EXPECT_TRUE(store.Get("bob", "a", kStart).ok());
  EXPECT_THAT(Names(*store.Fork("bob", "a", {"c"}, {}, kStart)), ElementsAre("bob/c"));
}

TEST(Owners, AreListedAloneAndAllTogetherInPages) {
  SessionStore store({});
  for (const char* id : {"b", "a"}) ASSERT_TRUE(store.Create("bob", New(id), kStart).ok());
  for (const char* id : {"c", "a"}) ASSERT_TRUE(store.Create("ann", New(id), kStart).ok());
  ASSERT_TRUE(store.AddSnapshot("bob", "x", "m", StateAt(1), absl::Hours(1), kStart).ok());
  ASSERT_TRUE(store.AddSnapshot("ann", "y", "m", StateAt(1), absl::Hours(1), kStart).ok());
  EXPECT_THAT(Names(store.List("ann", "", 10, kStart)), ElementsAre("ann/a", "ann/c"));
  EXPECT_THAT(Names(store.List("ann", "a", 10, kStart)), ElementsAre("ann/c"));
  EXPECT_THAT(Names(store.List("bob", "b", 10, kStart)), IsEmpty());
  EXPECT_THAT(Names(store.List("b", "", 10, kStart)), IsEmpty());
  EXPECT_THAT(Names(store.ListAll({}, 3, kStart)), ElementsAre("ann/a", "ann/c", "bob/a"));
  EXPECT_THAT(Names(store.ListAll({"bob", "a"}, 3, kStart)), ElementsAre("bob/b"));
  EXPECT_THAT(Names(store.ListSnapshots("ann", "", 10, kStart)), ElementsAre("ann/y"));
  EXPECT_THAT(Names(store.ListAllSnapshots({}, 10, kStart)), ElementsAre("ann/y", "bob/x"));
}

TEST(Limits, EverythingParkedCountsAsAWholeStateFromItsBeginningOn) {
  SessionStore store({.max_state_bytes = 4 * ParkedBytes(kBytes)});
  ASSERT_TRUE(store.Create("ann", New("empty"), kStart).ok());
  ASSERT_TRUE(store.Create("ann", New("a", StateAt(1)), kStart).ok());
  // Both share the parent's bytes now, and may need their own later.
  ASSERT_TRUE(store.Fork("ann", "a", {"b"}, {}, kStart).ok());
  ASSERT_TRUE(store.AddSnapshot("ann", "x", "m", StateAt(1), absl::Hours(1), kStart).ok());
  const absl::Status refused = store.Create("bob", New("c"), kStart).status();
  EXPECT_THAT(refused.message(), HasSubstr(absl::StrCat("holds ", 4 * ParkedBytes(kBytes), " bytes of parked states")));
  EXPECT_THAT(refused.message(), HasSubstr("--max_state_bytes"));
  EXPECT_EQ(LimitOf(refused), "max_state_bytes");
  EXPECT_EQ(LimitOf(store.AddSnapshot("bob", "x", "m", StateAt(1), absl::Hours(1), kStart).status()),
            "max_state_bytes");
  EXPECT_EQ(LimitOf(store.Fork("ann", "a", {""}, {}, kStart).status()), "max_state_bytes");
  EXPECT_EQ(LimitOf(store.Reserve("ann", kBytes).status()), "max_state_bytes");
  EXPECT_THAT(store.use().refusals, ElementsAre(Pair("max_state_bytes", 4)));

  // What goes, in whatever way, gives its room back.
  ASSERT_TRUE(store.DeleteSnapshot("ann", "x", kStart).ok());
  ASSERT_TRUE(store.Create("bob", New("c"), kStart).ok());
  store.DropExpired(kStart + absl::Hours(2));
  EXPECT_EQ(store.use().all.state_bytes, 0);
  EXPECT_THAT(store.use().by_owner, IsEmpty());
  ASSERT_TRUE(store.Create("bob", New("c"), kStart + absl::Hours(2)).ok());
  store.DropModel("m");
  EXPECT_EQ(store.use().all.state_bytes, 0);
}

TEST(Limits, ANameThatIsTakenCostsNothing) {
  SessionStore store({.max_state_bytes = 2 * ParkedBytes(kBytes)});
  ASSERT_TRUE(store.AddSnapshot("ann", "x", "m", StateAt(1), absl::Hours(1), kStart).ok());
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(absl::IsAlreadyExists(store.AddSnapshot("ann", "x", "m", StateAt(1), absl::Hours(1), kStart).status()));
  }
  EXPECT_EQ(store.use().all.snapshots, 1);
  EXPECT_TRUE(store.Create("ann", New("a"), kStart).ok());
}

TEST(Limits, AStateOnItsWayHasRoomAsLongAsAnybodyHoldsIt) {
  SessionStore store({.max_state_bytes = ParkedBytes(kBytes)});
  auto room = store.Reserve("ann", kBytes);
  ASSERT_TRUE(room.ok());
  StatePtr state = KeepRoom(StateAt(3), *std::move(room));
  EXPECT_EQ(state->head.position, 3);
  EXPECT_EQ(LimitOf(store.Create("bob", New("a"), kStart).status()), "max_state_bytes");
  StatePtr copy = state;
  state = nullptr;
  EXPECT_FALSE(store.Create("bob", New("a"), kStart).ok());
  copy = nullptr;
  EXPECT_TRUE(store.Create("bob", New("a"), kStart).ok());
}

TEST(Limits, MayBeLoweredToWhatIsThereAndNoFurther) {
  SessionStore store({});
  for (const char* id : {"a", "b"}) ASSERT_TRUE(store.Create("ann", New(id), kStart).ok());
  EXPECT_FALSE(store.SetMaxStateBytes(2 * ParkedBytes(kBytes) - 1));
  ASSERT_TRUE(store.Create("ann", New("c"), kStart).ok());
  EXPECT_TRUE(store.SetMaxStateBytes(3 * ParkedBytes(kBytes)));
  EXPECT_FALSE(store.Create("ann", New("d"), kStart).ok());
  ASSERT_TRUE(store.Delete("ann", "a", "", kStart).ok());
  EXPECT_TRUE(store.Create("ann", New("d"), kStart).ok());
}

TEST(Shares, AreEachOwnersOwnAndNamedWhenTheyAreUsedUp) {
  SessionStore store({.max_sessions = 5, .share = [](const std::string& owner) -> SessionShare {
                        if (owner == "ann") return {.max_sessions = 2};
                        if (owner == "bob") return {.max_snapshots = 1};
                        if (owner == "cleo") return {.max_state_bytes = ParkedBytes(kBytes)};
                        return {};
                      }});
  for (const char* id : {"a", "b"}) ASSERT_TRUE(store.Create("ann", New(id), kStart).ok());
  const absl::Status refused = store.Create("ann", New("c"), kStart).status();
  EXPECT_THAT(refused.message(), HasSubstr("the share of \"ann\" is used up: it holds 2 sessions, its share is 2"));
  EXPECT_EQ(LimitOf(refused), "share.max_sessions");
  ASSERT_TRUE(store.AddSnapshot("bob", "", "m", StateAt(1), absl::Hours(1), kStart).ok());
  EXPECT_EQ(LimitOf(store.AddSnapshot("bob", "", "m", StateAt(1), absl::Hours(1), kStart).status()),
            "share.max_snapshots");
  ASSERT_TRUE(store.Create("cleo", New("a"), kStart).ok());
  EXPECT_EQ(LimitOf(store.Create("cleo", New("b"), kStart).status()), "share.max_state_bytes");
  // What one has used up is the others' still, until the server's own limit.
  for (const char* id : {"a", "b"}) ASSERT_TRUE(store.Create("dan", New(id), kStart).ok());
  EXPECT_EQ(LimitOf(store.Create("dan", New("c"), kStart).status()), "max_sessions");
  EXPECT_EQ(store.use().by_owner.at("ann").sessions, 2);
  EXPECT_EQ(store.use().by_owner.at("bob").snapshots, 1);
}

class LeaseTest : public ::testing::Test {
 protected:
  LeaseTest() { EXPECT_TRUE(store_.Create("ann", New("a", StateAt(1)), kStart).ok()); }
  SessionLease Acquire() { return *store_.Acquire("ann", "a", kStart); }
  void Await(absl::Time until = kStart + absl::Seconds(1)) {
    store_.AwaitEnding("ann", "a", until, [this] { ++called_; });
  }
  SessionStore store_{{}};
  int called_ = 0;
};

TEST_F(LeaseTest, ThatEndsIsWaitedForAndOneThatGoesOnIsNot) {
  Await();
  EXPECT_EQ(called_, 1) << "idle";
  SessionLease lease = Acquire();
  Await();
  EXPECT_EQ(called_, 2) << "its holder goes on: the call itself will say so";
  EXPECT_TRUE(absl::IsAborted(store_.Acquire("ann", "a", kStart).status()));
  store_.SetEnding(lease.serial());
  Await();
  Await();
  EXPECT_EQ(called_, 2);
  lease.Commit(StateAt(2), kStart);
  EXPECT_EQ(called_, 4);
  EXPECT_EQ(store_.Get("ann", "a", kStart)->position, 2);
  store_.AwaitEnding("ann", "no such", kStart, [this] { ++called_; });
  EXPECT_EQ(called_, 5);
}

TEST_F(LeaseTest, WhoWaitedMayTakeItInTheCallback) {
  SessionLease lease = Acquire();
  store_.SetEnding(lease.serial());
  SessionLease next;
  store_.AwaitEnding("ann", "a", kStart + absl::Seconds(1), [&] { next = Acquire(); });
  lease.Abandon(kStart);
  EXPECT_TRUE(next);
  EXPECT_NE(next.serial(), lease.serial());
  // What was said of the first says nothing of the second.
  store_.SetEnding(lease.serial());
  Await();
  EXPECT_EQ(called_, 1);
}

TEST_F(LeaseTest, IsWaitedForNoLongerThanAsked) {
  SessionLease lease = Acquire();
  store_.SetEnding(lease.serial());
  Await();
  store_.DropExpired(kStart + absl::Milliseconds(999));
  EXPECT_EQ(called_, 0);
  store_.DropExpired(kStart + absl::Seconds(1));
  EXPECT_EQ(called_, 1);
  lease.Commit(StateAt(2), kStart);
  EXPECT_EQ(called_, 1);
}

TEST_F(LeaseTest, CanBeBrokenByTheOwner) {
  ASSERT_TRUE(store_.Break("ann", "a", kStart).ok()) << "nobody has it";
  SessionLease lease = Acquire();
  int broken = 0;
  store_.SetBreak(lease.serial(), [&] {
    ++broken;
    lease.Abandon(kStart);  // as a holder may, at once
  });
  ASSERT_TRUE(store_.Break("ann", "a", kStart).ok());
  EXPECT_EQ(broken, 1);
  EXPECT_TRUE(store_.Acquire("ann", "a", kStart).ok());
}

TEST_F(LeaseTest, ThatIsBrokenCountsAsEnding) {
  SessionLease lease = Acquire();
  ASSERT_TRUE(store_.Break("ann", "a", kStart).ok());
  Await();
  EXPECT_EQ(called_, 0);
  // The holder, who says how to break it off only now, is told at once, and once.
  int broken = 0;
  store_.SetBreak(lease.serial(), [&] { ++broken; });
  EXPECT_EQ(broken, 1);
  ASSERT_TRUE(store_.Break("ann", "a", kStart).ok());
  EXPECT_EQ(broken, 1);
  lease.Abandon(kStart);
  EXPECT_EQ(called_, 1);
}

TEST_F(LeaseTest, OfADeletedSessionEndsWithoutHarm) {
  for (const bool taken_again : {false, true}) {
    SessionLease lease = Acquire();
    int broken = 0;
    store_.SetBreak(lease.serial(), [&] { ++broken; });
    EXPECT_TRUE(absl::IsAborted(store_.Delete("ann", "a", "", kStart)));
    ASSERT_TRUE(store_.Delete("ann", "a", "", kStart, /*force=*/true).ok());
    EXPECT_EQ(broken, 1);
    EXPECT_TRUE(absl::IsNotFound(store_.Get("ann", "a", kStart).status()));
    EXPECT_EQ(store_.use().all.sessions, 1) << "its state is there until the holder lets go";
    if (taken_again) {
      ASSERT_TRUE(store_.Create("ann", New("a", StateAt(7)), kStart).ok());
    }
    lease.Commit(StateAt(2), kStart);
    if (taken_again) {
      EXPECT_EQ(store_.Get("ann", "a", kStart)->position, 7);
    }
    EXPECT_EQ(store_.use().all.sessions, taken_again ? 1 : 0);
    if (!taken_again) {
      ASSERT_TRUE(store_.Create("ann", New("a"), kStart).ok());
    }
  }
}

TEST_F(LeaseTest, OfADeletedSessionKeepsNobodyWaiting) {
  SessionLease lease = Acquire();
  store_.SetEnding(lease.serial());
  Await();
  ASSERT_TRUE(store_.Delete("ann", "a", "", kStart, /*force=*/true).ok());
  EXPECT_EQ(called_, 1);
  EXPECT_TRUE(absl::IsNotFound(store_.Acquire("ann", "a", kStart).status()));
}

TEST_F(LeaseTest, ManyThreadsBreakAwaitAndTakeIt) {
  std::atomic<int> asked = 0, told = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        ++asked;
        store_.AwaitEnding("ann", "a", kStart + absl::Hours(1), [&told] { ++told; });
        absl::StatusOr<SessionLease> lease = store_.Acquire("ann", "a", kStart);
        if (!lease.ok()) {
          EXPECT_TRUE(store_.Break("ann", "a", kStart).ok());
          continue;
        }
        auto broken = std::make_shared<std::atomic<int>>(0);
        store_.SetBreak(lease->serial(), [broken] { EXPECT_EQ(++*broken, 1); });
        if (i % 3 == 0) store_.SetEnding(lease->serial());
        lease->Commit(StateAt(i % 5), kStart);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(told, asked);
  EXPECT_EQ(store_.counts().active, 0);
}

TEST(SteadyClock, GoesOnlyForwardAndIsToldInTheWallsTerms) {
  absl::Time last = SteadyNow();
  for (int i = 0; i < 1000; ++i) {
    const absl::Time now = SteadyNow();
    EXPECT_GE(now, last);
    last = now;
  }
  EXPECT_EQ(ToWallTime(last), ToWallTime(last));
  EXPECT_EQ(ToWallTime(last + absl::Hours(1)) - ToWallTime(last), absl::Hours(1));
}

}  // namespace
}  // namespace palimpsest
