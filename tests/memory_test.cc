// Where memory is limited, the server chooses bounds that fit, refuses what is over them, and lives.
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/checkpoints.h"
#include "tests/support/server_process.h"
#include "tests/support/wire.h"

namespace palimpsest::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// In KiB, as the shell's own command takes it.
std::string AddressSpace(int64_t mebibytes) { return absl::StrCat("ulimit -v ", mebibytes << 10); }

// The reason of an error, if it says when to retry, too.
std::string ReasonToRetry(const grpc::Status& status) {
  google::rpc::Status wire;
  google::rpc::ErrorInfo info;
  google::rpc::RetryInfo retry;
  if (!wire.ParseFromString(status.error_details())) return "no details";
  for (const auto& detail : wire.details()) {
    if (detail.Is<google::rpc::ErrorInfo>()) detail.UnpackTo(&info);
    if (detail.Is<google::rpc::RetryInfo>()) detail.UnpackTo(&retry);
  }
  return retry.retry_delay().seconds() > 0 ? info.reason() : absl::StrCat(info.reason(), ", no retry");
}

grpc::Status TryCreateSession(Stubs& stubs, std::string* name) {
  grpc::ClientContext context;
  v1::Session session;
  const grpc::Status status = stubs.sessions->CreateSession(&context, {}, &session);
  *name = session.name();
  return status;
}

v1::GenerateRequest OneToken(const std::string& session) {
  v1::GenerateRequest request;
  request.set_session(session);
  request.set_text("The sea");
  request.mutable_stop()->set_max_tokens(1);
  return request;
}

class MemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kSanitized) GTEST_SKIP() << "sanitizers map terabytes of addresses";
  }
};

TEST_F(MemoryTest, SessionsAreRefusedBeforeTheAddressSpaceIsUsedUpAndAllThatAreThereGoOn) {
  const std::unique_ptr<ServerProcess> server =
      ServerProcess::Start(BundledCheckpoint(), {"--max_sessions=100000"}, AddressSpace(900));
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());
  std::vector<std::string> sessions;
  grpc::Status status;
  for (std::string name; sessions.size() < 100'000; sessions.push_back(name)) {
    status = TryCreateSession(stubs, &name);
    if (!status.ok()) break;
  }
  EXPECT_GT(sessions.size(), 100u);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_EQ(ReasonToRetry(status), "STATE_BYTES_LIMIT");
  EXPECT_EQ(server->Metric("palimpsest_parking_refused_total", "limit=\"max_state_bytes\""), 1);
  EXPECT_GT(server->Metric("palimpsest_parked_bytes"), 0.9 * server->Metric("palimpsest_parked_bytes_max"));

  // Each has room for a state of its own, which is made only now.
  for (const std::string& name : sessions) EXPECT_EQ(GenerateOk(stubs, OneToken(name)).tokens.size(), 1u);
  grpc::ClientContext context;
  v1::CreateSnapshotRequest snapshot;
  snapshot.set_session(sessions.front());
  v1::Snapshot made;
  status = stubs.snapshots->CreateSnapshot(&context, snapshot, &made);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_EQ(ReasonToRetry(status), "STATE_BYTES_LIMIT");

  DeleteSession(stubs, sessions.back());
  EXPECT_FALSE(CreateSession(stubs).empty());
  EXPECT_TRUE(server->process().running());
}

TEST_F(MemoryTest, TooLittleIsToldAtStartWithTheNumbers) {
  for (const int64_t mebibytes : {260, 380, 420}) {
    const Exit exit = RunServer({"--port=0", "--metrics_address=", absl::StrCat("--model=", BundledCheckpoint())},
                                AddressSpace(mebibytes));
    EXPECT_EQ(exit.code, 1) << mebibytes << exit.log;
    EXPECT_THAT(exit.reason, HasSubstr("RLIMIT_AS")) << mebibytes;
    EXPECT_THAT(exit.reason, AllOf(HasSubstr("bytes are needed"), HasSubstr("messages on their way"))) << mebibytes;
  }
}

TEST_F(MemoryTest, FlagsThatAskForMoreThanThereIsAreToldAtStart) {
  const Exit exit = RunServer({"--port=0", "--metrics_address=", absl::StrCat("--model=books=", BundledCheckpoint()),
                               "--max_state_bytes=2000000000"},
                              AddressSpace(1500));
  EXPECT_EQ(exit.code, 1) << exit.log;
  EXPECT_THAT(exit.reason, HasSubstr("2000000000  parked sessions and snapshots (--max_state_bytes)"));
}

TEST_F(MemoryTest, ThePlanIsInTheLog) {
  const std::unique_ptr<ServerProcess> server =
      ServerProcess::Start(BundledCheckpoint(), {"--max_state_bytes=100000000"});
  ASSERT_NE(server, nullptr);
  EXPECT_THAT(server->process().Log(),
              AllOf(HasSubstr("slots_of_models_test"), HasSubstr("\"parked_sessions_and_snapshots\":\"100000000\""),
                    HasSubstr("limited_by")));
}

}  // namespace
}  // namespace palimpsest::testing
