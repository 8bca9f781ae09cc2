// Who calls, and what they may do: two owners, an admin, and those without a name, over a server with a file of owners.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/rpc/testing/test_server.h"

namespace palimpsest {
namespace {

using testing::Ask;
using testing::DetailsOf;
using ::testing::HasSubstr;
using testing::TemporaryFolder;
using testing::TestServer;

// The hashes are those of the owners' names, which are their tokens here: printf %s ann | sha256sum.
constexpr char kOwners[] = R"({
  "version": 1,
  "owners": {
    "ann": {"roles": ["user"], "token_sha256": ["49915e0d7d4b402e3017d010bc1c0e83cac6c797d6c16e66340fe3268693a6a1"]},
    "bob": {"roles": ["user"], "token_sha256": ["81b637d8fcd2c6da6359e6963113a1170de795e4b725b84d1e0b4cfd9ec58ce9"],
            "certificates": ["DNS:bob.example.org"], "share": {"max_sessions": 2}},
    "ops": {"roles": ["admin", "metrics"], "token_sha256": ["a92c36e66a25ee99ff862faa8e87987be6c7cd13c3ee661c400a45b0f1e3b132"]}
  }
})";

// Calls as one owner.
class Caller {
 public:
  Caller(const std::shared_ptr<grpc::ChannelInterface>& channel, std::string token)
      : token_(std::move(token)),
        generation(v1::GenerationService::NewStub(channel)),
        sessions(v1::SessionService::NewStub(channel)),
        snapshots(v1::SnapshotService::NewStub(channel)),
        models(v1::ModelService::NewStub(channel)) {}

  // A unary call: of(&Stub::Method, stub, request).
  template <class Stub, class Request, class Response>
  std::pair<grpc::Status, Response> Unary(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                          Stub& stub, const Request& request) const {
    grpc::ClientContext context;
    Sign(&context);
    std::pair<grpc::Status, Response> result;
    result.first = (stub.*method)(&context, request, &result.second);
    return result;
  }

  std::pair<grpc::Status, v1::Session> NewSession(const std::string& id, const std::string& source = "",
                                                  const std::string& request_id = "") {
    v1::CreateSessionRequest request;
    request.set_session_id(id);
    request.set_request_id(request_id);
    if (source.starts_with("sessions/")) request.set_source_session(source);
    if (source.starts_with("snapshots/")) request.set_source_snapshot(source);
    return Unary(&v1::SessionService::Stub::CreateSession, *sessions, request);
  }
  std::pair<grpc::Status, v1::Session> GetSession(const std::string& name) {
    v1::GetSessionRequest request;
    request.set_name(name);
    return Unary(&v1::SessionService::Stub::GetSession, *sessions, request);
  }
  std::pair<grpc::Status, v1::Snapshot> NewSnapshot(const std::string& session, const std::string& id) {
    v1::CreateSnapshotRequest request;
    request.set_session(session);
    request.set_snapshot_id(id);
    return Unary(&v1::SnapshotService::Stub::CreateSnapshot, *snapshots, request);
  }
  std::pair<grpc::Status, v1::ListSessionsResponse> ListSessions(const std::string& owner = "",
                                                                 const std::string& page_token = "", int32_t size = 0) {
    v1::ListSessionsRequest request;
    request.set_owner(owner);
    request.set_page_token(page_token);
    request.set_page_size(size);
    return Unary(&v1::SessionService::Stub::ListSessions, *sessions, request);
  }
  std::pair<grpc::Status, v1::ListSnapshotsResponse> ListSnapshots(const std::string& owner = "",
                                                                   const std::string& page_token = "",
                                                                   int32_t size = 0) {
    v1::ListSnapshotsRequest request;
    request.set_owner(owner);
    request.set_page_token(page_token);
    request.set_page_size(size);
    return Unary(&v1::SnapshotService::Stub::ListSnapshots, *snapshots, request);
  }
  grpc::Status Generate(const std::string& session, const std::string& text = "hello") {
    grpc::ClientContext context;
    Sign(&context);
    v1::GenerateRequest request = Ask(text, 2);
    request.set_session(session);
    const auto reader = generation->Generate(&context, request);
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
    }
    return reader->Finish();
  }
  std::pair<grpc::Status, std::string> Download(const std::string& name) {
    grpc::ClientContext context;
    Sign(&context);
    v1::DownloadSnapshotRequest request;
    request.set_name(name);
    const auto reader = snapshots->DownloadSnapshot(&context, request);
    std::string bytes;
    v1::DownloadSnapshotResponse message;
    while (reader->Read(&message)) bytes += message.data();
    return {reader->Finish(), bytes};
  }
  std::pair<grpc::Status, v1::Snapshot> Upload(const std::string& bytes, const std::string& id) {
    grpc::ClientContext context;
    Sign(&context);
    std::pair<grpc::Status, v1::Snapshot> result;
    const auto writer = snapshots->UploadSnapshot(&context, &result.second);
    v1::UploadSnapshotRequest request;
    request.set_snapshot_id(id);
    request.set_data(bytes);
    writer->Write(request);
    writer->WritesDone();
    result.first = writer->Finish();
    return result;
  }

 private:
  void Sign(grpc::ClientContext* context) const {
    if (!token_.empty()) context->AddMetadata("authorization", absl::StrCat("Bearer ", token_));
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  }

  const std::string token_;

 public:
  const std::unique_ptr<v1::GenerationService::Stub> generation;
  const std::unique_ptr<v1::SessionService::Stub> sessions;
  const std::unique_ptr<v1::SnapshotService::Stub> snapshots;
  const std::unique_ptr<v1::ModelService::Stub> models;
};

class OwnersTest : public ::testing::Test {
 protected:
  OwnersTest() { server_.SetMetricsToken("ops"); }

  static std::string Write(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  TemporaryFolder folder_;
  const std::string file_ = Write(absl::StrCat(folder_.path(), "/owners.json"), kOwners);
  TestServer server_{[this](ServerOptions& options) { options.auth_tokens_file = file_; }};
  Caller ann_{server_.channel(), "ann"};
  Caller bob_{server_.channel(), "bob"};
  Caller ops_{server_.channel(), "ops"};
  Caller nobody_{server_.channel(), ""};
  Caller stranger_{server_.channel(), "stranger"};
};

// A call of any method, by its path, with an empty request.
grpc::Status CallByPath(const std::shared_ptr<grpc::Channel>& channel, const std::string& path,
                        const std::string& authorization) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  if (!authorization.empty()) context.AddMetadata("authorization", authorization);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareCall(&context, path, &queue);
  const auto next = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  call->StartCall(nullptr);
  next();
  grpc::Slice empty("");
  call->WriteLast(grpc::ByteBuffer(&empty, 1), grpc::WriteOptions(), nullptr);
  next();
  grpc::ByteBuffer answer;
  do {
    call->Read(&answer, nullptr);
  } while (next());
  grpc::Status status;
  call->Finish(&status, nullptr);
  next();
  queue.Shutdown();
  return status;
}

// Every method of every service of the API, from the files that describe it.
std::vector<std::string> AllMethods() {
  std::vector<std::string> paths;
  const std::string folder = absl::StrCat(PALIMPSEST_SOURCE_DIR, "/proto/palimpsest/v1");
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    if (file.path().extension() != ".proto") continue;
    const auto* described = google::protobuf::DescriptorPool::generated_pool()->FindFileByName(
        absl::StrCat("palimpsest/v1/", file.path().filename().string()));
    EXPECT_NE(described, nullptr) << file.path();
    for (int s = 0; described != nullptr && s < described->service_count(); ++s) {
      const auto* service = described->service(s);
      for (int m = 0; m < service->method_count(); ++m) {
        paths.push_back(absl::StrCat("/", service->full_name(), "/", service->method(m)->name()));
      }
    }
  }
  return paths;
}

TEST_F(OwnersTest, EveryMethodAsksWhoCalls) {
  const std::vector<std::string> methods = AllMethods();
  EXPECT_GE(methods.size(), 20);
  for (const std::string& method : methods) {
    for (const char* authorization : {"", "Bearer stranger", "Basic ann", "ann"}) {
      const grpc::Status status = CallByPath(server_.channel(), method, authorization);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << method << ": " << status.error_message();
      EXPECT_EQ(DetailsOf(status).reason, "CALLER_UNKNOWN") << method;
    }
    EXPECT_NE(CallByPath(server_.channel(), method, "Bearer ann").error_code(), grpc::StatusCode::UNAUTHENTICATED);
  }
  EXPECT_TRUE(CallByPath(server_.channel(), "/grpc.health.v1.Health/Check", "").ok());
}

TEST_F(OwnersTest, RolesSayWhatAMethodIsFor) {
  v1::LoadModelRequest load;
  load.set_model_id("mine");
  load.set_path("tiny");
  v1::UnloadModelRequest unload;
  unload.set_name("models/mine");
  const auto load_as = [&](Caller& caller) {
    return caller.Unary(&v1::ModelService::Stub::LoadModel, *caller.models, load).first;
  };
  const auto unload_as = [&](Caller& caller) {
    return caller.Unary(&v1::ModelService::Stub::UnloadModel, *caller.models, unload).first;
  };
  for (const grpc::Status& status : {load_as(ann_), unload_as(ann_)}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
    EXPECT_EQ(DetailsOf(status).reason, "ROLE_MISSING");
    EXPECT_THAT(status.error_message(), HasSubstr("the role admin"));
  }
  EXPECT_TRUE(load_as(ops_).ok());
  EXPECT_TRUE(ann_.Unary(&v1::ModelService::Stub::ListModels, *ann_.models, {}).first.ok());
  EXPECT_TRUE(ops_.Unary(&v1::ModelService::Stub::ListModels, *ops_.models, {}).first.ok());
  EXPECT_TRUE(unload_as(ops_).ok());

  const grpc::Status status = ops_.NewSession("admins").first;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(status.error_message(), HasSubstr("the role user"));
  EXPECT_EQ(ops_.ListSessions().first.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(ops_.Generate("").error_code(), grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(OwnersTest, TwoOwnersMayUseOneNameAndNeitherSeesTheOthers) {
  ASSERT_TRUE(ann_.NewSession("talk").first.ok());
  ASSERT_TRUE(ann_.Generate("sessions/talk", "one two three").ok());
  const auto theirs = bob_.NewSession("talk");
  ASSERT_TRUE(theirs.first.ok()) << theirs.first.error_message();
  EXPECT_EQ(theirs.second.owner(), "bob");
  EXPECT_EQ(bob_.GetSession("sessions/talk").second.position(), 0);
  const v1::Session mine = ann_.GetSession("sessions/talk").second;
  EXPECT_EQ(mine.owner(), "ann");
  EXPECT_GT(mine.position(), 0);

  ASSERT_TRUE(ann_.NewSnapshot("sessions/talk", "kept").first.ok());
  ASSERT_TRUE(bob_.NewSnapshot("sessions/talk", "kept").first.ok());
  const auto [status, bytes] = ann_.Download("snapshots/kept");
  ASSERT_TRUE(status.ok());
  EXPECT_NE(bytes, bob_.Download("snapshots/kept").second);

  v1::DeleteSessionRequest gone;
  gone.set_name("sessions/talk");
  ASSERT_TRUE(bob_.Unary(&v1::SessionService::Stub::DeleteSession, *bob_.sessions, gone).first.ok());
  EXPECT_TRUE(ann_.GetSession("sessions/talk").first.ok());
}

// Each method that names a session or a snapshot, in each field that can: what is not there, to these two.
TEST_F(OwnersTest, WhatIsAnothersIsNotFound) {
  ASSERT_TRUE(ann_.NewSession("secret").first.ok());
  ASSERT_TRUE(ann_.Generate("sessions/secret").ok());
  ASSERT_TRUE(ann_.NewSnapshot("sessions/secret", "secret").first.ok());
  const v1::Session before = ann_.GetSession("sessions/secret").second;

  const std::pair<const char*, std::function<grpc::Status(Caller&, const std::string&)>> calls[] = {
      {"Generate", [](Caller& c, const std::string& id) { return c.Generate("sessions/" + id); }},
      {"Score",
       [](Caller& c, const std::string& id) {
         v1::ScoreRequest request;
         request.set_session("sessions/" + id);
         request.set_text("hello");
         return c.Unary(&v1::GenerationService::Stub::Score, *c.generation, request).first;
       }},
      {"CreateSession from a session",
       [](Caller& c, const std::string& id) { return c.NewSession("", "sessions/" + id).first; }},
      {"CreateSession from a snapshot",
       [](Caller& c, const std::string& id) { return c.NewSession("", "snapshots/" + id).first; }},
      {"GetSession", [](Caller& c, const std::string& id) { return c.GetSession("sessions/" + id).first; }},
      {"UpdateSession",
       [](Caller& c, const std::string& id) {
         v1::UpdateSessionRequest request;
         request.mutable_session()->set_name("sessions/" + id);
         request.mutable_session()->mutable_ttl()->set_seconds(60);
         return c.Unary(&v1::SessionService::Stub::UpdateSession, *c.sessions, request).first;
       }},
      {"ForkSession",
       [](Caller& c, const std::string& id) {
         v1::ForkSessionRequest request;
         request.set_name("sessions/" + id);
         return c.Unary(&v1::SessionService::Stub::ForkSession, *c.sessions, request).first;
       }},
      {"InterruptSession",
       [](Caller& c, const std::string& id) {
         v1::InterruptSessionRequest request;
         request.set_name("sessions/" + id);
         return c.Unary(&v1::SessionService::Stub::InterruptSession, *c.sessions, request).first;
       }},
      {"DeleteSession by force",
       [](Caller& c, const std::string& id) {
         v1::DeleteSessionRequest request;
         request.set_name("sessions/" + id);
         request.set_force(true);
         return c.Unary(&v1::SessionService::Stub::DeleteSession, *c.sessions, request).first;
       }},
      {"DeleteSession",
       [](Caller& c, const std::string& id) {
         v1::DeleteSessionRequest request;
         request.set_name("sessions/" + id);
         request.set_etag("1");
         return c.Unary(&v1::SessionService::Stub::DeleteSession, *c.sessions, request).first;
       }},
      {"CreateSnapshot", [](Caller& c, const std::string& id) { return c.NewSnapshot("sessions/" + id, "").first; }},
      {"GetSnapshot",
       [](Caller& c, const std::string& id) {
         v1::GetSnapshotRequest request;
         request.set_name("snapshots/" + id);
         return c.Unary(&v1::SnapshotService::Stub::GetSnapshot, *c.snapshots, request).first;
       }},
      {"DeleteSnapshot",
       [](Caller& c, const std::string& id) {
         v1::DeleteSnapshotRequest request;
         request.set_name("snapshots/" + id);
         return c.Unary(&v1::SnapshotService::Stub::DeleteSnapshot, *c.snapshots, request).first;
       }},
      {"DownloadSnapshot", [](Caller& c, const std::string& id) { return c.Download("snapshots/" + id).first; }},
  };
  for (const auto& [name, call] : calls) {
    const grpc::Status theirs = call(bob_, "secret");
    const grpc::Status nobodys = call(bob_, "nobodys");
    EXPECT_EQ(theirs.error_code(), grpc::StatusCode::NOT_FOUND) << name << ": " << theirs.error_message();
    // Not even the words tell that it is there.
    EXPECT_EQ(absl::StrReplaceAll(theirs.error_message(), {{"secret", "nobodys"}}), nobodys.error_message()) << name;
  }
  EXPECT_EQ(ann_.GetSession("sessions/secret").second.etag(), before.etag());
  EXPECT_TRUE(ann_.Download("snapshots/secret").first.ok());
}

TEST_F(OwnersTest, ListsHaveOnesOwnOrForAdminsEverybodys) {
  for (const char* id : {"a", "b", "c"}) ASSERT_TRUE(ann_.NewSession(id).first.ok());
  for (const char* id : {"a", "z"}) ASSERT_TRUE(bob_.NewSession(id).first.ok());
  for (const char* id : {"a", "b"}) ASSERT_TRUE(ann_.NewSnapshot("sessions/a", id).first.ok());
  ASSERT_TRUE(bob_.NewSnapshot("sessions/a", "a").first.ok());

  EXPECT_EQ(ann_.ListSessions().second.sessions_size(), 3);
  EXPECT_EQ(bob_.ListSessions().second.sessions_size(), 2);
  EXPECT_EQ(ann_.ListSnapshots().second.snapshots_size(), 2);
  EXPECT_EQ(bob_.ListSnapshots().second.snapshots_size(), 1);
  EXPECT_EQ(ann_.ListSessions("-").first.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(ann_.ListSnapshots("-").first.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(ann_.ListSessions("bob").first.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ann_.ListSnapshots("bob").first.error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  std::vector<std::string> found;
  std::string page;
  do {
    const auto [status, list] = ops_.ListSessions("-", page, 2);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_LE(list.sessions_size(), 2);
    for (const v1::Session& session : list.sessions()) {
      found.push_back(absl::StrCat(session.owner(), "/", session.name()));
    }
    page = list.next_page_token();
  } while (!page.empty());
  EXPECT_THAT(found, ::testing::ElementsAre("ann/sessions/a", "ann/sessions/b", "ann/sessions/c", "bob/sessions/a",
                                            "bob/sessions/z"));
  found.clear();
  do {
    const auto [status, list] = ops_.ListSnapshots("-", page, 1);
    ASSERT_TRUE(status.ok()) << status.error_message();
    for (const v1::Snapshot& snapshot : list.snapshots()) {
      found.push_back(absl::StrCat(snapshot.owner(), "/", snapshot.name()));
    }
    page = list.next_page_token();
  } while (!page.empty());
  EXPECT_THAT(found, ::testing::ElementsAre("ann/snapshots/a", "ann/snapshots/b", "bob/snapshots/a"));
}

TEST_F(OwnersTest, APageTokenIsOfTheOwnerAndTheListThatItWasGivenTo) {
  for (const char* id : {"a", "b"}) {
    ASSERT_TRUE(ann_.NewSession(id).first.ok());
    ASSERT_TRUE(bob_.NewSession(id).first.ok());
    ASSERT_TRUE(ann_.NewSnapshot("sessions/a", id).first.ok());
    ASSERT_TRUE(bob_.NewSnapshot("sessions/a", id).first.ok());
  }
  const std::string anns = ann_.ListSessions("", "", 1).second.next_page_token();
  const std::string everybodys = ops_.ListSessions("-", "", 1).second.next_page_token();
  ASSERT_FALSE(anns.empty() || everybodys.empty());
  EXPECT_TRUE(ann_.ListSessions("", anns, 1).first.ok());
  EXPECT_EQ(bob_.ListSessions("", anns, 1).first.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(bob_.ListSessions("", everybodys, 1).first.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ops_.ListSessions("-", anns, 1).first.error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  const std::string kept = ann_.ListSnapshots("", "", 1).second.next_page_token();
  ASSERT_FALSE(kept.empty());
  EXPECT_EQ(bob_.ListSnapshots("", kept, 1).first.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ann_.ListSessions("", kept, 1).first.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(OwnersTest, RequestIdsAreOnesOwn) {
  constexpr char kId[] = "0b8c1f6e-2d3a-4b5c-8d7e-9f0a1b2c3d4e";
  const auto first = ann_.NewSession("", "", kId);
  const auto again = ann_.NewSession("", "", kId);
  const auto other = bob_.NewSession("", "", kId);
  ASSERT_TRUE(first.first.ok() && again.first.ok() && other.first.ok());
  EXPECT_EQ(first.second.name(), again.second.name());
  EXPECT_NE(first.second.name(), other.second.name());
  EXPECT_EQ(other.second.owner(), "bob");
}

TEST_F(OwnersTest, WhatIsUploadedIsTheCallers) {
  ASSERT_TRUE(ann_.NewSession("talk").first.ok());
  ASSERT_TRUE(ann_.NewSnapshot("sessions/talk", "mine").first.ok());
  const auto [status, bytes] = ann_.Download("snapshots/mine");
  ASSERT_TRUE(status.ok());
  const auto theirs = bob_.Upload(bytes, "moved");
  ASSERT_TRUE(theirs.first.ok()) << theirs.first.error_message();
  EXPECT_EQ(theirs.second.owner(), "bob");
  EXPECT_EQ(ann_.Download("snapshots/moved").first.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(bob_.NewSession("", "snapshots/moved").first.ok());
}

TEST_F(OwnersTest, AShareBoundsItsOwnerOnly) {
  ASSERT_TRUE(bob_.NewSession("a").first.ok());
  ASSERT_TRUE(bob_.NewSession("b").first.ok());
  const grpc::Status status = bob_.NewSession("c").first;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_GT(DetailsOf(status).retry_seconds, 0);
  EXPECT_THAT(status.error_message(), HasSubstr("bob"));
  for (const char* id : {"a", "b", "c", "d"}) EXPECT_TRUE(ann_.NewSession(id).first.ok());
}

TEST_F(OwnersTest, AFileThatChangesCountsForTheNextCall) {
  const auto await = [&](const std::function<bool()>& is_so) {
    const absl::Time give_up = absl::Now() + absl::Seconds(30);
    while (!is_so() && absl::Now() < give_up) absl::SleepFor(absl::Milliseconds(20));
    return is_so();
  };
  ASSERT_TRUE(ann_.NewSession("talk").first.ok());
  Write(file_, "{broken");
  EXPECT_EQ(server_.AwaitMetric("palimpsest_owners_file_loads_total{code=\"INVALID_ARGUMENT\"}", 1), 1);
  EXPECT_TRUE(ann_.GetSession("sessions/talk").first.ok());

  // Ann's token is withdrawn, and somebody else has her place.
  Write(file_, absl::StrReplaceAll(kOwners, {{"\"ann\": {", "\"cid\": {"}, {"4991", "0000"}}));
  EXPECT_TRUE(
      await([&] { return ann_.GetSession("sessions/talk").first.error_code() == grpc::StatusCode::UNAUTHENTICATED; }));
  EXPECT_TRUE(bob_.NewSession("talk").first.ok());
  // What she has is still there when she comes back.
  Write(file_, kOwners);
  EXPECT_TRUE(await([&] { return ann_.GetSession("sessions/talk").first.ok(); }));
}

TEST_F(OwnersTest, MetricsByOwnerNameThoseOfTheFile) {
  ASSERT_TRUE(ann_.NewSession("talk").first.ok());
  ASSERT_TRUE(ann_.Generate("sessions/talk").ok());
  EXPECT_FALSE(stranger_.NewSession("talk").first.ok());
  EXPECT_EQ(server_.AwaitMetric("palimpsest_owner_requests_total{code=\"OK\",owner=\"ann\"}", 2), 2);
  EXPECT_EQ(server_.Metric("palimpsest_owner_generated_tokens_total{owner=\"ann\"}"), 2);
  EXPECT_EQ(server_.Metric("palimpsest_owner_sessions{owner=\"ann\"}"), 1);
  EXPECT_GT(server_.Metric("palimpsest_owner_state_bytes{owner=\"ann\"}"), 0);
  EXPECT_TRUE(std::isnan(server_.Metric("palimpsest_owner_requests_total{code=\"OK\",owner=\"bob\"}")));
}

// Certificates of one authority, by the openssl library's own tool in the test's folder.
class CertificateTest : public ::testing::Test {
 protected:
  static std::string Text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  void Run(const std::string& command) {
    const std::string whole = absl::StrCat("cd ", folder_.path(), " && { ", command, "; } >/dev/null 2>&1");
    ASSERT_EQ(std::system(whole.c_str()), 0) << "needs the openssl tool: ./dev setup: " << command;
  }
  void SetUp() override {
    Run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=authority "
        "-keyout ca.key -out ca.pem");
    Issue("server", "/CN=localhost", "DNS:localhost");
  }
  void Issue(const std::string& name, const std::string& subject, const std::string& alternative) {
    const std::string extension =
        alternative.empty() ? "" : absl::StrCat("printf 'subjectAltName=", alternative, "' > ext; ");
    Run(absl::StrCat(extension, "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj '", subject,
                     "' -keyout ", name, ".key -out ", name, ".csr && openssl x509 -req -in ", name,
                     ".csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out ", name, ".pem",
                     alternative.empty() ? "" : " -extfile ext"));
  }
  std::function<void(ServerOptions&)> Mutual(const std::function<void(ServerOptions&)>& change = {}) {
    return [this, change](ServerOptions& options) {
      options.tls_certificate_file = folder_.path() + "/server.pem";
      options.tls_key_file = folder_.path() + "/server.key";
      options.tls_client_ca_file = folder_.path() + "/ca.pem";
      if (change) change(options);
    };
  }
  std::shared_ptr<grpc::Channel> Connect(TestServer& server, const std::string& name) {
    grpc::SslCredentialsOptions mine;
    mine.pem_root_certs = Text(folder_.path() + "/ca.pem");
    mine.pem_cert_chain = Text(absl::StrCat(folder_.path(), "/", name, ".pem"));
    mine.pem_private_key = Text(absl::StrCat(folder_.path(), "/", name, ".key"));
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(absl::StrCat("localhost:", server.server().port()), grpc::SslCredentials(mine),
                                     arguments);
  }

  TemporaryFolder folder_;
};

TEST_F(CertificateTest, EachIsAnOwnerWhereThereIsNoFile) {
  Issue("ann", "/CN=ann", "");
  Issue("bob", "/CN=ann", "DNS:Bob.example.org,URI:spiffe://example.org/bob");
  Issue("ops", "/CN=ops", "");
  TestServer server(Mutual([](ServerOptions& options) { options.admin_identities = {"CN:ops"}; }));
  Caller ann(Connect(server, "ann"), "");
  Caller bob(Connect(server, "bob"), "");
  Caller ops(Connect(server, "ops"), "");
  const auto made = ann.NewSession("talk");
  ASSERT_TRUE(made.first.ok()) << made.first.error_message();
  EXPECT_EQ(made.second.owner(), "cn-ann");
  // By its URI, though its common name is that of the other.
  EXPECT_EQ(bob.GetSession("sessions/talk").first.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(bob.NewSession("talk").second.owner(), ::testing::StartsWith("uri-spiffe---example-org-bob-"));
  EXPECT_EQ(ann.ListSessions("-").first.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(ops.ListSessions("-").second.sessions_size(), 2);
  EXPECT_TRUE(ops.NewSession("talk").first.ok());
}

TEST_F(CertificateTest, TheFileSaysWhoseItIsAndATokenGoesBeforeIt) {
  Issue("bob", "/CN=anything", "DNS:bob.example.org");
  Issue("else", "/CN=else", "");
  const std::string file = folder_.path() + "/owners.json";
  std::ofstream(file) << kOwners;
  TestServer server(Mutual([&](ServerOptions& options) { options.auth_tokens_file = file; }));
  Caller bob(Connect(server, "bob"), "");
  EXPECT_EQ(bob.NewSession("talk").second.owner(), "bob");
  Caller gateway(Connect(server, "bob"), "ann");
  EXPECT_EQ(gateway.NewSession("talk").second.owner(), "ann");
  Caller wrong(Connect(server, "bob"), "stranger");
  EXPECT_EQ(wrong.NewSession("").first.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  Caller unnamed(Connect(server, "else"), "");
  const grpc::Status status = unnamed.NewSession("").first;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_THAT(status.error_message(), HasSubstr("CN:else"));
}

TEST(OwnersAtTheStart, AWrongFileIsRefused) {
  TemporaryFolder folder;
  ServerOptions options = TestServer::DefaultOptions(folder.path());
  options.auth_tokens_file = folder.path() + "/owners.json";
  std::ofstream(options.auth_tokens_file) << R"({"version": 1, "owners": {"a": {"role": ["user"]}}})";
  const auto server = Server::Start(options);
  ASSERT_FALSE(server.ok());
  EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(server.status().message()), HasSubstr("owners.a: has the unknown key 'role'"));
}

}  // namespace
}  // namespace palimpsest
