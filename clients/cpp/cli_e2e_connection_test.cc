// The command line on its way to the server: proxies, tokens, interrupted replies.
#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/cpp/testing/cli_e2e.h"

namespace palimpsest {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class CliE2eConnectionTest : public CliE2eTest {
 protected:
  ~CliE2eConnectionTest() override { environment_.clear(); }
};

TEST_F(CliE2eConnectionTest, ThisMachineIsReachedWithoutTheProxy) {
  for (const char* variable : {"grpc_proxy", "https_proxy", "http_proxy"}) {
    environment_ = {absl::StrCat(variable, "=http://127.0.0.1:1")};
    EXPECT_EQ(Out({"health"}), "SERVING\n") << variable;
    EXPECT_NE(Out({"generate", "The sea", "--max_tokens", "2", "--ignore_end_of_text"}), "") << variable;
  }
}

TEST_F(CliE2eConnectionTest, AProxyThatStandsBetweenIsNamed) {
  environment_ = {"https_proxy=http://user:password@127.0.0.1:1"};
  const Result result = Run({"health", "--server", "elsewhere.invalid:50051"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, AllOf(HasSubstr("127.0.0.1:1 of https_proxy"), Not(HasSubstr("password"))));
}

TEST_F(CliE2eConnectionTest, ATokenIsTakenFromAFileOrTheEnvironmentAndNeverShown) {
  const std::string token = "s3cret-Token";
  const std::string file = TempFile("token", token + "\n");
  EXPECT_EQ(Out({"health", "--token_file", file}), "SERVING\n");
  environment_ = {absl::StrCat("PALIMPSEST_TOKEN=", token)};
  EXPECT_EQ(Out({"health"}), "SERVING\n");
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{"health", "--help"},
                                             {"top", "--help"},
                                             {"health", "--server", "elsewhere.invalid:50051"},
                                             {"top", "--once", "--metrics", "http://elsewhere.invalid/metrics"}}) {
    const Result result = Run(arguments);
    EXPECT_THAT(result.out + result.err, Not(HasSubstr(token)));
    EXPECT_THAT(result.out + result.err, HasSubstr("insecure_token"));
  }
  environment_ = {"PALIMPSEST_TOKEN=two words"};
  const Result malformed = Run({"health"});
  EXPECT_EQ(malformed.exit_code, 1);
  EXPECT_THAT(malformed.err, AllOf(HasSubstr("PALIMPSEST_TOKEN"), Not(HasSubstr("two words"))));
  environment_.clear();
  EXPECT_THAT(Run({"health", "--token_file", TempFile("no_token", "\n")}).err, HasSubstr("there is no token in it"));
  EXPECT_THAT(Run({"health", "--token_file", "/nonexistent"}).err, HasSubstr("cannot read the token file"));
}

TEST_F(CliE2eConnectionTest, AfterAnInterruptedReplyTheChatGoesOnAtOnce) {
  Running chat({"chat", "--max_tokens", "60000", "--ignore_end_of_text", "--undo_depth", "1"}, "One\nTwo\n/info\n");
  size_t seen = 0;
  for (int reply = 0; reply < 2; ++reply) {
    const absl::Time give_up = absl::Now() + absl::Seconds(60);
    while (chat.OutSoFar().size() < seen + 20 && absl::Now() < give_up) absl::SleepFor(absl::Milliseconds(5));
    chat.Interrupt();
    // The end of the reply is a newline; what comes after it belongs to the next.
    absl::SleepFor(absl::Milliseconds(500));
    seen = chat.OutSoFar().size();
  }
  const Result result = chat.Wait();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_THAT(result.out, HasSubstr("tokens read"));
}

TEST_F(CliE2eConnectionTest, AFullDiskIsAnError) {
  const Result full = Run({"generate", "The sea", "--max_tokens", "2", "--state_out", "/dev/full"});
  EXPECT_EQ(full.exit_code, 1);
  EXPECT_THAT(full.err, HasSubstr("cannot write /dev/full"));
}

}  // namespace
}  // namespace palimpsest
