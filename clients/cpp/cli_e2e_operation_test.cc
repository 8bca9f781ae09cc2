// What an operator asks the command line for: models, health, and a log that joins the caller's traces.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "clients/cpp/testing/cli_e2e.h"

namespace palimpsest {
namespace {

using ::testing::HasSubstr;

TEST_F(CliE2eTest, ModelsAndHealthTellOfTheServer) {
  EXPECT_EQ(Out({"health"}), "SERVING\n");
  const auto models = nlohmann::json::parse(Out({"models", "list", "--json"}));
  EXPECT_THAT(Out({"models", "get", models["name"]}), HasSubstr(models["fingerprint"].get<std::string>()));
  EXPECT_EQ(Out({"models"}), Out({"models", "list"}));
  const std::string colored = Out({"models", "list", "--color=always"});
  EXPECT_THAT(colored, HasSubstr("\x1b["));
}

TEST_F(CliE2eTest, HealthWaitsForAServerThatStarts) {
  const std::vector<std::string> absent = {"health", "--wait", "200ms", "--server", "127.0.0.1:1"};
  EXPECT_EQ(Run(absent).exit_code, 1);
  EXPECT_THAT(Run(absent).err, HasSubstr("cannot reach 127.0.0.1:1"));

  std::string target;
  {
    const auto server = ServerProcess::Start(BundledCheckpoint());
    ASSERT_NE(server, nullptr);
    target = server->target();
  }
  Running waiting({"health", "--wait", "60s", "--server", target}, "");
  absl::SleepFor(absl::Milliseconds(200));  // by then it has asked in vain
  EXPECT_EQ(waiting.OutSoFar(), "");
  const auto server =
      ServerProcess::Start(BundledCheckpoint(), {absl::StrCat("--port=", target.substr(target.rfind(':') + 1))});
  ASSERT_NE(server, nullptr);
  const Result result = waiting.Wait();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "SERVING\n");
}

// The server's log line of the call whose trace is `trace_id`; null if there is none within ten seconds.
nlohmann::json LogLine(ServerProcess& server, const std::string& trace_id) {
  for (const absl::Time give_up = absl::Now() + absl::Seconds(10); absl::Now() < give_up;) {
    for (const auto line : absl::StrSplit(server.process().Log(), '\n')) {
      const auto fields = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (fields.is_object() && fields.value("trace_id", "") == trace_id) return fields;
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
  return nullptr;
}

TEST_F(CliE2eTest, TheServersLogJoinsTheCallersTrace) {
  const std::string trace = "4bf92f3577b34da6a3ce929d0e0e4736", span = "00f067aa0ba902b7";
  Out({"tokenize", "x", absl::StrCat("--traceparent=00-", trace, "-", span, "-01")});
  const auto by_flag = LogLine(*server_, trace);
  ASSERT_TRUE(by_flag.is_object());
  EXPECT_EQ(by_flag["parent_span_id"], span);
  EXPECT_NE(by_flag["span_id"], span);
  EXPECT_EQ(by_flag["method"], "palimpsest.v1.GenerationService/Tokenize");
  EXPECT_FALSE(by_flag.contains("trace_state"));

  const std::string other = "0af7651916cd43dd8448eb211c80319c";
  environment_ = {absl::StrCat("TRACEPARENT=00-", other, "-", span, "-00"), "TRACESTATE=congo=t61rcWkgMzE"};
  Out({"generate", "The sea", "--max_tokens", "2"});
  environment_.clear();
  const auto by_environment = LogLine(*server_, other);
  ASSERT_TRUE(by_environment.is_object());
  EXPECT_EQ(by_environment["parent_span_id"], span);
  EXPECT_EQ(by_environment["trace_state"], "congo=t61rcWkgMzE");
  EXPECT_EQ(by_environment["generated_tokens"], 2);
}

}  // namespace
}  // namespace palimpsest
