// Sessions that a call holds, from the command line.
#include <gmock/gmock.h>

#include <string>

#include "clients/cpp/testing/cli_e2e.h"
#include "nlohmann/json.hpp"

namespace palimpsest {
namespace {

using ::testing::HasSubstr;

class CliE2eSessionsTest : public CliE2eTest {
 protected:
  // A reply that holds the session and of which no more than its begin is read.
  static std::unique_ptr<client::GenerateStream> Hold(client::Client& client, const std::string& session) {
    v1::GenerateRequest request;
    request.set_session("sessions/" + session);
    request.set_text("The sea");
    request.mutable_stop()->set_max_tokens(60000);
    request.mutable_stop()->set_ignore_end_of_text(true);
    std::unique_ptr<client::GenerateStream> stream = client.Generate(request);
    v1::GenerateResponse message;
    EXPECT_TRUE(stream->Next(message));
    EXPECT_EQ(ConditionOf(session), "CONDITION_ACTIVE");
    return stream;
  }
  static std::string ConditionOf(const std::string& session) {
    return nlohmann::json::parse(Out({"session", "get", session, "--json"}))["condition"];
  }
};

TEST_F(CliE2eSessionsTest, AReplyThatNobodyReadsIsInterrupted) {
  const auto client = Connect();
  Out({"session", "create", "held"});
  Out({"session", "create", "free"});
  const auto stream = Hold(*client, "held");
  EXPECT_EQ(Out({"session", "interrupt", "free", "held"}), "");
  EXPECT_EQ(ConditionOf("held"), "CONDITION_IDLE");
  EXPECT_NE(Out({"generate", " and", "--session", "held", "--max_tokens", "2", "--ignore_end_of_text"}), "");
  EXPECT_TRUE(absl::IsCancelled(stream->Finish().status()));
  Out({"session", "delete", "held", "free"});
  const auto gone = Run({"session", "interrupt", "held"});
  EXPECT_EQ(gone.exit_code, 1);
  EXPECT_THAT(gone.err, HasSubstr("NOT_FOUND"));
}

TEST_F(CliE2eSessionsTest, ASessionThatACallHoldsIsDeletedByForce) {
  const auto client = Connect();
  Out({"session", "create", "held"});
  const auto stream = Hold(*client, "held");
  const auto busy = Run({"session", "delete", "held"});
  EXPECT_EQ(busy.exit_code, 1);
  EXPECT_THAT(busy.err, HasSubstr("ABORTED"));
  Out({"session", "delete", "held", "--force"});
  EXPECT_EQ(Run({"session", "get", "held"}).exit_code, 1);
  EXPECT_TRUE(absl::IsCancelled(stream->Finish().status()));
}

}  // namespace
}  // namespace palimpsest
