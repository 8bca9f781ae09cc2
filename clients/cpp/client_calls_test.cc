// What surrounds a call: refusals that are tried again, proxies, tokens, files.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "clients/cpp/client.h"
#include "clients/cpp/target.h"
#include "clients/cpp/token.h"
#include "clients/cpp/whole_file.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "palimpsest/v1/generation.grpc.pb.h"
#include "palimpsest/v1/session.grpc.pb.h"
#include "palimpsest/v1/snapshot.grpc.pb.h"

namespace palimpsest::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kToken[] = "s3cret-Token_1.~+/==";

grpc::Status Refusal(grpc::StatusCode code, absl::Duration come_back) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(absl::IDivDuration(come_back, absl::Seconds(1), &come_back));
  retry.mutable_retry_delay()->set_nanos(absl::ToInt64Nanoseconds(come_back));
  google::rpc::Status status;
  status.set_code(code);
  status.set_message("not now");
  status.add_details()->PackFrom(retry);
  return grpc::Status(code, "not now", status.SerializeAsString());
}

std::string Metadata(const grpc::ServerContext& context, const std::string& key) {
  const auto it = context.client_metadata().find(key);
  return it == context.client_metadata().end() ? "" : std::string(it->second.data(), it->second.size());
}

// Refuses the first calls of each method as the test says, then answers.
struct Refusals {
  std::atomic<int> left = 0;
  std::atomic<int> calls = 0;
  grpc::Status status;

  bool Refuse() {
    ++calls;
    return left-- > 0;
  }
};

class Generation : public v1::GenerationService::Service {
 public:
  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    const bool refuse = refusals.Refuse();
    if (refuse && request->text() != "late") return refusals.status;
    v1::GenerateResponse message;
    message.set_text("word");
    writer->Write(message);
    if (refuse) return refusals.status;
    message.mutable_finish();
    writer->Write(message);
    return grpc::Status::OK;
  }
  grpc::Status Score(grpc::ServerContext* context, const v1::ScoreRequest*, v1::ScoreResponse*) override {
    authorization = Metadata(*context, "authorization");
    return refusals.Refuse() ? refusals.status : grpc::Status::OK;
  }
  Refusals refusals;
  std::string authorization;  // written and read between calls only
};

class Sessions : public v1::SessionService::Service {
 public:
  grpc::Status InterruptSession(grpc::ServerContext*, const v1::InterruptSessionRequest*, v1::Session*) override {
    return refusals.Refuse() ? refusals.status : grpc::Status::OK;
  }
  grpc::Status DeleteSession(grpc::ServerContext*, const v1::DeleteSessionRequest*, google::protobuf::Empty*) override {
    return refusals.Refuse() ? refusals.status : grpc::Status::OK;
  }
  Refusals refusals;
};

class Snapshots : public v1::SnapshotService::Service {
 public:
  grpc::Status DownloadSnapshot(grpc::ServerContext*, const v1::DownloadSnapshotRequest* request,
                                grpc::ServerWriter<v1::DownloadSnapshotResponse>* writer) override {
    const bool refuse = refusals.Refuse();
    if (refuse && request->name() != "snapshots/late") return refusals.status;
    v1::DownloadSnapshotResponse piece;
    piece.mutable_snapshot()->set_size_bytes(4);
    piece.set_data(refuse ? "ha" : "full");
    writer->Write(piece);
    return refuse ? refusals.status : grpc::Status::OK;
  }
  grpc::Status UploadSnapshot(grpc::ServerContext*, grpc::ServerReader<v1::UploadSnapshotRequest>* reader,
                              v1::Snapshot*) override {
    received.clear();
    for (v1::UploadSnapshotRequest piece; reader->Read(&piece);) received += piece.data();
    return refusals.Refuse() ? refusals.status : grpc::Status::OK;
  }
  Refusals refusals;
  std::string received;
};

class CallsTest : public ::testing::Test {
 protected:
  CallsTest() {
    for (const char* name : {"grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"}) unsetenv(name);
    folder_ = absl::StrCat(::testing::TempDir(), "/calls_", getpid());
    std::filesystem::create_directories(folder_);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.AddListeningPort(absl::StrCat("unix:", folder_, "/socket"), grpc::InsecureServerCredentials());
    builder.RegisterService(&generation_);
    builder.RegisterService(&sessions_);
    builder.RegisterService(&snapshots_);
    server_ = builder.BuildAndStart();
  }
  ~CallsTest() override {
    client_.reset();
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
    for (const char* name : {"grpc_proxy", "https_proxy", "http_proxy", "no_proxy"}) unsetenv(name);
    std::filesystem::remove_all(folder_);
  }

  std::string Target() const { return absl::StrCat("127.0.0.1:", port_); }
  Client& Connected() {
    if (client_ == nullptr) client_ = *Client::Connect(Target());
    return *client_;
  }
  void RefuseAll(int times, grpc::StatusCode code, absl::Duration come_back = absl::Milliseconds(10)) {
    for (Refusals* refusals : {&generation_.refusals, &sessions_.refusals, &snapshots_.refusals}) {
      refusals->left = times;
      refusals->calls = 0;
      refusals->status = Refusal(code, come_back);
    }
  }
  static v1::GenerateRequest Prompt(const std::string& text) {
    v1::GenerateRequest request;
    request.set_text(text);
    return request;
  }
  std::string Path(const std::string& name) const { return absl::StrCat(folder_, "/", name); }
  static std::string Content(const std::string& path) {
    std::stringstream content;
    content << std::ifstream(path, std::ios::binary).rdbuf();
    return content.str();
  }
  int Files() const { return std::distance(std::filesystem::directory_iterator(folder_), {}); }

  Generation generation_;
  Sessions sessions_;
  Snapshots snapshots_;
  int port_ = 0;
  std::string folder_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Client> client_;
};

TEST_F(CallsTest, EveryCallIsMadeAgainAfterARefusalThatSaysWhen) {
  for (const auto code :
       {grpc::StatusCode::ABORTED, grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::UNAVAILABLE}) {
    RefuseAll(2, code);
    EXPECT_TRUE(Connected().Generate(Prompt("x"))->Finish().ok());
    EXPECT_EQ(generation_.refusals.calls, 3);
    RefuseAll(2, code);
    EXPECT_TRUE(Connected().Score({}).ok());
    EXPECT_EQ(generation_.refusals.calls, 3);
    EXPECT_TRUE(Connected().DeleteSession("sessions/a").ok());
    EXPECT_EQ(sessions_.refusals.calls, 3);
    RefuseAll(2, code);
    EXPECT_TRUE(Connected().InterruptSession("sessions/a").ok());
    EXPECT_EQ(sessions_.refusals.calls, 3);
    EXPECT_EQ(*Connected().DownloadSnapshotBytes("snapshots/a"), "full");
    EXPECT_EQ(snapshots_.refusals.calls, 3);
    RefuseAll(2, code);
    EXPECT_TRUE(Connected().UploadSnapshotBytes({}, "bytes").ok());
    EXPECT_EQ(snapshots_.refusals.calls, 3);
    EXPECT_EQ(snapshots_.received, "bytes");
    RefuseAll(2, code);
    std::ofstream(Path("up"), std::ios::binary) << "a file";
    EXPECT_TRUE(Connected().UploadSnapshotFile({}, Path("up")).ok());
    EXPECT_EQ(snapshots_.received, "a file");
  }
}

TEST_F(CallsTest, TheAttemptsAreBoundedAndTheLastRefusalComesBack) {
  RefuseAll(100, grpc::StatusCode::ABORTED);
  const CallOptions thrice = {.retry = {.max_attempts = 3}};
  EXPECT_TRUE(absl::IsAborted(Connected().Score({}, thrice).status()));
  EXPECT_EQ(generation_.refusals.calls, 3);
  EXPECT_TRUE(absl::IsAborted(Connected().Generate(Prompt("x"), thrice)->Finish().status()));
  EXPECT_EQ(generation_.refusals.calls, 6);
}

TEST_F(CallsTest, AWaitThatWouldTakeTooLongIsNotBegun) {
  RefuseAll(100, grpc::StatusCode::RESOURCE_EXHAUSTED, absl::Seconds(3600));
  EXPECT_TRUE(absl::IsResourceExhausted(Connected().Score({}).status()));
  RefuseAll(100, grpc::StatusCode::RESOURCE_EXHAUSTED, absl::Seconds(4));
  EXPECT_TRUE(absl::IsResourceExhausted(Connected().Score({}, {.timeout = absl::Seconds(3)}).status()));
  EXPECT_EQ(generation_.refusals.calls, 1);
}

TEST_F(CallsTest, ARefusalThatDoesNotSayWhenComesBackAtOnce) {
  RefuseAll(100, grpc::StatusCode::ABORTED);
  generation_.refusals.status = grpc::Status(grpc::StatusCode::ABORTED, "the etag is stale");
  EXPECT_TRUE(absl::IsAborted(Connected().Score({}).status()));
  generation_.refusals.status = Refusal(grpc::StatusCode::FAILED_PRECONDITION, absl::Milliseconds(10));
  EXPECT_TRUE(absl::IsFailedPrecondition(Connected().Score({}).status()));
  EXPECT_EQ(generation_.refusals.calls, 2);
}

TEST_F(CallsTest, ACallWhoseAnswerHadBegunIsNotMadeAgain) {
  RefuseAll(100, grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(absl::IsUnavailable(Connected().Generate(Prompt("late"))->Finish().status()));
  EXPECT_EQ(generation_.refusals.calls, 1);
  EXPECT_TRUE(absl::IsUnavailable(Connected().DownloadSnapshotBytes("snapshots/late").status()));
  EXPECT_EQ(snapshots_.refusals.calls, 1);
}

TEST_F(CallsTest, CancellingEndsTheWaitForTheNextAttempt) {
  RefuseAll(100, grpc::StatusCode::ABORTED, absl::Seconds(100));
  const RetryPolicy patient = {.max_time = absl::Hours(1)};
  Cancellation cancellation;
  std::thread canceller([&] {
    while (generation_.refusals.calls < 1) absl::SleepFor(absl::Milliseconds(1));
    cancellation.Cancel();
  });
  const absl::Status status = Connected().Score({}, {.cancellation = &cancellation, .retry = patient}).status();
  canceller.join();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_EQ(generation_.refusals.calls, 1);

  const auto stream = Connected().Generate(Prompt("x"), {.retry = patient});
  std::thread other([&] {
    while (generation_.refusals.calls < 2) absl::SleepFor(absl::Milliseconds(1));
    stream->Cancel();
  });
  EXPECT_TRUE(absl::IsCancelled(stream->Finish().status()));
  other.join();
}

TEST_F(CallsTest, ThisMachineIsReachedWithoutTheProxy) {
  for (const char* variable : {"grpc_proxy", "https_proxy", "http_proxy"}) {
    setenv(variable, "http://127.0.0.1:1", 1);
    for (const std::string& target :
         {Target(), absl::StrCat("localhost:", port_), absl::StrCat("dns:///localhost:", port_),
          absl::StrCat("ipv4:127.0.0.1:", port_), absl::StrCat("unix:", Path("socket"))}) {
      const auto client = Client::Connect(target);
      ASSERT_TRUE(client.ok()) << variable << ": " << client.status();
      EXPECT_TRUE((*client)->Score({}).ok());
    }
    unsetenv(variable);
  }
}

TEST_F(CallsTest, AnErrorNamesTheProxyAndNotItsPassword) {
  setenv("https_proxy", "http://user:password@127.0.0.1:1/", 1);
  const std::string message(Client::Connect("elsewhere.invalid:50051").status().message());
  EXPECT_THAT(message, AllOf(HasSubstr("elsewhere.invalid:50051"), HasSubstr("the proxy 127.0.0.1:1 of https_proxy"),
                             HasSubstr("add elsewhere.invalid to no_proxy"), Not(HasSubstr("password"))));
}

TEST_F(CallsTest, NoProxyIsHeeded) {
  setenv("http_proxy", "http://proxy:3128", 1);
  EXPECT_THAT(ProxyOnTheWay("server.corp.example:50051"), HasSubstr("proxy:3128 of http_proxy"));
  setenv("no_proxy", "x.y, corp.example", 1);
  EXPECT_EQ(ProxyOnTheWay("server.corp.example:50051"), "");
  EXPECT_NE(ProxyOnTheWay("other.example:50051"), "");
}

TEST(TargetTest, WhatIsThisMachine) {
  for (const char* target :
       {"localhost:50051", "localhost", "LOCALHOST.:1", "127.3.2.1:50051", "[::1]:50051", "::1", "ipv6:[::1]:50051",
        "ipv6:%5B::1%5D:50051", "dns:localhost:50051", "dns://8.8.8.8/localhost:50051", "unix:/run/p.sock",
        "unix:///run/p.sock", "unix-abstract:p", "ipv4:127.0.0.1:1,127.0.0.1:2"}) {
    EXPECT_TRUE(IsLocalTarget(target)) << target;
  }
  for (const char* target : {"ipv4:127.0.0.1:1,10.0.0.1:2", "example.com:50051", "localhost.example.com:50051",
                             "127.0.0.1.example.com:1", "10.0.0.1:50051", "[fe80::1]:50051", "dns:///example.com:50051",
                             "dns://127.0.0.1/example.com:50051", "xds:///localhost", "unix", ""}) {
    EXPECT_FALSE(IsLocalTarget(target)) << target;
  }
}

TEST_F(CallsTest, TheTokenGoesWithEveryCall) {
  EXPECT_TRUE((*Client::Connect(Target(), {.token = kToken}))->Score({}).ok());
  EXPECT_EQ(generation_.authorization, absl::StrCat("Bearer ", kToken));
  EXPECT_TRUE(Connected().Score({}).ok());
  EXPECT_EQ(generation_.authorization, "");
  EXPECT_TRUE((*Client::Connect(absl::StrCat("unix:", Path("socket")), {.token = kToken}))->Score({}).ok());
  EXPECT_EQ(generation_.authorization, absl::StrCat("Bearer ", kToken));
}

TEST_F(CallsTest, WhoIsNotKnownHearsWhetherATokenWasSent) {
  RefuseAll(100, grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_THAT(std::string(Connected().Score({}).status().message()), HasSubstr("no token was sent"));
  const absl::Status refused = (*Client::Connect(Target(), {.token = kToken}))->Score({}).status();
  EXPECT_THAT(refused.ToString(), AllOf(HasSubstr("the token that was sent is not accepted"), Not(HasSubstr(kToken))));
}

TEST(TokenTest, DoesNotCrossANetworkInPlainText) {
  const absl::Duration at_once = absl::ZeroDuration();
  const std::string target = "example.invalid:50051";
  const absl::Status plain = Client::Connect(target, {.token = kToken, .connect_timeout = at_once}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(plain)) << plain;
  EXPECT_THAT(plain.ToString(), AllOf(HasSubstr(target), HasSubstr("not encrypted"), Not(HasSubstr(kToken))));
  EXPECT_TRUE(
      Client::Connect(target, {.token = kToken, .allow_insecure_token = true, .connect_timeout = at_once}).ok());
  EXPECT_TRUE(Client::Connect(target, {.tls = true, .token = kToken, .connect_timeout = at_once}).ok());
}

TEST_F(CallsTest, ATokenFileIsReadWithoutTheWhiteSpaceAround) {
  std::ofstream(Path("token")) << "  " << kToken << "\r\n\n";
  EXPECT_EQ(*ReadTokenFile(Path("token")), kToken);
  for (const char* bad : {"two words", "caf\xc3\xa9", "=", "a=b", "quo\"te", "line\nbreak"}) {
    std::ofstream(Path("token")) << bad;
    const absl::Status status = ReadTokenFile(Path("token")).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << bad;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(Path("token")), HasSubstr("a token consists of")));
  }
  std::ofstream(Path("token")) << "\n";
  EXPECT_THAT(std::string(ReadTokenFile(Path("token")).status().message()), HasSubstr("there is no token in it"));
  EXPECT_TRUE(absl::IsNotFound(ReadTokenFile(Path("nothing")).status()));
  EXPECT_THAT(std::string(ReadTokenFile(folder_).status().message()), HasSubstr(folder_));
}

TEST_F(CallsTest, AFileIsWrittenWholeOrNotAtAll) {
  const int before = Files();
  std::ofstream(Path("file")) << "the old one";
  {
    absl::StatusOr<WholeFile> file = WholeFile::Create(Path("file"));
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE(file->Write("half of").ok());
    EXPECT_EQ(Content(Path("file")), "the old one");
  }
  EXPECT_EQ(Content(Path("file")), "the old one");
  EXPECT_EQ(Files(), before + 1) << "nothing is left behind";

  ASSERT_EQ(symlink(Path("file").c_str(), Path("link").c_str()), 0);
  {
    absl::StatusOr<WholeFile> file = WholeFile::Create(Path("link"));
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE(file->Write("the new ").ok());
    ASSERT_TRUE(file->Write("one").ok());
    ASSERT_TRUE(file->Commit().ok());
  }
  EXPECT_TRUE(std::filesystem::is_symlink(Path("link")));
  EXPECT_EQ(Content(Path("file")), "the new one");
  struct stat info;
  ASSERT_EQ(stat(Path("file").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600);
  EXPECT_EQ(Files(), before + 2);
}

TEST_F(CallsTest, WhatIsNoFileIsWrittenToAsItIs) {
  absl::StatusOr<WholeFile> full = WholeFile::Create("/dev/full");
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_THAT(std::string(full->Write("no room").message()),
              AllOf(HasSubstr("cannot write /dev/full"), HasSubstr("No space left")));
  EXPECT_FALSE(Connected().DownloadSnapshotFile("snapshots/a", "/dev/full").ok());
  EXPECT_TRUE(Connected().DownloadSnapshotFile("snapshots/a", "/dev/null").ok());
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  EXPECT_THAT(std::string(WholeFile::Create(folder_).status().message()), HasSubstr(folder_));
}

}  // namespace
}  // namespace palimpsest::client
