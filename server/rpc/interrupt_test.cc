// Sessions that a call holds: what frees them, and what waits until they are free.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "server/rpc/testing/test_server.h"

namespace palimpsest {
namespace {

using testing::Ask;
using testing::DetailsOf;
using testing::Reply;
using testing::TestServer;

class InterruptTest : public ::testing::Test {
 protected:
  // A reply that holds a session. Only its begin is read, unless the test reads on.
  struct Held {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;

    grpc::Status End() {
      v1::GenerateResponse message;
      while (reader->Read(&message)) continue;
      return reader->Finish();
    }
  };
  std::unique_ptr<Held> Hold(const std::string& session) {
    v1::GenerateRequest request = Ask("hello", 60000);
    request.set_session(session);
    request.set_top_logprobs(20);  // so much that no buffer on the way holds it all: the reply waits for its reader
    auto held = std::make_unique<Held>();
    held->reader = server_.generation().Generate(&held->context, request);
    v1::GenerateResponse message;
    EXPECT_TRUE(held->reader->Read(&message));
    EXPECT_EQ(server_.GetSession(session).condition(), v1::Session::CONDITION_ACTIVE);
    return held;
  }

  Reply Say(const std::string& session) {
    v1::GenerateRequest request = Ask("again", 3);
    request.set_session(session);
    return server_.Generate(request);
  }
  // `call` again for as long as it says that the session is not free, which is not for long.
  template <class Call>
  static auto UntilFree(const Call& call) {
    auto result = call();
    for (int retry = 0; retry < 5 && StatusOf(result).error_code() == grpc::StatusCode::ABORTED; ++retry) {
      absl::SleepFor(absl::Seconds(DetailsOf(StatusOf(result)).retry_seconds));
      result = call();
    }
    return result;
  }
  static const grpc::Status& StatusOf(const Reply& reply) { return reply.status; }
  template <class Result>
  static const grpc::Status& StatusOf(const std::pair<grpc::Status, Result>& result) {
    return result.first;
  }

  std::pair<grpc::Status, v1::Session> Interrupt(const std::string& name) {
    v1::InterruptSessionRequest request;
    request.set_name(name);
    grpc::ClientContext context;
    v1::Session session;
    grpc::Status status = server_.sessions().InterruptSession(&context, request, &session);
    return {std::move(status), std::move(session)};
  }
  grpc::Status Delete(const std::string& name, bool force) {
    v1::DeleteSessionRequest request;
    request.set_name(name);
    request.set_force(force);
    grpc::ClientContext context;
    google::protobuf::Empty empty;
    return server_.sessions().DeleteSession(&context, request, &empty);
  }

  TestServer server_;
};

TEST_F(InterruptTest, AHeldSessionIsFreedFromAnotherCallAndGoesOnAtOnce) {
  const std::string session = server_.NewSession();
  const auto held = Hold(session);
  EXPECT_EQ(Say(session).status.error_code(), grpc::StatusCode::ABORTED);

  const auto [status, freed] = UntilFree([&] { return Interrupt(session); });
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(freed.name(), session);
  EXPECT_EQ(freed.condition(), v1::Session::CONDITION_IDLE);
  EXPECT_GT(freed.position(), 5) << "it stands at the last token sampled";
  const Reply next = Say(session);
  ASSERT_TRUE(next.status.ok()) << next.status.error_message();
  EXPECT_EQ(next.position, freed.position() + 5 + 3);
  EXPECT_EQ(held->End().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(server_.AwaitMetric("palimpsest_slots{model=\"tiny\",condition=\"used\"}", 0), 0);
}

TEST_F(InterruptTest, OfASessionThatIsFreeNothingChangesAndOneThatIsNotThereIsNotFound) {
  const std::string session = server_.NewSession();
  ASSERT_TRUE(Say(session).status.ok());
  const v1::Session before = server_.GetSession(session);
  const auto [status, after] = Interrupt(session);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(after.etag(), before.etag());
  EXPECT_EQ(after.position(), before.position());
  EXPECT_EQ(Interrupt("sessions/none").first.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Interrupt("none").first.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(InterruptTest, AHeldSessionIsDeletedByForceOnlyAndItsNameIsFree) {
  const std::string session = server_.NewSession("held");
  const auto held = Hold(session);
  const grpc::Status busy = Delete(session, /*force=*/false);
  EXPECT_EQ(busy.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(DetailsOf(busy).reason, "SESSION_BUSY");

  const grpc::Status forced = Delete(session, /*force=*/true);
  ASSERT_TRUE(forced.ok()) << forced.error_message();
  EXPECT_EQ(Say(session).status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(server_.NewSession("held"), session);
  EXPECT_EQ(held->End().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(server_.AwaitMetric("palimpsest_slots{model=\"tiny\",condition=\"used\"}", 0), 0);
  EXPECT_EQ(server_.GetSession(session).position(), 0) << "what the old one left goes nowhere";
  EXPECT_TRUE(Say(session).status.ok());
}

TEST_F(InterruptTest, ACallMadeAtOnceAfterTheOneBeforeWasCancelledHasTheSession) {
  const std::string session = server_.NewSession();
  for (int i = 0; i < 10; ++i) {
    const auto held = Hold(session);
    held->context.TryCancel();
    // The cancellation may still be on its way when the next call is there.
    const Reply next = UntilFree([&] { return Say(session); });
    ASSERT_TRUE(next.status.ok()) << next.status.error_message();
    EXPECT_EQ(held->End().error_code(), grpc::StatusCode::CANCELLED);
  }
}

}  // namespace
}  // namespace palimpsest
