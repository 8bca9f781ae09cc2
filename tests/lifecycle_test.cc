// How the real server starts, drains and ends.

#include <signal.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
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

v1::GenerateRequest LongRequest(int tokens) {
  v1::GenerateRequest request;
  request.set_text("Once upon a time ");
  request.mutable_stop()->set_max_tokens(tokens);
  request.mutable_stop()->set_ignore_end_of_text(true);
  return request;
}

// Streams that run side by side, each on its own thread. `started` is told once each has its first message.
class Streams {
 public:
  Streams(Stubs& stubs, const std::vector<v1::GenerateRequest>& requests) : outcomes_(requests.size()) {
    for (size_t i = 0; i < requests.size(); ++i) {
      threads_.emplace_back([this, &stubs, request = requests[i], i] {
        grpc::ClientContext context;
        SetTimeout(context, absl::Minutes(2));
        bool first = true;
        outcomes_[i] = Generate(stubs, request, context, [&](const v1::GenerateResponse&) {
          if (std::exchange(first, false) && ++started_ == outcomes_.size()) all_started_.Notify();
        });
        ++ended_;
      });
    }
  }
  ~Streams() { Join(); }

  void AwaitStart() { ASSERT_TRUE(all_started_.WaitForNotificationWithTimeout(absl::Minutes(1))); }
  size_t ended() const { return ended_; }
  const std::vector<Outcome>& Join() {
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
    return outcomes_;
  }

 private:
  std::vector<Outcome> outcomes_;
  std::atomic<size_t> started_{0};
  std::atomic<size_t> ended_{0};
  absl::Notification all_started_;
  std::vector<std::thread> threads_;
};

grpc::StatusCode TokenizeCode(Stubs& stubs) {
  grpc::ClientContext context;
  SetTimeout(context, absl::Minutes(1));
  v1::TokenizeRequest request;
  request.set_text("x");
  v1::TokenizeResponse response;
  return stubs.generation->Tokenize(&context, request, &response).error_code();
}

class Drain : public ::testing::TestWithParam<int> {};

TEST_P(Drain, SaysNotServingThenEndsWhatItAcceptedThenExitsWithZero) {
  const auto server = ServerProcess::Start(MakeSlowCheckpoint(), {"--grace=100s", "--slots=4"});
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());

  // More than slots: those that wait have been accepted too.
  constexpr int kStreams = 6;
  constexpr int kTokens = kSanitized ? 100 : 600;
  std::atomic<size_t> ended_at_not_serving{kStreams};
  std::vector<v1::GenerateRequest> requests(4, LongRequest(kTokens));
  Streams running(stubs, requests);
  running.AwaitStart();
  Streams waiting(stubs, {LongRequest(20), LongRequest(20)});
  while (server->Metric("palimpsest_requests_waiting") < 2 && waiting.ended() == 0) {
    absl::SleepFor(absl::Milliseconds(5));
  }

  absl::Notification watching, not_serving;
  grpc::ClientContext watch;
  SetTimeout(watch, absl::Minutes(2));
  std::vector<Health> healths;
  std::thread watcher([&] {
    WatchHealth(stubs.channel, watch, [&](Health health) {
      healths.push_back(health);
      if (healths.size() == 1) watching.Notify();
      if (health != Health::kNotServing || not_serving.HasBeenNotified()) return;
      ended_at_not_serving = running.ended() + waiting.ended();
      not_serving.Notify();
    });
  });
  EXPECT_TRUE(watching.WaitForNotificationWithTimeout(absl::Minutes(1)));
  server->process().Signal(GetParam());
  EXPECT_TRUE(not_serving.WaitForNotificationWithTimeout(absl::Minutes(1)));

  // A moment later, on the connection that is there, new calls are told to go elsewhere.
  while (TokenizeCode(stubs) == grpc::StatusCode::OK) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(TokenizeCode(stubs), grpc::StatusCode::UNAVAILABLE);
  grpc::ClientContext context;
  SetTimeout(context, absl::Minutes(1));
  const Outcome refused = Generate(stubs, LongRequest(1), context);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE) << refused.status.error_message();

  for (const Outcome& outcome : running.Join()) {
    EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_code() << " " << outcome.status.error_message();
    EXPECT_EQ(outcome.reply.reason, v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(outcome.reply.tokens.size(), kTokens);
  }
  for (const Outcome& outcome : waiting.Join()) {
    EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_code() << " " << outcome.status.error_message();
    EXPECT_EQ(outcome.reply.tokens.size(), 20);
  }
  EXPECT_EQ(server->process().WaitForExit(absl::Minutes(1)), 0) << server->process().Log();
  watcher.join();
  EXPECT_THAT(healths, ::testing::ElementsAre(Health::kServing, Health::kNotServing));
  EXPECT_LT(ended_at_not_serving, kStreams) << "the load was over before the signal: the test saw nothing";
  EXPECT_EQ(CheckHealth(server->target()), Health::kUnreachable);
}

INSTANTIATE_TEST_SUITE_P(Signals, Drain, ::testing::Values(SIGTERM, SIGINT),
                         [](const auto& info) { return info.param == SIGTERM ? "Terminate" : "Interrupt"; });

TEST(Lifecycle, WhatOutlastsTheGraceEndsWithUnavailable) {
  const auto server = ServerProcess::Start(MakeSlowCheckpoint(), {"--grace=500ms", "--slots=4"});
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());
  Streams running(stubs, std::vector<v1::GenerateRequest>(6, LongRequest(60'000)));
  while (server->Metric("palimpsest_requests_waiting") < 2 || server->Metric("palimpsest_generated_tokens_total") < 8) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  const absl::Time begin = absl::Now();
  server->process().Signal(SIGTERM);
  EXPECT_EQ(server->process().WaitForExit(absl::Minutes(1)), 0) << server->process().Log();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(kSanitized ? 50 : 15));
  for (const Outcome& outcome : running.Join()) {
    EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::UNAVAILABLE) << outcome.status.error_message();
    EXPECT_THAT(outcome.status.error_message(), ::testing::Not(::testing::IsEmpty()));
  }
}

TEST(Lifecycle, ASecondSignalEndsTheDrainAtOnce) {
  const auto server = ServerProcess::Start(MakeSlowCheckpoint(), {"--grace=100s", "--slots=4"});
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());
  Streams running(stubs, std::vector<v1::GenerateRequest>(4, LongRequest(60'000)));
  running.AwaitStart();
  server->process().Signal(SIGINT);
  EXPECT_FALSE(server->process().WaitForExit(absl::Milliseconds(300)).has_value());
  server->process().Signal(SIGINT);
  EXPECT_EQ(server->process().WaitForExit(absl::Seconds(20)), 1);
  for (const Outcome& outcome : running.Join()) EXPECT_FALSE(outcome.status.ok());
}

TEST(Lifecycle, APortInUseIsAReasonNotToStart) {
  const std::string checkpoint = MakeCheckpoint();
  const auto server = ServerProcess::Start(checkpoint);
  ASSERT_NE(server, nullptr);
  const std::string port = server->target().substr(server->target().rfind(':') + 1);
  const Exit second =
      RunServer({absl::StrCat("--model=test=", checkpoint), absl::StrCat("--port=", port), "--metrics_address="});
  EXPECT_EQ(second.code, 1);
  EXPECT_THAT(second.reason, HasSubstr(absl::StrCat("port 127.0.0.1:", port, " cannot be bound")));
  EXPECT_EQ(CheckHealth(server->target()), Health::kServing) << "the first one has been disturbed";
}

TEST(Lifecycle, HelpAndVersionAreNoErrors) {
  const Exit help = RunServer({"--help"});
  EXPECT_EQ(help.code, 0);
  for (const char* flag : {"--model", "--slots", "--grace", "--prefill_budget"}) EXPECT_THAT(help.log, HasSubstr(flag));
  const Exit version = RunServer({"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_THAT(version.log, HasSubstr("palimpsest-server "));
}

struct Row {
  std::string name;
  std::vector<std::string> flags;
  std::vector<std::string> words;
};
void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

class WrongFlags : public ::testing::TestWithParam<Row> {};

// `FOLDER` stands for a checkpoint that is fine.
TEST_P(WrongFlags, EndWithTwoAndAReason) {
  static const std::string folder = MakeCheckpoint();
  std::vector<std::string> flags = GetParam().flags;
  for (std::string& flag : flags) {
    if (const size_t at = flag.find("FOLDER"); at != std::string::npos) flag.replace(at, 6, folder);
  }
  const Exit exit = RunServer(flags);
  EXPECT_EQ(exit.code, 2) << exit.log;
  for (const std::string& word : GetParam().words) EXPECT_THAT(exit.reason, HasSubstr(word));
}

TEST(Flags, TheEnvironmentAndTheFileAreNamedWhereTheirValuesAreRefused) {
  const std::string model = absl::StrCat("--model=test=", MakeCheckpoint());
  const std::string file = absl::StrCat(MakeFolder("flags"), "/server.flags");
  std::ofstream(file) << "# too many\n--slots=1000000\n";
  const Exit by_file = RunServer({model, "--port=0", "--metrics_address=", absl::StrCat("--flagfile=", file)});
  EXPECT_EQ(by_file.code, 2);
  EXPECT_THAT(by_file.reason, HasSubstr(absl::StrCat("--slots is 1000000 (", file, ":2); accepted: 0 to 65536")));

  setenv("PALIMPSEST_SLOTS", "-1", 1);
  const Exit by_environment = RunServer({model, "--port=0", "--metrics_address="});
  unsetenv("PALIMPSEST_SLOTS");
  EXPECT_EQ(by_environment.code, 2);
  EXPECT_THAT(by_environment.reason, HasSubstr("--slots is -1 (PALIMPSEST_SLOTS); accepted: 0 to 65536"));
}

TEST(Flags, TheCommandLineWinsOverTheEnvironmentAndThatOverTheFile) {
  const std::string file = absl::StrCat(MakeFolder("flags"), "/server.flags");
  std::ofstream(file) << "--slots=2\n--max_queue=3\n--max_sessions=4\n";
  setenv("PALIMPSEST_SLOTS", "5", 1);
  setenv("PALIMPSEST_MAX_QUEUE", "6", 1);
  const auto server = ServerProcess::Start(MakeCheckpoint(), {absl::StrCat("--flagfile=", file), "--slots=7"});
  unsetenv("PALIMPSEST_SLOTS");
  unsetenv("PALIMPSEST_MAX_QUEUE");
  ASSERT_NE(server, nullptr);
  const std::string log = server->process().Log();
  for (const char* set : {"\"slots\":\"7\"", "\"max_queue\":\"6\"", "\"max_sessions\":\"4\""}) {
    EXPECT_THAT(log, HasSubstr(set));
  }
  EXPECT_EQ(server->Metric("palimpsest_slots"), 7);
}

TEST(Flags, AModelIsNamedAfterItsFolder) {
  const std::string folder = absl::StrCat(MakeFolder("published"), "/delta_net-1.3B-100B");
  std::filesystem::copy(MakeCheckpoint(), folder, std::filesystem::copy_options::recursive);
  const auto server = ServerProcess::Start(MakeCheckpoint(), {absl::StrCat("--model=", folder, "/")});
  ASSERT_NE(server, nullptr);
  EXPECT_GT(server->Metric("palimpsest_slots", "model=\"delta-net-1.3b-100b\""), 0);
}

std::vector<Row> Rows() {
  const std::string model = "--model=test=FOLDER", port = "--port=0", no_metrics = "--metrics_address=";
  return {
      {"NoModel", {port}, {"no model", "--model=FOLDER"}},
      {"UnknownFlag", {model, "--slot=3"}, {"no flag --slot", "--help"}},
      {"NotAFlag", {model, "serve"}, {"\"serve\" is not a flag"}},
      {"NoValue", {model, "--slots"}, {"--slots has no value"}},
      {"NotANumber", {model, "--slots=many"}, {"--slots is \"many\"; accepted: a whole number"}},
      {"NotADuration", {model, "--grace=soon"}, {"--grace is \"soon\"; accepted: a duration"}},
      {"NegativeGrace", {model, "--grace=-1s"}, {"--grace is -1s", "0 or more"}},
      {"UnknownLogFormat", {model, "--log_format=xml"}, {"\"xml\"", "json, text"}},
      {"UnknownMath", {model, "--math=f64"}, {"\"f64\"", "auto, f32, bf16"}},
      {"ModelWithoutAFolder", {"--model=test="}, {"--model", "NAME=FOLDER"}},
      {"ModelFolderThatNoNameBeginsLike",
       {"--model=/nowhere/1.3B", port, no_metrics},
       {"--model is \"/nowhere/1.3B\"", "accepted: NAME=/nowhere/1.3B"}},
      {"ModelNameOfOtherCharacters",
       {"--model=My_Model=FOLDER", port, no_metrics},
       {"--model is \"My_Model=", "NAME=FOLDER"}},
      {"OneNameForTwoModels", {model, model, port, no_metrics}, {"test"}},
      {"RootIsNoFolder", {"--model_root=/nowhere/at/all"}, {"--model_root is /nowhere/at/all", "not a folder"}},
      {"RepositoryIsNoFolder",
       {"--model_repository=/nowhere/at/all"},
       {"--model_repository is /nowhere/at/all", "not a folder"}},
      {"RepositoryLookedAtTooOften",
       {model, "--model_repository_poll=1ms", port, no_metrics},
       {"--model_repository_poll is 1ms", "0, or 100ms or more"}},
      {"NegativeRetirement",
       {model, "--model_repository_retire_after=-1s", port, no_metrics},
       {"--model_repository_retire_after is -1s", "0 or more"}},
      {"NegativeLameDuck", {model, "--lame_duck=-1s"}, {"--lame_duck is -1s", "0 or more"}},
      {"NoTimeToLive", {model, "--session_ttl=0", port, no_metrics}, {"--session_ttl is 0", "1s or more"}},
      {"NothingToGenerate",
       {model, "--default_max_tokens=100", "--max_tokens=10", port, no_metrics},
       {"--default_max_tokens is 100", "0 to 10"}},
      {"PortFileInNoFolder",
       {model, port, no_metrics, "--port_file=/nowhere/at/all/port"},
       {"--port_file is /nowhere/at/all/port", "cannot be written"}},
      {"FlagFileThatIsNotThere", {"--flagfile=/nowhere/flags"}, {"--flagfile is /nowhere/flags", "cannot be read"}},
      {"ClientAuthorityWithoutCertificate",
       {model, "--tls_client_ca=x.pem", port, no_metrics},
       {"--tls_client_ca", "--tls_cert and --tls_key"}},
      {"PortOutOfRange", {model, "--port=70000", no_metrics}, {"--port is 70000", "0 (any free one) to 65535"}},
      {"NoSlots", {model, "--slots=-1", port, no_metrics}, {"--slots is -1", "0 to 65536"}},
      {"NegativeThreads", {model, "--threads=-1", port, no_metrics}, {"--threads is -1", "1024"}},
      {"NegativeQueue", {model, "--max_queue=-1", port, no_metrics}, {"--max_queue is -1", "1 to "}},
      {"CertificateWithoutKey",
       {model, "--tls_cert=x.pem", port, no_metrics},
       {"--tls_cert is given without --tls_key"}},
      {"CertificateThatIsNotThere",
       {model, "--tls_cert=/nowhere/x.pem", "--tls_key=/nowhere/y.pem", port, no_metrics},
       {"--tls_cert is /nowhere/x.pem", "a PEM file"}},
      {"MetricsAddressWithoutPort",
       {model, port, "--metrics_address=localhost"},
       {"--metrics_address is \"localhost\"", "host:port"}},
  };
}

INSTANTIATE_TEST_SUITE_P(Flags, WrongFlags, ::testing::ValuesIn(Rows()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace palimpsest::testing
