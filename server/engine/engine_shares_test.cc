// Owners: who gets slots, who is refused, and who makes room.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/engine/engine.h"
#include "server/engine/engine_testing.h"

namespace palimpsest::testing {
namespace {

using ::testing::HasSubstr;

class EngineShares : public SessionsTest {};

EngineRequest Of(const std::string& owner, EngineRequest request) {
  request.owner = owner;
  return request;
}

absl::Status Refusal(Engine& engine, EngineRequest request) {
  request.sink = std::make_shared<RecordingSink>();
  return engine.Submit(request).status();
}

TEST_F(EngineShares, AnOwnerOverItsShareIsRefusedWhileOthersAreNot) {
  const std::unique_ptr<Engine> engine =
      StartEngine({.threads = 1, .slots = 2, .max_queue = 8, .shares = [](const std::string& owner) {
                     return owner == "a" ? EngineShare{.max_slots = 1, .max_queue = 1} : EngineShare{};
                   }});
  std::vector<RequestId> ids(3);
  const auto running = Submit(*engine, Of("a", Generate(RandomTokens(2, 1), kEndless)), &ids[0]);
  running->WaitForTokens(1);
  const auto waiting = Submit(*engine, Of("a", Generate(RandomTokens(2, 2), kEndless)), &ids[1]);
  const absl::Status refused = Refusal(*engine, Of("a", Generate(RandomTokens(2, 3), 1)));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("the share of owner a is used up"));
  // The second slot is not a's to have.
  const auto other = Submit(*engine, Of("b", Generate(RandomTokens(2, 4), kEndless)), &ids[2]);
  other->WaitForTokens(1);
  EXPECT_TRUE(waiting->ids().empty());
  std::map<std::string, std::pair<int, int>> owners;
  for (const EngineStats::Owner& owner : engine->stats().owners) owners[owner.name] = {owner.waiting, owner.running};
  EXPECT_EQ(owners, (std::map<std::string, std::pair<int, int>>{{"a", {1, 1}}, {"b", {0, 1}}}));
  for (const RequestId id : ids) engine->Cancel(id);
  EXPECT_EQ(running->Wait().owner, "a");
  EXPECT_EQ(other->Wait().owner, "b");
  waiting->Wait();
}

TEST_F(EngineShares, WithAFullQueueTheNewestOfWhoHasMostMakesRoom) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1, .max_queue = 4});
  RequestId holder = 0;
  Submit(*engine, Of("flood", Generate(RandomTokens(2, 1), kEndless)), &holder)->WaitForTokens(1);
  NewSession("kept");
  NewSession("refused");
  std::vector<std::shared_ptr<RecordingSink>> flood;
  for (int i = 0; i < 3; ++i) flood.push_back(Submit(*engine, Of("flood", Generate(RandomTokens(2, 2), 3))));
  flood.push_back(Submit(*engine, Of("flood", OnSession("refused", Generate(RandomTokens(2, 3), 3)))));
  EXPECT_EQ(Refusal(*engine, Of("flood", Generate(RandomTokens(2, 4), 1))).code(),
            absl::StatusCode::kResourceExhausted);
  const auto modest = Submit(*engine, Of("b", OnSession("kept", Generate(RandomTokens(2, 5), 3))));
  const RequestSink::Finish& refused = flood.back()->Wait();
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.status.message(), HasSubstr("made room for one of an owner that has less"));
  EXPECT_TRUE(flood.back()->ids().empty());
  EXPECT_EQ(store_.Get(kDefaultOwner, "refused", SteadyNow())->position, 0);
  EXPECT_EQ(store_.Get(kDefaultOwner, "refused", SteadyNow())->condition, SessionCondition::kIdle);
  engine->Cancel(holder);
  EXPECT_TRUE(modest->Wait().status.ok());
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(flood[i]->Wait().status.ok());
  EXPECT_TRUE(engine->stats().owners.empty());
}

TEST_F(EngineShares, AStormOfOwnersAtAFullQueueEndsEveryRequestOnce) {
  const std::unique_ptr<Engine> engine =
      StartEngine({.threads = 1, .slots = 2, .max_queue = 5, .shares = [](const std::string& owner) {
                     return owner == "o1" ? EngineShare{.weight = 2.0, .max_slots = 1} : EngineShare{};
                   }});
  std::vector<std::thread> callers;
  std::atomic<int> well = 0, refused = 0;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      std::vector<std::shared_ptr<RecordingSink>> sinks;
      for (int i = 0; i < 150; ++i) {
        auto sink = std::make_shared<RecordingSink>();
        EngineRequest request =
            Of(absl::StrCat("o", caller), Generate(RandomTokens(1 + i % 5, static_cast<uint64_t>(i)), 1 + i % 7));
        request.sink = sink;
        const absl::StatusOr<RequestId> id = engine->Submit(request);
        if (!id.ok()) {
          ++refused;
          continue;
        }
        if (i % 11 == 0) engine->Cancel(*id);
        sinks.push_back(sink);
      }
      for (const auto& sink : sinks) {
        if (sink->Wait().status.ok()) ++well;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_GT(well, 0);
  EXPECT_GT(refused, 0);
  engine->Drain(absl::InfiniteFuture());
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.slots_used + stats.running + stats.waiting, 0);
  EXPECT_TRUE(stats.owners.empty());
}

TEST_F(EngineShares, AShareThatMakesNoSenseLetsTheOwnerRunAllTheSame) {
  const std::unique_ptr<Engine> engine =
      StartEngine({.threads = 1, .slots = 2, .shares = [](const std::string& owner) {
                     const double weight = owner == "a" ? 0.0 : std::numeric_limits<double>::quiet_NaN();
                     return EngineShare{.weight = weight, .max_slots = 0, .max_queue = -5, .prefill_budget = -1};
                   }});
  for (const char* owner : {"a", "b"}) {
    EXPECT_TRUE(RunToEnd(*engine, Of(owner, Generate(RandomTokens(100, 1), 3)))->Wait().status.ok());
  }
}

// Bits are no matter of shares.
TEST_F(EngineShares, AReplyIsTheSameWhoeverAsksAndWhateverElseRuns) {
  const std::unique_ptr<Engine> engine = StartEngine(
      {.threads = 1, .slots = 3, .prefill_budget = 64, .shares = [](const std::string& owner) {
         return owner == "a" ? EngineShare{.weight = 5.0, .max_slots = 2, .prefill_budget = 64} : EngineShare{};
       }});
  const std::vector<int32_t> prompt = RandomTokens(200, 1);
  const auto alone = RunToEnd(*engine, Generate(prompt, 30));
  std::vector<std::shared_ptr<RecordingSink>> among;
  for (int i = 0; i < 12; ++i) {
    among.push_back(Submit(*engine, Of(i % 2 == 0 ? "a" : "b", Generate(prompt, 30))));
    Submit(*engine, Of("c", Generate(RandomTokens(10 + 40 * i, 2), 5)));
  }
  for (const auto& sink : among) {
    EXPECT_TRUE(Bits(sink->tokens()) == Bits(alone->tokens()) || !sink->finished());
    EXPECT_EQ(sink->Wait().state_digest, alone->Wait().state_digest);
    EXPECT_TRUE(Bits(sink->tokens()) == Bits(alone->tokens()));
  }
}

TEST_F(EngineShares, AShortRequestDoesNotWaitForTheLongOnesBeforeIt) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1, .max_queue = 64});
  std::vector<std::shared_ptr<RecordingSink>> longs;
  for (int i = 0; i < 20; ++i) longs.push_back(Submit(*engine, Generate(RandomTokens(300, 1), 200)));
  const auto brief = Submit(*engine, Generate(RandomTokens(3, 2), 2));
  brief->Wait();
  int ended = 0;
  for (const auto& sink : longs) ended += sink->finished() ? 1 : 0;
  EXPECT_LE(ended, 5);
  for (const auto& sink : longs) EXPECT_TRUE(sink->Wait().status.ok());
}

}  // namespace
}  // namespace palimpsest::testing
