// Readers that take nothing, and sessions that stand at what was delivered.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "absl/time/clock.h"
#include "server/engine/engine.h"
#include "server/engine/engine_testing.h"

namespace palimpsest::testing {
namespace {

using ::testing::HasSubstr;

using Commit = EngineRequest::Commit;

class EngineDelivery : public SessionsTest {
 protected:
  // A request on a session, whose reader has taken as many tokens as it says.
  std::shared_ptr<RecordingSink> SubmitSlow(Engine& engine, EngineRequest request, int64_t taken, RequestId* id) {
    auto sink = std::make_shared<RecordingSink>();
    sink->ReadSlowly(taken);
    request.sink = sink;
    Submit(engine, std::move(request), id);
    return sink;
  }
  EngineRequest Delivered(const std::string& session, EngineRequest request) {
    request = OnSession(session, std::move(request));
    request.commit = Commit::kDelivered;
    return request;
  }
  // Takes tokens one by one, as many as `count`.
  static void Take(Engine& engine, RecordingSink& sink, RequestId id, int64_t count) {
    for (int64_t taken = 1; taken <= count; ++taken) {
      sink.WaitForTokens(taken);
      sink.ReadSlowly(taken);
      engine.Resume(id);
    }
  }
};

TEST_F(EngineDelivery, AReaderThatTakesNothingIsEndedAndItsSlotIsFree) {
  const std::unique_ptr<Engine> engine =
      StartEngine({.threads = 1, .slots = 1, .max_undelivered_tokens = 4, .max_stall = absl::Milliseconds(200)});
  NewSession("a");
  RequestId id = 0;
  const auto sink = SubmitSlow(*engine, OnSession("a", Generate(RandomTokens(5, 1), kEndless)), 0, &id);
  const RequestSink::Finish& finish = sink->Wait();
  EXPECT_EQ(finish.status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(finish.status.message(), HasSubstr("the reader read nothing for 200ms (--max_stall)"));
  EXPECT_THAT(finish.status.message(), HasSubstr("the session stands at position 9"));
  EXPECT_EQ(sink->ids().size(), 4);
  EXPECT_EQ(store_.Get(kDefaultOwner, "a", SteadyNow())->position, 9);
  EXPECT_TRUE(RunToEnd(*engine, Generate(RandomTokens(5, 2), 10))->Wait().status.ok());
}

TEST_F(EngineDelivery, AReaderThatTakesSomethingNowAndThenIsNot) {
  const std::unique_ptr<Engine> engine =
      StartEngine({.threads = 1, .slots = 1, .max_undelivered_tokens = 1, .max_stall = absl::Seconds(2)});
  RequestId id = 0;
  const auto sink = SubmitSlow(*engine, Generate(RandomTokens(5, 1), 6), 0, &id);
  for (int64_t taken = 1; taken <= 6; ++taken) {
    sink->WaitForTokens(taken);
    absl::SleepFor(absl::Milliseconds(500));
    sink->ReadSlowly(taken);
    engine->Resume(id);
  }
  EXPECT_TRUE(sink->Wait().status.ok()) << sink->Wait().status;
}

TEST_F(EngineDelivery, WithoutABoundAReaderMayTakeNothingForEver) {
  const std::unique_ptr<Engine> engine =
      StartEngine({.threads = 1, .slots = 1, .max_undelivered_tokens = 1, .max_stall = absl::InfiniteDuration()});
  RequestId id = 0;
  const auto sink = SubmitSlow(*engine, Generate(RandomTokens(5, 1), 6), 0, &id);
  sink->WaitForTokens(1);
  absl::SleepFor(absl::Milliseconds(100));
  EXPECT_FALSE(sink->finished());
  engine->Cancel(id);
  EXPECT_EQ(sink->Wait().status.code(), absl::StatusCode::kCancelled);
}

TEST_F(EngineDelivery, ASessionStandsAtTheLastTokenDelivered) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2});
  const std::vector<int32_t> prompt = RandomTokens(70, 1);
  for (const int64_t delivered : {1, 2, 7, 14}) {
    const std::string session = absl::StrCat("a", delivered);
    NewSession(session);
    RequestId id = 0;
    const auto sink = SubmitSlow(*engine, Delivered(session, Generate(prompt, kEndless)), 0, &id);
    Take(*engine, *sink, id, delivered);
    // One more is sampled, and no other.
    sink->WaitForTokens(delivered + 1);
    EXPECT_TRUE(RunToEnd(*engine, Generate(prompt, 20))->Wait().status.ok());
    EXPECT_EQ(std::ssize(sink->ids()), delivered + 1);
    engine->Cancel(id);
    const RequestSink::Finish& finish = sink->Wait();
    EXPECT_EQ(finish.status.code(), absl::StatusCode::kCancelled);
    EXPECT_TRUE(finish.taken_back);
    EXPECT_EQ(finish.generated_tokens, delivered);
    EXPECT_EQ(finish.position, 70 + delivered);
    EXPECT_EQ(store_.Get(kDefaultOwner, session, SteadyNow())->position, 70 + delivered);
    // As if that many had been asked for, and going on is going on.
    const auto same = RunToEnd(*engine, Generate(prompt, delivered));
    EXPECT_EQ(StateDigest(*Parked(session)), same->Wait().state_digest);
    const auto on = RunToEnd(*engine, OnSession(session, Generate({}, 5)));
    const auto whole = RunToEnd(*engine, Generate(prompt, delivered + 5));
    EXPECT_EQ(on->Wait().state_digest, whole->Wait().state_digest);
  }
}

TEST_F(EngineDelivery, BeforeTheFirstTokenIsDeliveredASessionIsAsItWas) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1});
  NewSession("a");
  RunToEnd(*engine, OnSession("a", Generate(RandomTokens(5, 2), 3)));
  const StatePtr before = Parked("a");
  RequestId id = 0;
  const auto sink = SubmitSlow(*engine, Delivered("a", Generate(RandomTokens(9, 3), kEndless)), 0, &id);
  sink->WaitForTokens(1);
  engine->Cancel(id);
  EXPECT_EQ(sink->Wait().position, 8);
  EXPECT_EQ(sink->Wait().generated_tokens, 0);
  EXPECT_EQ(Parked("a"), before);
}

TEST_F(EngineDelivery, WhatIsDeliveredAtTheEndIsKept) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1});
  const std::vector<int32_t> prompt = RandomTokens(10, 4);
  NewSession("a");
  RequestId id = 0;
  const auto sink = SubmitSlow(*engine, Delivered("a", Generate(prompt, kEndless)), 0, &id);
  Take(*engine, *sink, id, 4);
  sink->WaitForTokens(5);
  sink->ReadSlowly(5);  // and nobody says so
  engine->Cancel(id);
  EXPECT_FALSE(sink->Wait().taken_back);
  EXPECT_GE(store_.Get(kDefaultOwner, "a", SteadyNow())->position, 15);
}

TEST_F(EngineDelivery, AReplyEndsWhenAllOfItIsDelivered) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1, .max_stall = absl::Seconds(1)});
  const std::vector<int32_t> prompt = RandomTokens(10, 5);
  const auto expected = RunToEnd(*engine, Generate(prompt, 6));
  NewSession("a");
  NewSession("b");
  RequestId id = 0;
  const auto sink = SubmitSlow(*engine, Delivered("a", Generate(prompt, 6)), 0, &id);
  Take(*engine, *sink, id, 5);
  sink->WaitForTokens(6);
  EXPECT_FALSE(sink->finished());
  sink->ReadSlowly(6);
  engine->Resume(id);
  EXPECT_TRUE(sink->Wait().status.ok());
  EXPECT_EQ(sink->text(), expected->text());
  EXPECT_TRUE(Bits(sink->tokens()) == Bits(expected->tokens()));
  EXPECT_EQ(sink->Wait().state_digest, expected->Wait().state_digest);
  EXPECT_EQ(StateDigest(*Parked("a")), expected->Wait().state_digest);
  // The last token is not taken: it is not part of the session.
  const auto stalled = SubmitSlow(*engine, Delivered("b", Generate(prompt, 6)), 0, &id);
  Take(*engine, *stalled, id, 5);
  EXPECT_EQ(stalled->Wait().status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(store_.Get(kDefaultOwner, "b", SteadyNow())->position, 15);
}

TEST_F(EngineDelivery, AReaderThatTakesAllAtOnceNeedsNoWord) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1});
  const std::vector<int32_t> prompt = RandomTokens(10, 6);
  NewSession("a");
  const auto sink = RunToEnd(*engine, Delivered("a", Generate(prompt, 20)));
  EXPECT_TRUE(sink->Wait().status.ok());
  EXPECT_EQ(sink->Wait().state_digest, RunToEnd(*engine, Generate(prompt, 20))->Wait().state_digest);
}

}  // namespace
}  // namespace palimpsest::testing
