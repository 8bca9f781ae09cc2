// What ends early, is refused or goes wrong: nothing is lost quietly, and nobody else notices.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/steady_clock.h"
#include "server/engine/engine.h"
#include "server/engine/engine_testing.h"
#include "server/session/session_store.h"

namespace palimpsest::testing {
namespace {

using ::testing::HasSubstr;

class EngineFaults : public SessionsTest {};

TEST_F(EngineFaults, ACancelledSessionStandsAtTheLastTokenSampled) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2});
  const std::vector<int32_t> prompt = RandomTokens(70, 1);
  NewSession("a");
  RequestId id = 0;
  const auto sink = Submit(*engine, OnSession("a", Generate(prompt, kEndless)), &id);
  sink->WaitForTokens(5);
  engine->Cancel(id);
  const RequestSink::Finish& finish = sink->Wait();
  EXPECT_EQ(finish.status.code(), absl::StatusCode::kCancelled);
  const int64_t sampled = std::ssize(sink->ids());
  EXPECT_GE(sampled, 5);
  EXPECT_EQ(finish.generated_tokens, sampled);
  EXPECT_EQ(finish.position, 70 + sampled);
  EXPECT_EQ(finish.state, nullptr);
  EXPECT_EQ(store_.Get(kDefaultOwner, "a", absl::Now())->position, 70 + sampled);
  EXPECT_EQ(store_.Get(kDefaultOwner, "a", absl::Now())->condition, SessionCondition::kIdle);
  // As if that many had been asked for.
  const auto same = RunToEnd(*engine, Generate(prompt, sampled));
  EXPECT_EQ(StateDigest(*Parked("a")), same->Wait().state_digest);
  engine->Cancel(id);  // finished long ago
  engine->Cancel(12345);
  EXPECT_EQ(engine->stats().slots_used, 0);
}

TEST_F(EngineFaults, ARequestThatEndsBeforeItsFirstTokenLeavesTheSessionAsItWas) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1, .prefill_budget = 64});
  NewSession("a");
  RunToEnd(*engine, OnSession("a", Generate(RandomTokens(5, 2), 3)));
  const StatePtr before = Parked("a");
  // In the middle of its prompt.
  EngineRequest request = OnSession("a", Generate(RandomTokens(2'000'000, 3), kEndless));
  RequestId id = 0;
  const auto sink = Submit(*engine, std::move(request), &id);
  while (engine->stats().running == 0) std::this_thread::yield();
  engine->Cancel(id);
  EXPECT_EQ(sink->Wait().status.code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(sink->Wait().status.message(), HasSubstr("stands at position 8"));
  EXPECT_EQ(sink->Wait().position, 8);
  EXPECT_EQ(Parked("a"), before);
  // After its prompt: a reader who has no room from the start keeps the first token from being sampled.
  const int64_t prompt_tokens = engine->stats().prompt_tokens;
  auto full = std::make_shared<RecordingSink>();
  full->ReadSlowly(-1000);
  request = OnSession("a", Generate(RandomTokens(10, 3), kEndless));
  request.sink = full;
  Submit(*engine, std::move(request), &id);
  while (engine->stats().prompt_tokens < prompt_tokens + 10) std::this_thread::yield();
  engine->Cancel(id);
  EXPECT_EQ(full->Wait().status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(full->Wait().position, 8);
  EXPECT_EQ(Parked("a"), before);
  // In the queue.
  RequestId holder_id = 0;
  const auto holder = Submit(*engine, Generate(RandomTokens(1, 4), kEndless), &holder_id);
  holder->WaitForTokens(1);
  const auto waiting = Submit(*engine, OnSession("a", Generate(RandomTokens(1, 5), 3)), &id);
  EXPECT_EQ(engine->stats().waiting, 1);
  engine->Cancel(id);
  EXPECT_EQ(waiting->Wait().status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(Parked("a"), before);
  engine->Cancel(holder_id);
  holder->Wait();
}

TEST_F(EngineFaults, DeadlinesEndWhatRunsAndWhatWaits) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1});
  NewSession("a");
  EngineRequest running = OnSession("a", Generate(RandomTokens(3, 6), kEndless));
  running.deadline = absl::Now() + absl::Seconds(2);
  EngineRequest waiting = Generate(RandomTokens(3, 7), 5);
  waiting.deadline = absl::Now() + absl::Milliseconds(100);
  EngineRequest late = Generate(RandomTokens(3, 7), 5);
  late.deadline = absl::Now() - absl::Seconds(1);
  const auto first = Submit(*engine, std::move(running));
  const auto second = Submit(*engine, std::move(waiting));
  const auto third = Submit(*engine, std::move(late));
  EXPECT_EQ(third->Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(second->Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(second->ids().empty());
  EXPECT_FALSE(first->finished());
  EXPECT_EQ(first->Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(store_.Get(kDefaultOwner, "a", absl::Now())->position, 3 + std::ssize(first->ids()));
  EXPECT_GE(first->Wait().total_time, absl::Milliseconds(1900));
}

TEST_F(EngineFaults, ASlowReaderIsLeftOutAndLosesNothing) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2, .max_undelivered_tokens = 8});
  const std::vector<int32_t> prompt = RandomTokens(40, 8);
  const auto expected = RunToEnd(*engine, Generate(prompt, 50));
  auto slow = std::make_shared<RecordingSink>();
  slow->ReadSlowly(0);
  EngineRequest request = Generate(prompt, 50);
  request.sink = slow;
  RequestId id = 0;
  Submit(*engine, std::move(request), &id);
  slow->WaitForTokens(8);
  // A neighbour goes on meanwhile.
  EXPECT_TRUE(RunToEnd(*engine, Generate(prompt, 100))->Wait().status.ok());
  EXPECT_EQ(slow->ids().size(), 8);
  EXPECT_FALSE(slow->finished());
  for (int64_t taken = 5; !slow->finished(); taken += 5) {
    slow->ReadSlowly(taken);
    engine->Resume(id);
    slow->WaitForTokens(std::min<int64_t>(taken + 8, 50));
    if (taken + 8 < 50) {
      EXPECT_EQ(slow->ids().size(), taken + 8);
    } else {
      slow->Wait();
    }
  }
  EXPECT_TRUE(Bits(slow->tokens()) == Bits(expected->tokens()));
  EXPECT_EQ(slow->Wait().state_digest, expected->Wait().state_digest);
}

TEST_F(EngineFaults, AnEngineWithOnlySlowReadersSleepsAndKeepsDeadlines) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1, .max_undelivered_tokens = 2});
  auto slow = std::make_shared<RecordingSink>();
  slow->ReadSlowly(0);
  EngineRequest request = Generate(RandomTokens(2, 9), kEndless);
  request.sink = slow;
  request.deadline = absl::Now() + absl::Seconds(2);
  Submit(*engine, std::move(request));
  slow->WaitForTokens(2);
  const int64_t iterations = engine->stats().iterations;
  EXPECT_EQ(slow->Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LE(engine->stats().iterations, iterations + 1);
  EXPECT_EQ(slow->ids().size(), 2);
}

TEST_F(EngineFaults, AFullQueueRefusesAndLeavesTheRequestAlone) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1, .max_queue = 2});
  std::vector<RequestId> ids(3);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (RequestId& id : ids) sinks.push_back(Submit(*engine, Generate(RandomTokens(2, 10), kEndless), &id));
  NewSession("a");
  EngineRequest request = OnSession("a", Generate(RandomTokens(2, 11), 3));
  request.sink = std::make_shared<RecordingSink>();
  const auto refused = engine->Submit(request);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.status().message(), HasSubstr("3 requests are here, 1 of them run at once"));
  EXPECT_EQ(request.prompt.size(), 2);
  EXPECT_TRUE(request.lease);
  for (const RequestId id : ids) engine->Cancel(id);
  for (const auto& sink : sinks) sink->Wait();
  // As soon as one has ended there is room.
  EXPECT_TRUE(RunToEnd(*engine, std::move(request))->Wait().status.ok());
}

TEST_F(EngineFaults, DrainingLetsEndWhatCanAndKeepsSessions) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2});
  NewSession("short");
  NewSession("endless");
  NewSession("waiting");
  const auto endless = Submit(*engine, OnSession("endless", Generate(RandomTokens(3, 12), kEndless)));
  const auto ends = Submit(*engine, OnSession("short", Generate(RandomTokens(3, 13), 10)));
  const auto follows = Submit(*engine, Generate(RandomTokens(3, 14), 5));
  std::thread drain([&] { engine->Drain(SteadyNow() + absl::Seconds(10)); });
  const auto refused = [&] {
    EngineRequest request = Generate(RandomTokens(1, 15), 1);
    request.sink = std::make_shared<RecordingSink>();
    return engine->Submit(request).status().code() == absl::StatusCode::kUnavailable;
  };
  // Seldom: what gets in before the drain begins takes its turn, too.
  while (!refused()) absl::SleepFor(absl::Milliseconds(20));
  drain.join();
  EXPECT_TRUE(ends->finished() && endless->finished() && follows->finished());
  EXPECT_TRUE(ends->Wait().status.ok());
  EXPECT_TRUE(follows->Wait().status.ok()) << "what waits may run while the grace lasts";
  EXPECT_EQ(endless->Wait().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(store_.Get(kDefaultOwner, "endless", absl::Now())->position, 3 + std::ssize(endless->ids()));
  EXPECT_EQ(store_.Get(kDefaultOwner, "short", absl::Now())->position, 13);
  engine->Drain(absl::InfiniteFuture());  // nothing left to wait for
}

TEST_F(EngineFaults, DestroyingAnEngineEndsEverything) {
  std::unique_ptr<Engine> engine = StartEngine({.threads = 2, .slots = 2});
  NewSession("a");
  std::vector<std::shared_ptr<RecordingSink>> sinks = {
      Submit(*engine, OnSession("a", Generate(RandomTokens(3, 16), kEndless)))};
  for (int i = 0; i < 5; ++i) sinks.push_back(Submit(*engine, Generate(RandomTokens(3, 17), kEndless)));
  sinks[0]->WaitForTokens(2);
  engine.reset();
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->finished());
    EXPECT_EQ(sink->Wait().status.code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(store_.Get(kDefaultOwner, "a", absl::Now())->position, 3 + std::ssize(sinks[0]->ids()));
  EXPECT_EQ(store_.counts().active, 0);
}

// Waits until the engine's stats say so; fails the test after a minute.
template <typename Condition>
void AwaitStats(const Engine& engine, Condition condition) {
  const absl::Time deadline = absl::Now() + absl::Minutes(1);
  while (!condition(engine.stats())) {
    ASSERT_LT(absl::Now(), deadline);
    absl::SleepFor(absl::Milliseconds(1));
  }
}

TEST_F(EngineFaults, StatsTellWhoHasWaitedLongest) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1, .max_queue = 5});
  EXPECT_EQ(engine->stats().max_queue, 5);
  EXPECT_EQ(engine->stats().oldest_waiting, absl::InfiniteFuture());
  RequestId running = 0;
  Submit(*engine, Generate(RandomTokens(3, 1), kEndless), &running)->WaitForTokens(1);
  const absl::Time before = absl::Now();
  RequestId first = 0;
  RequestId second = 0;
  Submit(*engine, Generate(RandomTokens(3, 2), kEndless), &first);
  const absl::Time between = absl::Now();
  Submit(*engine, Generate(RandomTokens(3, 3), kEndless), &second);
  AwaitStats(*engine, [](const EngineStats& stats) { return stats.waiting == 2; });
  AwaitStats(*engine, [&](const EngineStats& s) { return s.oldest_waiting >= before && s.oldest_waiting <= between; });
  engine->Cancel(first);
  AwaitStats(*engine, [&](const EngineStats& s) { return s.waiting == 1 && s.oldest_waiting >= between; });
  engine->Cancel(running);
  AwaitStats(*engine, [](const EngineStats& s) {
    return s.waiting == 0 && s.running == 1 && s.oldest_waiting == absl::InfiniteFuture();
  });
}

TEST_F(EngineFaults, StatsTellOfPausedSequences) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2, .max_undelivered_tokens = 4});
  auto slow = std::make_shared<RecordingSink>();
  slow->ReadSlowly(0);
  EngineRequest request = Generate(RandomTokens(3, 1), 20);
  request.sink = slow;
  RequestId id = 0;
  Submit(*engine, std::move(request), &id);
  AwaitStats(*engine, [](const EngineStats& stats) { return stats.paused == 1 && stats.running == 1; });
  slow->ReadSlowly(20);
  engine->Resume(id);
  EXPECT_TRUE(slow->Wait().status.ok());
  AwaitStats(*engine, [](const EngineStats& stats) { return stats.paused == 0 && stats.running == 0; });
}

TEST_F(EngineFaults, StatsTellOfWastedTokens) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2});
  RunToEnd(*engine, Generate(RandomTokens(70, 1), 5));
  EXPECT_EQ(engine->stats().wasted_tokens, 0);
  std::vector<int32_t> bad = RandomTokens(9, 2);
  bad[3] = kPoisonToken;
  EXPECT_EQ(RunToEnd(*engine, Generate(bad, 5))->Wait().status.code(), absl::StatusCode::kInternal);
  EXPECT_GE(engine->stats().wasted_tokens, 8);
  EXPECT_LE(engine->stats().wasted_tokens, 9);
}

// Runs `bad` among neighbours and expects it to end as not finite, alone.
void ExpectQuarantine(Engine& engine, std::vector<EngineRequest> bad) {
  std::vector<std::shared_ptr<RecordingSink>> before;
  for (uint64_t i = 0; i < 6; ++i) before.push_back(RunToEnd(engine, Generate(RandomTokens(50, 100 + i), 60)));
  const int64_t quarantined = engine.stats().quarantined;
  std::vector<std::shared_ptr<RecordingSink>> neighbours;
  std::vector<std::shared_ptr<RecordingSink>> ill;
  for (uint64_t i = 0; i < 6; ++i) {
    neighbours.push_back(Submit(engine, Generate(RandomTokens(50, 100 + i), 60)));
    if (i < bad.size()) ill.push_back(Submit(engine, std::move(bad[i])));
  }
  for (const auto& sink : ill) {
    EXPECT_EQ(sink->Wait().status.code(), absl::StatusCode::kInternal) << sink->Wait().status;
    EXPECT_THAT(sink->Wait().status.message(), HasSubstr("stopped being finite"));
    EXPECT_EQ(sink->Wait().state, nullptr);
  }
  for (size_t i = 0; i < neighbours.size(); ++i) {
    EXPECT_TRUE(neighbours[i]->Wait().status.ok());
    EXPECT_TRUE(Bits(neighbours[i]->tokens()) == Bits(before[i]->tokens()));
    EXPECT_EQ(neighbours[i]->Wait().state_digest, before[i]->Wait().state_digest);
  }
  EXPECT_EQ(engine.stats().quarantined, quarantined + std::ssize(ill));
  EXPECT_EQ(engine.stats().slots_used, 0);
  // The slots that the ill ones had are given out clean.
  EXPECT_TRUE(Bits(RunToEnd(engine, Generate(RandomTokens(50, 100), 60))->tokens()) == Bits(before[0]->tokens()));
}

TEST_F(EngineFaults, APoisonedPromptIsQuarantinedAndNobodyElseNotices) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 2, .slots = 12});
  for (const char* id : {"generate", "append", "score"}) NewSession(id);
  std::vector<int32_t> poisoned = RandomTokens(130, 18);
  poisoned[100] = kPoisonToken;
  std::vector<EngineRequest> bad;
  bad.push_back(OnSession("generate", Generate(poisoned, 50)));
  bad.push_back(OnSession("append", Generate(poisoned, 0)));
  bad.push_back(OnSession("score", Score(poisoned)));
  bad.push_back(Generate({kPoisonToken}, 5));
  ExpectQuarantine(*engine, std::move(bad));
  for (const char* id : {"generate", "append", "score"}) {
    EXPECT_EQ(store_.Get(kDefaultOwner, id, absl::Now())->condition, SessionCondition::kQuarantined) << id;
  }
}

TEST_F(EngineFaults, AStateThatIsNotFiniteIsQuarantinedAndNobodyElseNotices) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 2, .slots = 12});
  const auto good = RunToEnd(*engine, Generate(RandomTokens(20, 19), 5));
  std::vector<EngineRequest> bad;
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
    auto state = std::make_shared<State>();
    state->format = good->Wait().state->format;
    state->head = good->Wait().state->head;
    state->data = AlignedBytes(state->format.bytes);
    std::memcpy(state->data.data(), good->Wait().state->data.data(), static_cast<size_t>(state->format.bytes));
    std::memcpy(state->data.data() + 4 * 10, &value, 4);
    const auto parsed = ParseSnapshot(*SerializeSnapshot(*state), engine->state_format());
    ASSERT_TRUE(parsed.ok());
    bad.push_back(Generate({}, 10, *parsed));
    bad.push_back(Generate(RandomTokens(3, 20), 0, *parsed));
  }
  ExpectQuarantine(*engine, std::move(bad));
}

// While it lives, the process may map a few small arrays more, and no large one.
class LittleMemory {
 public:
  LittleMemory() {
    int64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    getrlimit(RLIMIT_AS, &before_);
    rlimit limit = before_;
    limit.rlim_cur = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE) + (int64_t{4} << 20));
    setrlimit(RLIMIT_AS, &limit);
  }
  ~LittleMemory() { setrlimit(RLIMIT_AS, &before_); }

 private:
  rlimit before_{};
};

TEST_F(EngineFaults, AStateForWhichThereIsNoMemoryIsAnErrorOfItsRequest) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers map terabytes of addresses";
#endif
  if (TestModel()->device() != nullptr)
    GTEST_SKIP() << "the emulator allocates, too, and cannot be told that it failed";
  RandomCheckpointSpec spec = TestSpec();
  spec.key_dim = spec.value_dim = 256;
  spec.layers = 16;  // a state of 8 MiB
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2}, {}, LoadModel(spec));
  NewSession("a");
  ASSERT_TRUE(RunToEnd(*engine, OnSession("a", Generate(RandomTokens(3, 1), 2)))->Wait().status.ok());
  const StatePtr before = Parked("a");
  {
    const LittleMemory little;
    const auto failed = RunToEnd(*engine, OnSession("a", Generate(RandomTokens(3, 2), 2)));
    EXPECT_EQ(failed->Wait().status.code(), absl::StatusCode::kResourceExhausted) << failed->Wait().status;
    EXPECT_THAT(failed->Wait().status.message(), HasSubstr("the session stands where it was"));
    EXPECT_FALSE(failed->Wait().device_failed);
  }
  EXPECT_EQ(Parked("a"), before);
  EXPECT_TRUE(RunToEnd(*engine, OnSession("a", Generate(RandomTokens(3, 2), 2)))->Wait().status.ok());
  EXPECT_EQ(store_.Get(kDefaultOwner, "a", absl::Now())->position, 10);
}

TEST_F(EngineFaults, WhatCannotBeRunIsRefusedWithTheReason) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1});
  const StatePtr good = RunToEnd(*engine, Generate(RandomTokens(20, 21), 5))->Wait().state;
  const auto changed = [&](auto change) {
    auto state = std::make_shared<State>();
    state->format = good->format;
    state->head = good->head;
    state->data = AlignedBytes(good->data.size());
    change(*state);
    return StatePtr(state);
  };
  EngineRequest bias = Generate({1}, 1);
  bias.sampling.logit_bias = {{3, 1.0f}, {256, 1.0f}};
  struct Row {
    EngineRequest request;
    absl::StatusCode code;
    const char* words;
  };
  std::vector<Row> rows;
  rows.push_back({Generate({}, 1), absl::StatusCode::kFailedPrecondition, "nothing to continue from"});
  rows.push_back({Generate({1, 256}, 1), absl::StatusCode::kInvalidArgument, "prompt[1] is token id 256"});
  rows.push_back({Generate({-1}, 1), absl::StatusCode::kInvalidArgument, "the vocabulary has 0 to 255"});
  rows.push_back({std::move(bias), absl::StatusCode::kInvalidArgument, "logit_bias[1] is token id 256"});
  rows.push_back({Generate({}, 1, changed([](State& state) { state.head.pending = 256; })),
                  absl::StatusCode::kInvalidArgument, "state.pending[0] is token id 256"});
  rows.push_back({Generate({}, 1, changed([](State& state) { state.head.recent[3] = 1 << 30; })),
                  absl::StatusCode::kInvalidArgument, "state.recent[3]"});
  rows.push_back({Generate({}, 1, changed([](State& state) { state.format.layout_hash ^= 1; })),
                  absl::StatusCode::kFailedPrecondition, "another model or layout"});
  rows.push_back({Generate({}, 1, changed([](State& state) { state.data = AlignedBytes(64); })),
                  absl::StatusCode::kFailedPrecondition, "another model or layout"});
  for (Row& row : rows) {
    row.request.sink = std::make_shared<RecordingSink>();
    const auto id = engine->Submit(row.request);
    EXPECT_EQ(id.status().code(), row.code) << row.words;
    EXPECT_THAT(id.status().message(), HasSubstr(row.words));
    EXPECT_NE(row.request.sink, nullptr);
  }
}

TEST_F(EngineFaults, OptionsOutOfRangeAndTooManySlotsAreRefused) {
  const auto tokenizer = std::make_shared<AwkwardTokenizer>(256);
  for (const EngineOptions& options :
       {EngineOptions{.threads = -1}, EngineOptions{.slots = -1}, EngineOptions{.max_queue = -1},
        EngineOptions{.prefill_budget = -1}, EngineOptions{.max_undelivered_tokens = 0},
        EngineOptions{.max_stall = absl::ZeroDuration()}}) {
    EXPECT_EQ(Engine::Start(TestModel(), tokenizer, options).status().code(), absl::StatusCode::kInvalidArgument);
  }
  RandomCheckpointSpec spec;
  spec.key_dim = 128;
  spec.value_dim = 256;
  spec.heads = spec.value_heads = 8;
  const auto engine = Engine::Start(LoadModel(spec), tokenizer, {.slots = 1 << 20});
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(engine.status().message(), HasSubstr("1048576 slots of "));
}

TEST_F(EngineFaults, AStormOfCancellationsDeadlinesAndSlowReadersLeavesNothingBehind) {
  const std::unique_ptr<Engine> engine =
      StartEngine({.threads = 2, .slots = 8, .max_queue = 1000, .max_undelivered_tokens = 4});
  std::vector<std::thread> threads;
  std::atomic<int> done = 0;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(static_cast<uint64_t>(t));
      struct Open {
        RequestId id = 0;
        std::shared_ptr<RecordingSink> sink;
      };
      std::vector<Open> open;
      for (int i = 0; i < 120; ++i) {
        EngineRequest request = random() % 5 == 0
                                    ? Score(RandomTokens(static_cast<int64_t>(1 + random() % 200), random()))
                                    : Generate(RandomTokens(static_cast<int64_t>(1 + random() % 200), random()),
                                               static_cast<int64_t>(random() % 40));
        if (random() % 4 == 0) request.deadline = absl::Now() + absl::Microseconds(random() % 20'000);
        const std::string session = absl::StrCat("s", t, "x", random() % 5);
        if (random() % 2 == 0) {
          (void)store_.Create(kDefaultOwner, {.id = session, .model = "m", .state_bytes = 1}, absl::Now());
          absl::StatusOr<SessionLease> lease = store_.Acquire(kDefaultOwner, session, absl::Now());
          if (lease.ok()) {
            request.initial = lease->state();
            request.lease = *std::move(lease);
          }
        }
        auto sink = std::make_shared<RecordingSink>();
        const bool slow = random() % 3 == 0;
        if (slow) sink->ReadSlowly(0);
        request.sink = sink;
        Open& one = open.emplace_back();
        one.sink = Submit(*engine, std::move(request), &one.id);
        if (random() % 3 == 0) engine->Cancel(one.id);
        if (random() % 4 == 0) absl::SleepFor(absl::Microseconds(random() % 3000));
        const Open& other = open[random() % open.size()];
        if (random() % 3 == 0) engine->Cancel(other.id);
        other.sink->ReadSlowly(1000);
        engine->Resume(other.id);
      }
      for (const Open& one : open) {
        one.sink->ReadSlowly(1000);
        engine->Resume(one.id);
      }
      for (const Open& one : open) {
        const absl::StatusCode code = one.sink->Wait().status.code();
        EXPECT_TRUE(code == absl::StatusCode::kOk || code == absl::StatusCode::kCancelled ||
                    code == absl::StatusCode::kDeadlineExceeded)
            << one.sink->Wait().status;
        ++done;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(done, 360);
  engine->Drain(absl::InfiniteFuture());
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.slots_used, 0);
  EXPECT_EQ(stats.running, 0);
  EXPECT_EQ(stats.waiting, 0);
  EXPECT_EQ(stats.quarantined, 0);
  EXPECT_EQ(store_.counts().active, 0);
}

}  // namespace
}  // namespace palimpsest::testing
