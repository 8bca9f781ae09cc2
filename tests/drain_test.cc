// SIGTERM while many callers stream and new calls keep arriving: nothing that was accepted is lost, and who watches
// health knows before anybody is refused.

#include <signal.h>

#include <atomic>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/checkpoints.h"
#include "tests/support/server_process.h"
#include "tests/support/wire.h"

namespace palimpsest::testing {
namespace {

using ::testing::HasSubstr;

// One call as its caller saw it.
struct Seen {
  std::string id;
  absl::Time begin;
  absl::Time end;
  grpc::Status status;
  int64_t position_before = 0;  // the session's
  int64_t position = 0;         // that the last message told; as before if there was none
  size_t tokens = 0;
};

// A caller with a connection and a session of its own, and one call after the other on it until one fails.
class Caller {
 public:
  Caller(const std::string& target, int number, int tokens) : stubs_(target), number_(number), tokens_(tokens) {
    thread_ = std::thread([this] { Run(); });
  }
  ~Caller() { Join(); }
  const std::vector<Seen>& Join() {
    if (thread_.joinable()) thread_.join();
    return seen_;
  }
  int calls() const { return calls_; }

 private:
  void Run() {
    const std::string session = CreateSession(stubs_);
    int64_t position = 0;
    do {
      v1::GenerateRequest request;
      request.set_session(session);
      request.set_text("It was ");
      request.set_call_id(absl::StrCat("caller-", number_, "-", seen_.size()));
      request.mutable_stop()->set_max_tokens(tokens_);
      request.mutable_stop()->set_ignore_end_of_text(true);
      grpc::ClientContext context;
      SetTimeout(context, absl::Minutes(2));
      Seen seen;
      seen.id = request.call_id();
      seen.begin = absl::Now();
      seen.position_before = position;
      const Outcome outcome = Generate(stubs_, request, context);
      seen.end = absl::Now();
      seen.status = outcome.status;
      seen.tokens = outcome.reply.tokens.size();
      if (seen.tokens > 0) position = outcome.reply.position;
      seen.position = position;
      seen_.push_back(std::move(seen));
      ++calls_;
    } while (seen_.back().status.ok());
  }

  Stubs stubs_;
  const int number_;
  const int tokens_;
  std::vector<Seen> seen_;  // the thread's until it is joined
  std::atomic<int> calls_{0};
  std::thread thread_;
};

// The lines of the log about calls, by call id.
std::map<std::string, nlohmann::json> CallsIn(const std::string& log) {
  std::map<std::string, nlohmann::json> calls;
  for (const auto line : absl::StrSplit(log, '\n')) {
    auto fields = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!fields.is_object() || fields.value("event", "") != "call") continue;
    const std::string id = fields["call_id"];
    EXPECT_EQ(calls.count(id), 0) << id << " is logged twice";
    calls[id] = std::move(fields);
  }
  return calls;
}

struct Load {
  std::string name;
  absl::Duration grace;
  int tokens;       // of each call
  bool all_end_ok;  // the grace is long enough for what is accepted
};
void PrintTo(const Load& load, std::ostream* out) { *out << load.name; }

class DrainUnderLoad : public ::testing::TestWithParam<Load> {};

TEST_P(DrainUnderLoad, LosesNothingThatWasAccepted) {
  const Load& load = GetParam();
  const absl::Duration lame_duck = absl::Seconds(kSanitized ? 5 : 1);  // long enough for a call to come
  const auto server = ServerProcess::Start(
      MakeSlowCheckpoint(), {absl::StrCat("--grace=", absl::FormatDuration(load.grace)),
                             absl::StrCat("--lame_duck=", absl::FormatDuration(lame_duck)), "--slots=4"});
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());

  absl::Time not_serving = absl::InfiniteFuture();
  absl::Notification watching;
  grpc::ClientContext watch;
  SetTimeout(watch, absl::Minutes(2));
  std::vector<Health> healths;
  std::thread watcher([&] {
    WatchHealth(stubs.channel, watch, [&](Health health) {
      if (health == Health::kNotServing && not_serving == absl::InfiniteFuture()) not_serving = absl::Now();
      healths.push_back(health);
      if (healths.size() == 1) watching.Notify();
    });
  });
  EXPECT_TRUE(watching.WaitForNotificationWithTimeout(absl::Minutes(1)));

  constexpr int kCallers = 12;  // three for each slot: most wait
  std::vector<std::unique_ptr<Caller>> callers;
  for (int i = 0; i < kCallers; ++i) callers.push_back(std::make_unique<Caller>(server->target(), i, load.tokens));
  while (server->Metric("palimpsest_requests_waiting") < 4 || server->Metric("palimpsest_requests_running") < 4) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  const absl::Time signalled = absl::Now();
  server->process().Signal(SIGTERM);
  const std::optional<int> code = server->process().WaitForExit(absl::Minutes(2));
  const absl::Duration took = absl::Now() - signalled;
  EXPECT_EQ(code, 0) << server->process().Log();
  EXPECT_LT(took, lame_duck + load.grace + absl::Seconds(kSanitized ? 30 : 5));
  watcher.join();
  EXPECT_THAT(healths, ::testing::ElementsAre(Health::kServing, Health::kNotServing));

  const std::map<std::string, nlohmann::json> logged = CallsIn(server->process().Log());
  int ended_ok = 0, cut_short = 0, refused = 0, accepted_as_lame_duck = 0;
  for (const auto& caller : callers) {
    for (const Seen& seen : caller->Join()) {
      const auto line = logged.find(seen.id);
      if (line == logged.end()) {
        // It was refused at the door, before its id was read; or it came to nobody: the server had gone.
        if (absl::StrContains(seen.status.error_message(), "draining")) ++refused;
        EXPECT_EQ(seen.status.error_code(), grpc::StatusCode::UNAVAILABLE) << seen.status.error_message();
        EXPECT_EQ(seen.tokens, 0) << seen.id;
        EXPECT_GT(seen.end, not_serving);
        continue;
      }
      const nlohmann::json& told = line->second;
      if (seen.begin > not_serving) ++accepted_as_lame_duck;
      // Accepted. The caller and the server are of one mind about how it ended and where the session stands.
      EXPECT_EQ(told.value("position", int64_t{0}), seen.position) << told;
      if (seen.status.ok()) {
        ++ended_ok;
        EXPECT_EQ(told["code"], "OK");
        EXPECT_EQ(seen.tokens, load.tokens);
      } else {
        ++cut_short;
        EXPECT_EQ(seen.status.error_code(), grpc::StatusCode::UNAVAILABLE) << seen.status.error_message();
        EXPECT_EQ(told["code"], "UNAVAILABLE");
        EXPECT_GT(seen.end - signalled, lame_duck + load.grace - absl::Milliseconds(50)) << "had time left";
        EXPECT_TRUE(seen.tokens > 0 || seen.position == seen.position_before);
      }
    }
  }
  if (load.all_end_ok) {
    EXPECT_GT(accepted_as_lame_duck, 0);
    EXPECT_EQ(cut_short, 0);
    EXPECT_GE(ended_ok, kCallers);
    EXPECT_GT(refused, 0) << "no call came while it drained: the test saw nothing";
  } else {
    EXPECT_GT(cut_short, 0) << "the load was over before the grace: the test saw nothing";
  }
}

INSTANTIATE_TEST_SUITE_P(Loads, DrainUnderLoad,
                         ::testing::Values(Load{"ThatFitsTheGrace", absl::Seconds(60), kSanitized ? 10 : 60, true},
                                           Load{"ThatOutlastsTheGrace", absl::Milliseconds(700), 30'000, false}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace palimpsest::testing
