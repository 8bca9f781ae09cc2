// What happens while a batch runs. On a device, callers hear of a batch while the next one is at work: what a sink does
// then, it does in the middle of that. On the processor they hear before the next one begins.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <thread>
#include <utility>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "server/engine/engine.h"
#include "server/engine/engine_testing.h"

namespace palimpsest::testing {
namespace {

using ::testing::ElementsAre;

// Tokens of a sequence that are being sampled while it is told of one.
int64_t Ahead() { return TestModel()->device() == nullptr ? 0 : 1; }

// Does something on the engine's thread: when it has been told of so many tokens, or of its end.
class ActingSink : public RecordingSink {
 public:
  ActingSink(int64_t tokens, std::function<void()> act) : tokens_(tokens), act_(std::move(act)) {}
  explicit ActingSink(std::function<void()> act) : ActingSink(-1, std::move(act)) {}

  void OnDelta(Delta delta) override {
    RecordingSink::OnDelta(std::move(delta));
    if (std::ssize(ids()) == tokens_) act_();
  }
  void OnFinish(Finish finish) override {
    if (tokens_ < 0) act_();
    RecordingSink::OnFinish(std::move(finish));
  }

 private:
  const int64_t tokens_;
  const std::function<void()> act_;
};

class EngineOverlap : public SessionsTest {
 protected:
  // Of a reply to `prompt` on a session that began empty: it ended after `count` tokens as if no more had been asked
  // for.
  void ExpectEndedAt(int64_t count, Engine& engine, const std::vector<int32_t>& prompt, const RecordingSink& sink,
                     const std::string& session) {
    ASSERT_EQ(sink.ids().size(), count);
    EXPECT_EQ(sink.Wait().generated_tokens, count);
    EXPECT_EQ(sink.Wait().position, std::ssize(prompt) + count);
    EXPECT_EQ(sink.positions().size(), count) << "a delta for each token, in the order of their positions";
    for (int64_t i = 0; i < count; ++i) EXPECT_EQ(sink.positions()[i], std::ssize(prompt) + i + 1);
    const auto same = RunToEnd(engine, Generate(prompt, count));
    EXPECT_EQ(Bits(sink.tokens()), Bits(same->tokens()));
    EXPECT_EQ(sink.text(), same->text());
    EXPECT_EQ(StateDigest(*Parked(session)), same->Wait().state_digest);
  }
};

TEST_F(EngineOverlap, WhoIsCancelledWhileABatchRunsEndsAfterIt) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2});
  NewSession("a");
  RequestId id = 0;
  absl::Notification submitted;
  const auto sink = std::make_shared<ActingSink>(3, [&] {
    submitted.WaitForNotification();
    engine->Cancel(id);
  });
  const std::vector<int32_t> prompt = RandomTokens(70, 1);
  EngineRequest request = OnSession("a", Generate(prompt, kEndless));
  request.sink = sink;
  Submit(*engine, std::move(request), &id);
  submitted.Notify();
  EXPECT_EQ(sink->Wait().status.code(), absl::StatusCode::kCancelled);
  ExpectEndedAt(3 + Ahead(), *engine, prompt, *sink, "a");
}

TEST_F(EngineOverlap, WhoseDeadlinePassesWhileABatchRunsEndsAfterIt) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2});
  NewSession("a");
  const absl::Time deadline = absl::Now() + absl::Seconds(3);
  const auto sink = std::make_shared<ActingSink>(3, [&] {
    while (absl::Now() <= deadline) absl::SleepFor(absl::Milliseconds(10));
  });
  const std::vector<int32_t> prompt = RandomTokens(5, 2);
  EngineRequest request = OnSession("a", Generate(prompt, kEndless));
  request.deadline = deadline;
  request.sink = sink;
  Submit(*engine, std::move(request));
  EXPECT_EQ(sink->Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
  ExpectEndedAt(3 + Ahead(), *engine, prompt, *sink, "a");
}

TEST_F(EngineOverlap, ADrainThatBeginsWhileABatchRunsWaitsForIt) {
  std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1, .max_queue = 0});
  NewSession("a");
  std::thread drain;
  const auto sink = std::make_shared<ActingSink>(3, [&] {
    drain = std::thread([&] { engine->Drain(absl::InfinitePast()); });
    // There is no room for another: that is the reason until the drain has begun.
    EngineRequest refused = Generate({1}, 1);
    refused.sink = std::make_shared<RecordingSink>();
    while (engine->Submit(refused).status().code() != absl::StatusCode::kUnavailable) std::this_thread::yield();
  });
  const std::vector<int32_t> prompt = RandomTokens(5, 3);
  EngineRequest request = OnSession("a", Generate(prompt, kEndless));
  request.sink = sink;
  Submit(*engine, std::move(request));
  EXPECT_EQ(sink->Wait().status.code(), absl::StatusCode::kUnavailable);
  drain.join();
  engine = StartEngine({.threads = 1, .slots = 1});
  ExpectEndedAt(3 + Ahead(), *engine, prompt, *sink, "a");
}

TEST_F(EngineOverlap, WhatArrivesWhileABatchRunsIsInTheNext) {
  std::vector<int32_t> sequences;  // of each batch
  EngineObserver observer;
  observer.on_iteration = [&](int32_t, int32_t count, absl::Duration) { sequences.push_back(count); };
  std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2}, observer);
  const auto alone = RunToEnd(*engine, Generate({5}, 8));
  const auto other_alone = RunToEnd(*engine, Generate({9}, 3));
  sequences.clear();
  std::shared_ptr<RecordingSink> other;
  const auto sink = std::make_shared<ActingSink>(2, [&] { other = Submit(*engine, Generate({9}, 3)); });
  EngineRequest request = Generate({5}, 8);
  request.sink = sink;
  RunToEnd(*engine, std::move(request));
  EXPECT_EQ(Bits(sink->tokens()), Bits(alone->tokens()));
  EXPECT_EQ(sink->Wait().state_digest, alone->Wait().state_digest);
  EXPECT_EQ(Bits(other->tokens()), Bits(other_alone->tokens()));
  EXPECT_EQ(other->Wait().state_digest, other_alone->Wait().state_digest);
  engine.reset();
  if (Ahead() == 0) {
    EXPECT_THAT(sequences, ElementsAre(1, 1, 2, 2, 2, 1, 1, 1));
  } else {
    EXPECT_THAT(sequences, ElementsAre(1, 1, 1, 2, 2, 2, 1, 1));
  }
}

TEST_F(EngineOverlap, AnEndIsToldWhileTheOthersGoOn) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2});
  NewSession("a");
  NewSession("b");
  const std::vector<int32_t> prompt = RandomTokens(5, 4);
  RequestId id = 0;
  const auto other = Submit(*engine, OnSession("b", Generate(prompt, kEndless)), &id);
  other->WaitForTokens(1);
  int64_t told = 0;
  const auto sink = std::make_shared<ActingSink>([&] {
    EXPECT_EQ(store_.Get(kDefaultOwner, "a", absl::Now())->position, 8);
    EXPECT_EQ(store_.Get(kDefaultOwner, "a", absl::Now())->condition, SessionCondition::kIdle);
    told = std::ssize(other->ids());
    engine->Cancel(id);
  });
  EngineRequest request = OnSession("a", Generate(prompt, 3));
  request.sink = sink;
  Submit(*engine, std::move(request));
  EXPECT_TRUE(sink->Wait().status.ok());
  EXPECT_EQ(other->Wait().status.code(), absl::StatusCode::kCancelled);
  ExpectEndedAt(3, *engine, prompt, *sink, "a");
  ExpectEndedAt(told + Ahead(), *engine, prompt, *other, "b");
}

// Where a stop string may end the reply its text is made before the next batch begins, else later.
TEST_F(EngineOverlap, TextIsTheSameWheneverItIsMade) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 3});
  for (const bool goes_on : {false, true}) {
    const auto reply = [&](std::vector<std::string> stop_strings) {
      EngineRequest request = Generate(RandomTokens(6, 5), 16);
      request.stop_strings = std::move(stop_strings);
      request.want_state = goes_on;
      return Submit(*engine, std::move(request));
    };
    const auto later = reply({});
    const auto at_once = reply({"no such text"});
    const std::string text = later->Wait().status.ok() ? later->text() : "";
    EXPECT_EQ(at_once->Wait().state_digest, later->Wait().state_digest);
    EXPECT_EQ(at_once->text(), text);
    EXPECT_EQ(at_once->positions(), later->positions());
    const size_t letter = text.find_first_of("abcde", text.size() / 2);
    ASSERT_NE(letter, std::string::npos);
    const std::string stop = text.substr(letter, 1);
    const auto stopped = reply({stop});
    EXPECT_EQ(stopped->Wait().reason, EndReason::kStopString);
    EXPECT_EQ(stopped->text(), text.substr(0, text.find(stop)));
  }
}

}  // namespace
}  // namespace palimpsest::testing
