// Callers who send what becomes far more than it is, ask for what they never read, or open what they never use: what
// each gets, and that the others notice nothing.
#include <gmock/gmock.h>
#include <grpcpp/channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/rpc/testing/test_server.h"

namespace palimpsest {
namespace {

using ::palimpsest::testing::Ask;
using ::palimpsest::testing::DetailsOf;
using ::palimpsest::testing::Reply;
using ::palimpsest::testing::TestServer;
using ::testing::HasSubstr;

// Sends `bytes` as the one message of a call, whatever they are.
grpc::Status Send(TestServer& server, const std::string& method, const std::string& bytes) {
  std::shared_ptr<grpc::ChannelInterface> channel = server.channel();
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  const auto call = stub.PrepareUnaryCall(&context, "/" + method, request, &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  EXPECT_TRUE(queue.Next(&tag, &ok));
  return status;
}

// `count` entries of two bytes: field `number`, empty.
std::string EmptyEntries(int number, size_t count) {
  std::string bytes;
  for (size_t i = 0; i < count; ++i) {
    bytes += static_cast<char>(number << 3 | 2);
    bytes += '\0';
  }
  return bytes;
}

std::string Varint(size_t value) {
  std::string bytes;
  for (; value > 127; value >>= 7) bytes += static_cast<char>(value | 128);
  return bytes + static_cast<char>(value);
}

// Field `number` that holds `message`.
std::string Holding(int number, const std::string& message) {
  return static_cast<char>(number << 3 | 2) + Varint(message.size()) + message;
}

constexpr char kUpdate[] = "palimpsest.v1.SessionService/UpdateSession";
constexpr char kFork[] = "palimpsest.v1.SessionService/ForkSession";
constexpr char kGenerate[] = "palimpsest.v1.GenerationService/Generate";

TEST(HostileCaller, AMessageMayNotBecomeFarMoreThanItIs) {
  TestServer server;
  const std::string session = server.NewSession("bystander");
  const struct {
    const char* what;
    const char* method;
    std::string bytes;
    const char* reason;
  } rows[] = {
      {"a mask of empty paths", kUpdate, Holding(2, EmptyEntries(1, 4'000'000)), "MESSAGE_TOO_LONG"},
      {"empty ids of children", kFork, EmptyEntries(3, 4'000'000), "MESSAGE_TOO_LONG"},
      {"empty stop strings", kGenerate, Holding(7, EmptyEntries(2, 4'000'000)), "MESSAGE_TOO_MANY_FIELDS"},
      {"fields that nobody knows", kGenerate, EmptyEntries(15, 4'000'000), "MESSAGE_TOO_MANY_FIELDS"},
      {"biases", kGenerate, Holding(6, EmptyEntries(1, 4'000'000)), "MESSAGE_TOO_MANY_FIELDS"},
  };
  for (const auto& row : rows) {
    const grpc::Status status = Send(server, row.method, row.bytes);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << row.what << ": " << status.error_message();
    EXPECT_EQ(DetailsOf(status).reason, row.reason) << row.what;
    EXPECT_EQ(DetailsOf(status).retry_seconds, -1) << row.what;
    EXPECT_EQ(server.GetSession(session).name(), session) << row.what;
  }
}

TEST(HostileCaller, AsManyTokensAsAPromptMayHaveAreRead) {
  TestServer server;
  // One by one, not packed, as a client may: the most that ids become.
  std::string ids;
  for (int i = 0; i < 262144; ++i) ids += std::string("\x08\x01", 2);
  v1::GenerateRequest rest = Ask("", 0);
  rest.clear_text();
  EXPECT_TRUE(Send(server, kGenerate, rest.SerializeAsString() + Holding(5, ids)).ok());
}

TEST(HostileCaller, WhatCannotBeReadIsSaidSoAndCounted) {
  TestServer server;
  const struct {
    const char* what;
    std::string bytes;
  } rows[] = {
      {"a field that is cut off", std::string("\x0a\x20sessions/", 11)},
      {"field number 0", std::string("\x02\x00", 2)},
      {"a group", std::string("\x0b\x0c", 2)},
      {"text that is not UTF-8", std::string("\x0a\x02\xff\xfe", 4)},
  };
  double counted = 0;
  for (const auto& row : rows) {
    const grpc::Status status = Send(server, "palimpsest.v1.SessionService/GetSession", row.bytes);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << row.what << ": " << status.error_message();
    EXPECT_EQ(DetailsOf(status).reason, "MESSAGE_UNREADABLE") << row.what;
    EXPECT_THAT(status.error_message(), HasSubstr("palimpsest.v1.GetSessionRequest"));
    ++counted;
    EXPECT_EQ(
        server.AwaitMetric("palimpsest_requests_total{code=\"INVALID_ARGUMENT\",method=\"palimpsest.v1.SessionService/"
                           "GetSession\"}",
                           counted),
        counted);
  }
}

TEST(HostileCaller, AnAnswerThatIsTooLongIsNotMade) {
  TestServer server([](ServerOptions& options) { options.limits.max_reply_bytes = 1 << 20; });
  v1::TokenizeRequest request;
  request.set_text(std::string(200'000, 'a'));  // of a token, an id and a byte string each
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  const grpc::Status status = server.generation().Tokenize(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "ANSWER_TOO_LONG");
  EXPECT_EQ(server.AwaitMetric("palimpsest_reply_bytes", 0), 0);
}

TEST(HostileCaller, AStreamThatIsNotReadEndsAndItsSessionIsFree) {
  TestServer server([](ServerOptions& options) {
    options.limits.max_stall = absl::Milliseconds(500);
    options.engine.slots = 1;
    options.engine.max_undelivered_tokens = 16;
  });
  const std::string session = server.NewSession("kept");
  v1::GenerateRequest request = Ask("hello", 60'000);
  request.set_session(session);
  request.set_top_logprobs(20);  // long messages, so that the windows are full soon
  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  // The one slot comes back though the client neither reads nor cancels nor has a deadline.
  EXPECT_EQ(server.AwaitMetric("palimpsest_calls_stalled_total", 1), 1);
  EXPECT_EQ(server.AwaitMetric("palimpsest_slots{model=\"tiny\",condition=\"used\"}", 0), 0);
  v1::GenerateRequest next = Ask(" again", 2);
  next.set_session(session);
  const Reply reply = server.Generate(next);
  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  while (reader->Read(&message)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr("--max_stall"));
}

TEST(HostileCaller, OpenUploadsTakeNobodysPlaceAndEnd) {
  TestServer server([](ServerOptions& options) {
    options.limits.max_transfers = 2;
    options.limits.max_stall = absl::Seconds(1);
  });
  server.NewSnapshot(server.NewSession("source"), "kept");
  const std::string bytes = server.Download("snapshots/kept").second;

  struct Idle {
    grpc::ClientContext context;
    v1::Snapshot snapshot;
    std::unique_ptr<grpc::ClientWriter<v1::UploadSnapshotRequest>> writer;
  };
  std::vector<Idle> idle(4);
  for (Idle& each : idle) each.writer = server.snapshots().UploadSnapshot(&each.context, &each.snapshot);
  EXPECT_TRUE(server.Upload(bytes).first.ok());
  EXPECT_TRUE(server.Download("snapshots/kept").first.ok());

  EXPECT_EQ(server.AwaitMetric("palimpsest_calls_stalled_total", 4), 4);
  for (Idle& each : idle) {
    EXPECT_EQ(each.writer->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  }
}

}  // namespace
}  // namespace palimpsest
