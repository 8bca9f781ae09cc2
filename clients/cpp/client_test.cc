// The client against services of our own making, which do what a real server cannot easily be made to do.
#include "clients/cpp/client.h"

#include <gmock/gmock.h>
#include <grpcpp/ext/health_check_service_server_builder_option.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "palimpsest/v1/generation.grpc.pb.h"
#include "palimpsest/v1/model.grpc.pb.h"
#include "palimpsest/v1/session.grpc.pb.h"
#include "palimpsest/v1/snapshot.grpc.pb.h"

namespace palimpsest::client {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

template <typename... Details>
grpc::Status ErrorWith(grpc::StatusCode code, const std::string& message, const Details&... details) {
  google::rpc::Status status;
  status.set_code(code);
  status.set_message(message);
  (status.add_details()->PackFrom(details), ...);
  return grpc::Status(code, message, status.SerializeAsString());
}

google::rpc::BadRequest Violation(const std::string& field, const std::string& description) {
  google::rpc::BadRequest bad;
  bad.add_field_violations()->set_field(field);
  bad.mutable_field_violations(0)->set_description(description);
  return bad;
}

// What the prompt of a request makes FakeGeneration do.
constexpr char kThreeWords[] = "three words";
constexpr char kErrorMidStream[] = "error mid-stream";
constexpr char kNoFinish[] = "no finish";
constexpr char kForever[] = "forever";
constexpr char kBigState[] = "big state";
constexpr char kUnavailable[] = "unavailable";

class FakeGeneration : public v1::GenerationService::Service {
 public:
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    ++calls;
    const auto& metadata = context->client_metadata();
    const auto it = metadata.find("x-goog-request-params");
    routing = it == metadata.end() ? "" : std::string(it->second.data(), it->second.size());
    context->AddInitialMetadata("x-call-id", "call-7");
    if (request->text() == kUnavailable) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
    v1::GenerateResponse message;
    for (const char* word : {"one ", "two ", "three"}) {
      message.set_text(word);
      if (!writer->Write(message)) break;
    }
    if (request->text() == kErrorMidStream) {
      return ErrorWith(grpc::StatusCode::INVALID_ARGUMENT, "the state is damaged",
                       Violation("state", "use the bytes as DownloadSnapshot gave them"));
    }
    if (request->text() == kNoFinish) return grpc::Status::OK;
    if (request->text() == kForever) {
      while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
      ++cancelled;
      return grpc::Status::CANCELLED;
    }
    message.clear_text();
    message.mutable_finish()->set_reason(v1::FINISH_REASON_LENGTH);
    if (request->text() == kBigState) message.mutable_finish()->set_state(std::string(20 << 20, 's'));
    writer->Write(message);
    return grpc::Status::OK;
  }

  grpc::Status Score(grpc::ServerContext* context, const v1::ScoreRequest* request, v1::ScoreResponse*) override {
    ++calls;
    if (request->text() == kUnavailable) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
    while (request->text() == kForever && !context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    return grpc::Status::OK;
  }

  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest*, v1::TokenizeResponse*) override {
    google::rpc::ErrorInfo info;
    info.set_reason("QUEUE_FULL");
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_nanos(250'000'000);
    return ErrorWith(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full", info, retry);
  }

  std::atomic<int> calls = 0;
  std::atomic<int> cancelled = 0;
  std::string routing;  // written and read between calls only
};

class FakeSessions : public v1::SessionService::Service {
 public:
  grpc::Status CreateSession(grpc::ServerContext*, const v1::CreateSessionRequest* request,
                             v1::Session* session) override {
    request_ids.push_back(request->request_id());
    if (request_ids.size() < 3) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "not yet");
    session->set_name("sessions/made");
    return grpc::Status::OK;
  }
  grpc::Status GetSession(grpc::ServerContext*, const v1::GetSessionRequest*, v1::Session*) override {
    if (++gets < 3) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "not yet");
    return grpc::Status::OK;
  }
  grpc::Status InterruptSession(grpc::ServerContext* context, const v1::InterruptSessionRequest* request,
                                v1::Session* session) override {
    const auto it = context->client_metadata().find("x-goog-request-params");
    routing = it == context->client_metadata().end() ? "" : std::string(it->second.data(), it->second.size());
    if (++interrupts < 3) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "not yet");
    session->set_name(request->name());
    return grpc::Status::OK;
  }
  grpc::Status DeleteSession(grpc::ServerContext*, const v1::DeleteSessionRequest* request,
                             google::protobuf::Empty*) override {
    ++deletes;
    forced = request->force();
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "not now");
  }
  grpc::Status ListSessions(grpc::ServerContext*, const v1::ListSessionsRequest* request,
                            v1::ListSessionsResponse* response) override {
    owners.push_back(request->owner());
    const int page = request->page_token().empty() ? 0 : std::stoi(request->page_token());
    for (int i = 0; i < 2; ++i) response->add_sessions()->set_name(absl::StrCat("sessions/", page, "-", i));
    if (page < 2) response->set_next_page_token(absl::StrCat(page + 1));
    return grpc::Status::OK;
  }

  std::vector<std::string> request_ids;
  std::vector<std::string> owners;
  std::string routing;  // written and read between calls only, as `forced`
  bool forced = false;
  int gets = 0;
  int interrupts = 0;
  int deletes = 0;
};

class FakeSnapshots : public v1::SnapshotService::Service {
 public:
  grpc::Status DownloadSnapshot(grpc::ServerContext*, const v1::DownloadSnapshotRequest* request,
                                grpc::ServerWriter<v1::DownloadSnapshotResponse>* writer) override {
    v1::DownloadSnapshotResponse piece;
    piece.mutable_snapshot()->set_name(request->name());
    piece.mutable_snapshot()->set_size_bytes(bytes.size());
    const size_t end = request->name() == "snapshots/short" ? bytes.size() - 1 : bytes.size();
    for (size_t at = 0; at < end; at += 1000) {
      piece.set_data(bytes.substr(at, std::min<size_t>(1000, end - at)));
      writer->Write(piece);
      piece.Clear();
    }
    if (request->name() == "snapshots/broken") return grpc::Status(grpc::StatusCode::DATA_LOSS, "checksum");
    return grpc::Status::OK;
  }

  grpc::Status UploadSnapshot(grpc::ServerContext*, grpc::ServerReader<v1::UploadSnapshotRequest>* reader,
                              v1::Snapshot* snapshot) override {
    uploads.clear();
    for (v1::UploadSnapshotRequest piece; reader->Read(&piece);) {
      uploads.push_back(piece);
      if (uploads[0].snapshot_id() == "refused") {
        return ErrorWith(grpc::StatusCode::FAILED_PRECONDITION, "the snapshot is of another model");
      }
    }
    snapshot->set_name("snapshots/up");
    return grpc::Status::OK;
  }

  std::string bytes = std::string(2500, 'b');
  std::vector<v1::UploadSnapshotRequest> uploads;
};

class ClientTest : public ::testing::Test {
 protected:
  ClientTest() {
    grpc::EnableDefaultHealthCheckService(true);
    int port = 0;
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(64 << 20);
    // As the real server: the client's pings are welcome.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&generation_);
    builder.RegisterService(&sessions_);
    builder.RegisterService(&snapshots_);
    server_ = builder.BuildAndStart();
    server_->GetHealthCheckService()->SetServingStatus("draining.Service", false);
    target_ = absl::StrCat("127.0.0.1:", port);
    client_ = *Client::Connect(target_);
  }
  ~ClientTest() override {
    client_.reset();
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
  }

  static v1::GenerateRequest Prompt(const std::string& text) {
    v1::GenerateRequest request;
    request.set_text(text);
    return request;
  }
  static v1::ScoreRequest ScoreText(const std::string& text) {
    v1::ScoreRequest request;
    request.set_text(text);
    return request;
  }
  static std::string TempPath(const std::string& name) {
    return absl::StrCat(::testing::TempDir(), "/client_test_", name);
  }

  FakeGeneration generation_;
  FakeSessions sessions_;
  FakeSnapshots snapshots_;
  std::unique_ptr<grpc::Server> server_;
  std::string target_;
  std::unique_ptr<Client> client_;
};

TEST_F(ClientTest, AStreamGivesItsMessagesThenItsFinish) {
  const auto stream = client_->Generate(Prompt(kThreeWords));
  std::string text;
  for (v1::GenerateResponse message; stream->Next(message);) text += message.text();
  EXPECT_EQ(text, "one two three");
  EXPECT_EQ(stream->call_id(), "call-7");
  const auto finish = stream->Finish();
  ASSERT_TRUE(finish.ok()) << finish.status();
  EXPECT_EQ(finish->reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_TRUE(stream->Finish().ok()) << "the second time gives the same";
  v1::GenerateResponse message;
  EXPECT_FALSE(stream->Next(message));
}

TEST_F(ClientTest, RoundRobinSpreadsCallsOverAllAddresses) {
  FakeGeneration other;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&other);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const std::string both = absl::StrCat("ipv4:", target_, ",127.0.0.1:", port);

  const auto stays = *Client::Connect(both);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(stays->Generate(Prompt(kThreeWords))->Finish().ok());
  EXPECT_TRUE(generation_.calls == 20 || other.calls == 20) << generation_.calls << " and " << other.calls;

  const auto spreads = *Client::Connect(both, {.round_robin = true});
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while ((generation_.calls == 0 || other.calls == 0) && absl::Now() < deadline) {
    ASSERT_TRUE(spreads->Generate(Prompt(kThreeWords))->Finish().ok());
  }
  EXPECT_GT(generation_.calls, 0);
  EXPECT_GT(other.calls, 0);
}

TEST_F(ClientTest, FinishReadsWhatIsLeft) { EXPECT_TRUE(client_->Generate(Prompt(kThreeWords))->Finish().ok()); }

TEST_F(ClientTest, AnErrorMidStreamComesAfterTheMessagesBeforeIt) {
  const auto stream = client_->Generate(Prompt(kErrorMidStream));
  std::string text;
  for (v1::GenerateResponse message; stream->Next(message);) text += message.text();
  EXPECT_EQ(text, "one two three");
  const absl::Status status = stream->Finish().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "the state is damaged\n  state: use the bytes as DownloadSnapshot gave them");
}

TEST_F(ClientTest, AStreamThatEndsWithoutAFinishIsInternal) {
  const absl::Status status = client_->Generate(Prompt(kNoFinish))->Finish().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("without saying why"));
}

TEST_F(ClientTest, CancelFromAnotherThreadEndsAStream) {
  const auto stream = client_->Generate(Prompt(kForever));
  v1::GenerateResponse message;
  ASSERT_TRUE(stream->Next(message));
  std::thread canceller([&] {
    absl::SleepFor(absl::Milliseconds(20));
    stream->Cancel();
  });
  EXPECT_TRUE(absl::IsCancelled(stream->Finish().status()));
  canceller.join();
}

TEST_F(ClientTest, DestroyingAStreamCancelsItsCall) {
  {
    const auto stream = client_->Generate(Prompt(kForever));
    v1::GenerateResponse message;
    ASSERT_TRUE(stream->Next(message)) << "the server has begun";
  }
  for (int i = 0; i < 5000 && generation_.cancelled == 0; ++i) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(generation_.cancelled, 1);
}

TEST_F(ClientTest, ACancellationEndsTheCallsThatCarryItNowAndLater) {
  Cancellation cancellation;
  std::thread canceller([&] {
    absl::SleepFor(absl::Milliseconds(50));
    cancellation.Cancel();
  });
  const CallOptions options = {.cancellation = &cancellation};
  const auto stream = client_->Generate(Prompt(kForever), options);
  EXPECT_TRUE(absl::IsCancelled(client_->Score(ScoreText(kForever), options).status()));
  EXPECT_TRUE(absl::IsCancelled(stream->Finish().status()));
  canceller.join();
  EXPECT_TRUE(absl::IsCancelled(client_->Score(ScoreText("later"), options).status()));
  EXPECT_TRUE(client_->Score(ScoreText("another call")).ok()) << "calls without it go on";
}

TEST_F(ClientTest, ACallEndsAtItsTimeout) {
  const absl::Status status = client_->Score(ScoreText(kForever), {.timeout = absl::Milliseconds(30)}).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
}

TEST_F(ClientTest, ManyStreamsByCallbackEachEndOnce) {
  constexpr int kStreams = 200;
  Cancellation cancellation;
  absl::BlockingCounter left(kStreams);
  std::atomic<int> messages = 0;
  std::atomic<int> ok = 0;
  for (int i = 0; i < kStreams; ++i) {
    client_->GenerateAsync(
        Prompt(kThreeWords), [&](const v1::GenerateResponse&) { ++messages; },
        [&](const absl::Status& status) {
          ok += status.ok();
          left.DecrementCount();
        },
        {.cancellation = &cancellation});
  }
  left.Wait();
  EXPECT_EQ(ok, kStreams);
  EXPECT_EQ(messages, 4 * kStreams);
}

TEST_F(ClientTest, AStreamByCallbackEndsWhenCancelled) {
  Cancellation cancellation;
  absl::Notification begun, done;
  absl::Status status;
  client_->GenerateAsync(
      Prompt(kForever),
      [&](const v1::GenerateResponse& message) {
        if (message.text() == "three") begun.Notify();
      },
      [&](const absl::Status& s) {
        status = s;
        done.Notify();
      },
      {.cancellation = &cancellation});
  begun.WaitForNotification();
  cancellation.Cancel();
  done.WaitForNotification();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
}

TEST_F(ClientTest, TheSessionsNameTravelsAsMetadata) {
  v1::GenerateRequest request = Prompt(kThreeWords);
  request.set_session("sessions/story");
  ASSERT_TRUE(client_->Generate(request)->Finish().ok());
  EXPECT_EQ(generation_.routing, "session=sessions/story");
  ASSERT_TRUE(client_->Generate(Prompt(kThreeWords))->Finish().ok());
  EXPECT_EQ(generation_.routing, "");
}

TEST_F(ClientTest, ASessionNameThatMetadataCannotCarryReachesTheServerAllTheSame) {
  v1::GenerateRequest request = Prompt(kThreeWords);
  request.set_session("sessions/\n\x01 caf\xc3\xa9");
  EXPECT_TRUE(client_->Generate(request)->Finish().ok());
  EXPECT_EQ(generation_.routing, "");
}

TEST_F(ClientTest, MessagesMayBeLargerThanGrpcsDefault) {
  const auto finish = client_->Generate(Prompt(kBigState))->Finish();
  ASSERT_TRUE(finish.ok()) << finish.status();
  EXPECT_EQ(finish->state().size(), 20 << 20);
  v1::ScoreRequest request = ScoreText("after a state");
  request.set_state(finish->state());
  EXPECT_TRUE(client_->Score(request).ok());
}

TEST_F(ClientTest, ReadsAreRetriedWhileTheServerIsUnavailable) {
  EXPECT_TRUE(client_->GetSession("sessions/a").ok());
  EXPECT_EQ(sessions_.gets, 3);
}

TEST_F(ClientTest, CallsThatChangeSomethingAreNotRetried) {
  EXPECT_TRUE(absl::IsUnavailable(client_->Generate(Prompt(kUnavailable))->Finish().status()));
  EXPECT_EQ(generation_.calls, 1);
  EXPECT_TRUE(absl::IsUnavailable(client_->Score(ScoreText(kUnavailable)).status()));
  EXPECT_EQ(generation_.calls, 2);
  EXPECT_TRUE(absl::IsUnavailable(client_->DeleteSession("sessions/a")));
  EXPECT_EQ(sessions_.deletes, 1);
}

TEST_F(ClientTest, AnInterruptionIsRetriedWhileTheServerIsUnavailable) {
  const auto session = client_->InterruptSession("sessions/a");
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->name(), "sessions/a");
  EXPECT_EQ(sessions_.interrupts, 3);
  EXPECT_EQ(sessions_.routing, "session=sessions/a");
}

TEST_F(ClientTest, ADeletionIsForcedOnlyWhereThatIsSaid) {
  (void)client_->DeleteSession("sessions/a");
  EXPECT_FALSE(sessions_.forced);
  (void)client_->DeleteSession("sessions/a", "", {}, /*force=*/true);
  EXPECT_TRUE(sessions_.forced);
}

TEST_F(ClientTest, CreateSessionIsRetriedUnderOneRequestId) {
  const auto session = client_->CreateSession({});
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->name(), "sessions/made");
  ASSERT_EQ(sessions_.request_ids.size(), 3);
  EXPECT_THAT(sessions_.request_ids, Each(sessions_.request_ids[0]));
  EXPECT_THAT(sessions_.request_ids[0],
              MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"));

  v1::CreateSessionRequest request;
  request.set_request_id("mine");
  ASSERT_TRUE(client_->CreateSession(request).ok());
  EXPECT_EQ(sessions_.request_ids.back(), "mine");
}

TEST_F(ClientTest, ListSessionsReadsAllPages) {
  const auto sessions = client_->ListSessions();
  ASSERT_TRUE(sessions.ok()) << sessions.status();
  std::vector<std::string> names;
  for (const v1::Session& session : *sessions) names.push_back(session.name());
  EXPECT_THAT(names, ElementsAre("sessions/0-0", "sessions/0-1", "sessions/1-0", "sessions/1-1", "sessions/2-0",
                                 "sessions/2-1"));

  EXPECT_THAT(sessions_.owners, Each(""));
  sessions_.owners.clear();
  EXPECT_TRUE(client_->ListSessions({}, kAllOwners).ok());
  EXPECT_THAT(sessions_.owners, ElementsAre("-", "-", "-"));
}

TEST_F(ClientTest, ASnapshotIsDownloadedToAFileOnceItIsWhole) {
  const std::string path = TempPath("snapshot");
  std::remove(path.c_str());
  const auto lost = client_->DownloadSnapshotFile("snapshots/broken", path);
  EXPECT_EQ(lost.status().code(), absl::StatusCode::kDataLoss);
  const auto cut = client_->DownloadSnapshotFile("snapshots/short", path);
  EXPECT_EQ(cut.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(cut.status().message()), AllOf(HasSubstr("2499"), HasSubstr("2500")));
  EXPECT_FALSE(std::ifstream(path).good()) << "no file after a failure";

  const auto snapshot = client_->DownloadSnapshotFile("snapshots/whole", path);
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_EQ(snapshot->name(), "snapshots/whole");
  std::stringstream content;
  content << std::ifstream(path, std::ios::binary).rdbuf();
  EXPECT_EQ(content.str(), snapshots_.bytes);
}

TEST_F(ClientTest, ADownloadEndsWithTheErrorOfItsSink) {
  const auto sink = [](std::string_view) { return absl::ResourceExhaustedError("the disk is full"); };
  EXPECT_EQ(client_->DownloadSnapshot("snapshots/whole", sink).status().message(), "the disk is full");
  const std::string nowhere = "/nonexistent/folder/file";
  EXPECT_THAT(std::string(client_->DownloadSnapshotFile("snapshots/whole", nowhere).status().message()),
              HasSubstr(nowhere));
}

TEST_F(ClientTest, AnUploadSaysWhatItIsOnceAndComesInPieces) {
  std::string bytes((5 << 20) / 2, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 31 >> 4);
  const std::string path = TempPath("upload");
  std::ofstream(path, std::ios::binary) << bytes;
  const UploadSnapshotOptions what = {.snapshot_id = "up", .model = "models/m", .ttl = absl::Milliseconds(90500)};
  for (const bool from_file : {false, true}) {
    const auto snapshot =
        from_file ? client_->UploadSnapshotFile(what, path) : client_->UploadSnapshotBytes(what, bytes);
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
    EXPECT_EQ(snapshot->name(), "snapshots/up");
    ASSERT_EQ(snapshots_.uploads.size(), 3);
    EXPECT_EQ(snapshots_.uploads[0].snapshot_id(), "up");
    EXPECT_EQ(snapshots_.uploads[0].model(), "models/m");
    EXPECT_EQ(snapshots_.uploads[0].snapshot().ttl().seconds(), 90);
    EXPECT_EQ(snapshots_.uploads[0].snapshot().ttl().nanos(), 500'000'000);
    EXPECT_EQ(snapshots_.uploads[1].snapshot_id(), "");
    EXPECT_FALSE(snapshots_.uploads[1].has_snapshot());
    std::string joined;
    for (const auto& piece : snapshots_.uploads) joined += piece.data();
    EXPECT_TRUE(joined == bytes);
  }
}

TEST_F(ClientTest, AnUploadOfNothingStillAsksTheServer) {
  ASSERT_TRUE(client_->UploadSnapshotBytes({.snapshot_id = "empty"}, "").ok());
  ASSERT_EQ(snapshots_.uploads.size(), 1);
  EXPECT_EQ(snapshots_.uploads[0].snapshot_id(), "empty");
}

TEST_F(ClientTest, AnUploadRefusedHalfwayGivesTheServersReason) {
  const auto refused = client_->UploadSnapshotBytes({.snapshot_id = "refused"}, std::string(30 << 20, 'x'));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(refused.status().message(), "the snapshot is of another model");
  const auto unreadable = client_->UploadSnapshot({}, []() { return absl::DataLossError("the disk is bad"); });
  EXPECT_EQ(unreadable.status().message(), "the disk is bad");
  EXPECT_TRUE(absl::IsNotFound(client_->UploadSnapshotFile({}, "/nonexistent/file").status()));
}

TEST_F(ClientTest, DetailsOfAnErrorAreReadable) {
  const absl::Status status = client_->Tokenize({}, {.retry = {.max_attempts = 1}}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_EQ(status.message(), "the queue is full\n  try again in 250ms");
  EXPECT_EQ(ErrorReason(status), "QUEUE_FULL");
  EXPECT_EQ(RetryDelay(status), absl::Milliseconds(250));
  EXPECT_EQ(ErrorReason(absl::InternalError("ours")), "");
  EXPECT_EQ(RetryDelay(absl::InternalError("ours")), std::nullopt);
}

TEST_F(ClientTest, HealthIsOfTheServerOrOfAService) {
  EXPECT_EQ(*client_->CheckHealth(), Health::kServing);
  EXPECT_EQ(*client_->CheckHealth("draining.Service"), Health::kNotServing);
  EXPECT_EQ(*client_->CheckHealth("no.such.Service"), Health::kServiceUnknown);
}

TEST_F(ClientTest, AServerThatIsNotThereIsNamed) {
  const auto client = Client::Connect("127.0.0.1:1");
  EXPECT_TRUE(absl::IsUnavailable(client.status()));
  EXPECT_THAT(std::string(client.status().message()), HasSubstr("127.0.0.1:1"));
}

TEST_F(ClientTest, APlainServerIsNotTakenForAnEncryptedOne) {
  const auto client = Client::Connect(target_, {.tls = true});
  EXPECT_TRUE(absl::IsUnavailable(client.status())) << client.status();
}

TEST(ConnectTest, FilesThatDoNotFitAreRefusedBeforeConnecting) {
  const auto half = Client::Connect("127.0.0.1:1", {.certificate_file = "/tmp/cert.pem"});
  EXPECT_TRUE(absl::IsInvalidArgument(half.status()));
  const auto missing = Client::Connect("127.0.0.1:1", {.tls = true, .ca_file = "/nonexistent/ca.pem"});
  EXPECT_TRUE(absl::IsNotFound(missing.status()));
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("/nonexistent/ca.pem"));
}

TEST(ConnectTest, WithoutATimeToWaitTheFirstCallConnects) {
  const auto client = Client::Connect("127.0.0.1:1", {.connect_timeout = absl::ZeroDuration()});
  ASSERT_TRUE(client.ok());
  EXPECT_TRUE(absl::IsUnavailable((*client)->Score({}).status()));
}

}  // namespace
}  // namespace palimpsest::client
