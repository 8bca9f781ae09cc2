// The wall clock is set while the server runs: times to live go on as if nothing had happened.
#include "absl/time/clock.h"

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/support/checkpoints.h"
#include "tests/support/server_process.h"
#include "tests/support/wire.h"

namespace palimpsest::testing {
namespace {

class ClockTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kSanitized) GTEST_SKIP() << "the sanitizers' run-time must be loaded before anything else";
    Shift(absl::ZeroDuration());
    server_ = ServerProcess::Start(
        MakeCheckpoint(), {},
        absl::StrCat("export LD_PRELOAD=", PALIMPSEST_SHIFTED_CLOCK, " SHIFTED_CLOCK_FILE=", file_));
    ASSERT_NE(server_, nullptr);
    stubs_ = std::make_unique<Stubs>(server_->target());
  }
  // The server's wall clock is ahead by so much from now on.
  void Shift(absl::Duration by) {
    const int64_t nanoseconds = absl::ToInt64Nanoseconds(by);
    std::fstream file(file_, std::ios::binary | std::ios::out | std::ios::in);
    if (!file) file.open(file_, std::ios::binary | std::ios::out);
    file.write(reinterpret_cast<const char*>(&nanoseconds), sizeof nanoseconds);
  }
  v1::Session Create(int64_t ttl_seconds) {
    v1::CreateSessionRequest request;
    request.mutable_session()->mutable_ttl()->set_seconds(ttl_seconds);
    grpc::ClientContext context;
    v1::Session session;
    const grpc::Status status = stubs_->sessions->CreateSession(&context, request, &session);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return session;
  }
  grpc::StatusCode Get(const std::string& name, v1::Session* session) {
    v1::GetSessionRequest request;
    request.set_name(name);
    grpc::ClientContext context;
    return stubs_->sessions->GetSession(&context, request, session).error_code();
  }

  const std::string file_ = MakeFolder("clock") + "/shift";
  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<Stubs> stubs_;
};

TEST_F(ClockTest, AJumpAheadDeletesNothing) {
  const v1::Session made = Create(3600);
  Shift(absl::Hours(2));
  v1::Session session;
  ASSERT_EQ(Get(made.name(), &session), grpc::StatusCode::OK);
  // What is told is in the terms of the clock that callers compare it with.
  const int64_t now = absl::ToUnixSeconds(absl::Now() + absl::Hours(2));
  EXPECT_GT(session.expire_time().seconds(), now + 3600 - 600);
  EXPECT_LE(session.expire_time().seconds(), now + 3600);
  EXPECT_EQ(session.expire_time().seconds() - made.expire_time().seconds(), 2 * 3600);
}

TEST_F(ClockTest, AJumpBackKeepsNothingLonger) {
  const v1::Session made = Create(1);
  Shift(-absl::Hours(2));
  v1::Session session;
  const absl::Time give_up = absl::Now() + absl::Minutes(1);
  while (Get(made.name(), &session) == grpc::StatusCode::OK && absl::Now() < give_up) {
    absl::SleepFor(absl::Milliseconds(50));
  }
  EXPECT_EQ(Get(made.name(), &session), grpc::StatusCode::NOT_FOUND);
}

}  // namespace
}  // namespace palimpsest::testing
