// Many streams with random cancellations, deadlines and slow readers, for a while: no crash, every slot back, memory
// flat, and the server answers afterwards with the same bits as before.
//
// PALIMPSEST_SOAK_SECONDS says for how long (15), PALIMPSEST_SOAK_STREAMS how many at once (256).

#include <signal.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/checkpoints.h"
#include "tests/support/server_process.h"
#include "tests/support/wire.h"

namespace palimpsest::testing {
namespace {

constexpr int kSessions = 24;  // fewer than streams: two at once on one session is part of the test

int FromEnvironment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  int value = 0;
  return text != nullptr && absl::SimpleAtoi(text, &value) ? value : otherwise;
}

// What the callers saw, by code; and how often each way was taken to its intended end.
class Tally {
 public:
  void Count(const std::string& what) {
    absl::MutexLock lock(&mu_);
    ++counts_[what];
  }
  std::map<std::string, int> counts() const {
    absl::MutexLock lock(&mu_);
    return counts_;
  }

 private:
  mutable absl::Mutex mu_;
  std::map<std::string, int> counts_ ABSL_GUARDED_BY(mu_);
};

enum class Way { kToTheEnd, kCancel, kDeadline, kSlowReader, kSession, kInlineState, kScore, kAbandon };
constexpr std::array kWays = {Way::kToTheEnd, Way::kCancel,      Way::kDeadline, Way::kSlowReader,
                              Way::kSession,  Way::kInlineState, Way::kScore,    Way::kAbandon};
constexpr std::array kWayNames = {"to_the_end", "cancel",       "deadline", "slow_reader",
                                  "session",    "inline_state", "score",    "abandon"};

// One caller: calls in random ways, one after the other, until `end`.
class Caller {
 public:
  Caller(Stubs& stubs, const std::vector<std::string>& sessions, uint64_t seed, Tally& tally)
      : stubs_(stubs), sessions_(sessions), random_(seed), tally_(tally) {}

  void RunUntil(absl::Time end) {
    while (absl::Now() < end) {
      const size_t way = Below(kWays.size());
      const grpc::Status status = kWays[way] == Way::kScore ? Score() : GenerateIn(kWays[way]);
      tally_.Count(absl::StrCat(kWayNames[way], ":", status.error_code()));
      std::set<grpc::StatusCode> expected = {grpc::StatusCode::OK, grpc::StatusCode::RESOURCE_EXHAUSTED};
      if (kWays[way] == Way::kCancel) expected.insert(grpc::StatusCode::CANCELLED);
      if (kWays[way] == Way::kDeadline) expected.insert(grpc::StatusCode::DEADLINE_EXCEEDED);
      if (kWays[way] == Way::kSession) expected.insert(grpc::StatusCode::ABORTED);
      EXPECT_TRUE(expected.contains(status.error_code()))
          << kWayNames[way] << ": " << status.error_code() << " " << status.error_message();
      // A refused caller comes back later, as it was told to; else the refusals would be all there is.
      if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) absl::SleepFor(absl::Milliseconds(50));
    }
  }

 private:
  size_t Below(size_t limit) { return std::uniform_int_distribution<size_t>(0, limit - 1)(random_); }

  grpc::Status Score() {
    v1::ScoreRequest request;
    request.set_text(MakePrompt(random_(), 1 + Below(600)));
    grpc::ClientContext context;
    SetTimeout(context, absl::Minutes(5));
    v1::ScoreResponse response;
    return stubs_.generation->Score(&context, request, &response);
  }

  grpc::Status GenerateIn(Way way) {
    v1::GenerateRequest request;
    request.set_text(MakePrompt(random_(), 1 + Below(300)));
    request.mutable_stop()->set_max_tokens(1 + static_cast<int>(Below(48)));
    grpc::ClientContext context;
    SetTimeout(context, absl::Minutes(5));
    int messages_left = 1 + static_cast<int>(Below(12));
    std::function<void(const v1::GenerateResponse&)> on_message;
    switch (way) {
      case Way::kCancel:
        on_message = [&](const v1::GenerateResponse&) {
          if (--messages_left == 0) context.TryCancel();
        };
        break;
      case Way::kDeadline:
        SetTimeout(context, absl::Milliseconds(1 + Below(200)));
        break;
      case Way::kSlowReader:
        // More than a stream's window holds, and a pause at each message: the server must wait.
        request.set_top_logprobs(20);
        request.mutable_stop()->set_max_tokens(150);
        on_message = [&](const v1::GenerateResponse&) { absl::SleepFor(absl::Milliseconds(Below(15))); };
        break;
      case Way::kSession:
        request.set_session(sessions_[Below(sessions_.size())]);
        break;
      case Way::kInlineState:
        request.set_return_state(true);
        request.set_return_state_digest(true);
        if (!state_.empty() && Below(4) > 0) request.set_state(state_);
        break;
      case Way::kAbandon: {
        // Begins to read, then lets go of everything without a word.
        auto reader = stubs_.generation->Generate(&context, request);
        v1::GenerateResponse message;
        while (messages_left-- > 0 && reader->Read(&message)) {
        }
        context.TryCancel();
        return grpc::Status::OK;
      }
      case Way::kToTheEnd:
      case Way::kScore:
        break;
    }
    Outcome outcome = Generate(stubs_, request, context, on_message);
    if (outcome.status.ok() && way != Way::kCancel && way != Way::kDeadline) {
      EXPECT_NE(outcome.reply.reason, v1::FINISH_REASON_UNSPECIFIED);
      EXPECT_LE(static_cast<int>(outcome.reply.tokens.size()), request.stop().max_tokens());
    }
    if (!outcome.reply.state.empty()) state_ = std::move(outcome.reply.state);
    return outcome.status;
  }

  Stubs& stubs_;
  const std::vector<std::string>& sessions_;
  std::mt19937_64 random_;
  Tally& tally_;
  std::string state_;
};

// Runs `count` callers at once for this long.
void Load(ServerProcess& server, const std::vector<std::string>& sessions, int count, absl::Duration duration,
          uint64_t seed, Tally& tally) {
  // A few connections, as from a few applications.
  std::vector<std::unique_ptr<Stubs>> connections;
  for (int i = 0; i < 8; ++i) {
    connections.push_back(std::make_unique<Stubs>(server.target(), /*small_windows=*/true));
  }
  const absl::Time end = absl::Now() + duration;
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back(
        [&, i] { Caller(*connections[i % connections.size()], sessions, seed + i, tally).RunUntil(end); });
  }
  for (std::thread& thread : threads) thread.join();
}

// Waits until the server says that nothing runs or waits and that every slot is free.
bool BecomesIdle(const ServerProcess& server, int slots) {
  const absl::Time give_up = absl::Now() + absl::Minutes(1);
  while (absl::Now() < give_up) {
    if (server.Metric("palimpsest_requests_running") == 0 && server.Metric("palimpsest_requests_waiting") == 0 &&
        server.Metric("palimpsest_slots", "condition=\"used\"") == 0 &&
        server.Metric("palimpsest_slots", "condition=\"free\"") == slots) {
      return true;
    }
    absl::SleepFor(absl::Milliseconds(50));
  }
  return false;
}

v1::GenerateRequest Probe() {
  v1::GenerateRequest request;
  request.set_text(MakePrompt(1, 200));
  request.set_top_logprobs(2);
  request.set_return_state_digest(true);
  request.mutable_stop()->set_max_tokens(30);
  request.mutable_sampling()->set_seed(1);
  return request;
}

TEST(Soak, StreamsThatComeAndGoLeaveTheServerAsItWas) {
  const int seconds = FromEnvironment("PALIMPSEST_SOAK_SECONDS", 15);
  const int streams = FromEnvironment("PALIMPSEST_SOAK_STREAMS", 256);
  constexpr int kSlots = 48;
  auto server = ServerProcess::Start(MakeCheckpoint(), {absl::StrCat("--slots=", kSlots), "--max_queue=192",
                                                        "--max_undelivered_tokens=4", "--threads=2"});
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());
  std::vector<std::string> sessions;
  for (int i = 0; i < kSessions; ++i) sessions.push_back(CreateSession(stubs));
  const Reply before = GenerateOk(stubs, Probe());
  ASSERT_EQ(before.tokens.size(), 30u);

  Tally tally;
  const absl::Duration warm_up = absl::Seconds(seconds) / 3;
  Load(*server, sessions, streams, warm_up, /*seed=*/1, tally);
  ASSERT_TRUE(BecomesIdle(*server, kSlots)) << server->process().Log();
  const double warm_bytes = server->Metric("process_resident_memory_bytes");
  const double warm_files = server->Metric("process_open_fds");
  Load(*server, sessions, streams, absl::Seconds(seconds) - warm_up, /*seed=*/1'000'000, tally);

  ASSERT_TRUE(server->process().running()) << server->process().Log();
  ASSERT_TRUE(BecomesIdle(*server, kSlots)) << server->process().Log();
  EXPECT_EQ(server->Metric("palimpsest_sessions", "condition=\"active\""), 0);
  EXPECT_EQ(server->Metric("palimpsest_sessions", "condition=\"idle\""), kSessions);
  EXPECT_EQ(server->Metric("palimpsest_quarantined_total"), 0);

  const double end_bytes = server->Metric("process_resident_memory_bytes");
  RecordProperty("warm_megabytes", static_cast<int>(warm_bytes / 1e6));
  RecordProperty("end_megabytes", static_cast<int>(end_bytes / 1e6));
  // The sanitizers keep what was freed for a while.
  EXPECT_LE(end_bytes, warm_bytes * (kSanitized ? 1.5 : 1.1) + (kSanitized ? 256e6 : 24e6))
      << "was " << warm_bytes << " after warming up";
  EXPECT_LE(server->Metric("process_open_fds"), warm_files + 16);

  EXPECT_EQ(GenerateOk(stubs, Probe()), before);
  for (const std::string& session : sessions) {
    EXPECT_EQ(GetSession(stubs, session).condition(), v1::Session::CONDITION_IDLE);
    DeleteSession(stubs, session);
  }
  EXPECT_EQ(server->Metric("palimpsest_state_bytes"), 0);

  // Each way must have been gone, or the test says nothing.
  const std::map<std::string, int> counts = tally.counts();
  std::string table;
  for (const auto& [what, count] : counts) absl::StrAppend(&table, " ", what, "=", count);
  std::cout << "calls by way and code:" << table << "\nresident bytes: " << warm_bytes << " -> " << end_bytes << "\n";
  for (const char* way : kWayNames) {
    const bool may_never_end = std::string(way) == "deadline";  // where the machine is slow
    EXPECT_TRUE(may_never_end || counts.contains(absl::StrCat(way, ":0"))) << way << " of" << table;
  }
  EXPECT_TRUE(counts.contains("cancel:1")) << table;
  EXPECT_TRUE(counts.contains("deadline:4")) << table;
  EXPECT_TRUE(counts.contains("session:10")) << table;

  server->process().Signal(SIGTERM);
  EXPECT_EQ(server->process().WaitForExit(absl::Minutes(1)), 0) << server->process().Log();
}

}  // namespace
}  // namespace palimpsest::testing
