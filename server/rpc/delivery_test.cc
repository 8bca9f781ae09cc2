// Where a session stands when its reader breaks off, and texts that are too long, over real gRPC.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/time/clock.h"
#include "server/rpc/testing/test_server.h"

namespace palimpsest {
namespace {

using ::palimpsest::testing::Ask;
using ::palimpsest::testing::Reply;
using ::palimpsest::testing::TestServer;
using ::testing::HasSubstr;

class DeliveryTest : public ::testing::Test {
 protected:
  // Reads `messages` messages and breaks off; the position that the last one told.
  int64_t ReadAndBreakOff(const v1::GenerateRequest& request, int messages) {
    grpc::ClientContext context;
    const auto reader = server_.generation().Generate(&context, request);
    v1::GenerateResponse message;
    for (int i = 0; i < messages; ++i) EXPECT_TRUE(reader->Read(&message));
    const int64_t position = message.position();
    context.TryCancel();
    while (reader->Read(&message)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
    return position;
  }
  v1::Session AwaitIdle(const std::string& session) {
    const absl::Time give_up = absl::Now() + absl::Seconds(20);
    while (server_.GetSession(session).condition() != v1::Session::CONDITION_IDLE && absl::Now() < give_up) {
      absl::SleepFor(absl::Milliseconds(2));
    }
    return server_.GetSession(session);
  }

  TestServer server_;
};

TEST_F(DeliveryTest, ASessionThatStandsAtTheLastTokenDeliveredIsTheOneOfThatLength) {
  const std::string session = server_.NewSession();
  v1::GenerateRequest request = Ask("hello", 60000);
  request.mutable_sampling()->set_seed(5);
  v1::GenerateRequest broken_off = request;
  broken_off.set_session(session);
  broken_off.set_commit(v1::COMMIT_DELIVERED);
  const int64_t seen = ReadAndBreakOff(broken_off, 14);
  EXPECT_EQ(seen, 5 + 14) << "one token in each message";
  const v1::Session after = AwaitIdle(session);
  EXPECT_EQ(after.condition(), v1::Session::CONDITION_IDLE);
  EXPECT_GE(after.position(), seen);
  // The next token is the one that a longer reply has there.
  v1::GenerateRequest on = request;
  on.clear_prompt();
  on.set_session(session);
  on.mutable_stop()->set_max_tokens(3);
  on.set_return_state_digest(true);
  const Reply next = server_.Generate(on);
  ASSERT_TRUE(next.status.ok()) << next.status.error_message();
  request.mutable_stop()->set_max_tokens(static_cast<int32_t>(after.position() - 5 + 3));
  request.set_return_state_digest(true);
  const Reply whole = server_.Generate(request);
  EXPECT_EQ(next.finish.state_digest(), whole.finish.state_digest());
}

TEST_F(DeliveryTest, AReplyThatIsReadToItsEndIsTheSameWhereverItCommits) {
  v1::GenerateRequest request = Ask("hello", 50);
  request.set_return_state_digest(true);
  request.mutable_sampling()->set_seed(6);
  const Reply sampled = server_.Generate(request);
  request.set_session(server_.NewSession());
  request.set_commit(v1::COMMIT_DELIVERED);
  const Reply delivered = server_.Generate(request);
  ASSERT_TRUE(delivered.status.ok()) << delivered.status.error_message();
  EXPECT_EQ(delivered.text, sampled.text);
  EXPECT_EQ(delivered.ids(), sampled.ids());
  EXPECT_EQ(delivered.finish.state_digest(), sampled.finish.state_digest());
  EXPECT_EQ(server_.GetSession(request.session()).position(), 55);
}

TEST(LongTextTest, IsTurnedIntoTokensNoFurtherThanAPromptMayBe) {
  TestServer server([](ServerOptions& options) { options.limits.max_prompt_tokens = 1000; });
  v1::TokenizeRequest request;
  v1::TokenizeResponse response;
  request.set_text(std::string(1000, 'a'));
  {
    grpc::ClientContext context;
    EXPECT_TRUE(server.generation().Tokenize(&context, request, &response).ok());
    EXPECT_EQ(response.ids_size(), 1000);
  }
  request.set_text(std::string(1'000'000, 'a'));
  grpc::ClientContext context;
  const grpc::Status status = server.generation().Tokenize(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("max_prompt_tokens"));
}

}  // namespace
}  // namespace palimpsest
