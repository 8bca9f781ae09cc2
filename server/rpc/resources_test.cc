// SessionService, SnapshotService and ModelService over real gRPC.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/model/testing/random_checkpoint.h"
#include "server/rpc/testing/test_server.h"

namespace palimpsest {
namespace {

using ::palimpsest::testing::Ask;
using ::palimpsest::testing::DetailsOf;
using ::palimpsest::testing::Reply;
using ::palimpsest::testing::TestServer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kUuid[] = "8c2d7d9a-3f0e-4b65-9a51-5a7d4be1f2c3";

class ResourcesTest : public ::testing::Test {
 protected:
  // Says something in a session, so that its state is one of its own.
  void Say(const std::string& session, const std::string& text) {
    v1::GenerateRequest request = Ask(text, 4);
    request.set_session(session);
    const Reply reply = server_.Generate(request);
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  }
  // What a session would say next. It is changed by that.
  std::vector<int32_t> Next(const std::string& session) {
    v1::GenerateRequest request = Ask("", 12);
    request.clear_prompt();
    request.set_session(session);
    const Reply reply = server_.Generate(request);
    EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
    return reply.ids();
  }
  grpc::Status Create(const v1::CreateSessionRequest& request, v1::Session* session) {
    grpc::ClientContext context;
    return server_.sessions().CreateSession(&context, request, session);
  }
  grpc::Status Fork(const v1::ForkSessionRequest& request, v1::ForkSessionResponse* response) {
    grpc::ClientContext context;
    return server_.sessions().ForkSession(&context, request, response);
  }
  grpc::Status Delete(const std::string& name, const std::string& etag = "") {
    grpc::ClientContext context;
    v1::DeleteSessionRequest request;
    request.set_name(name);
    request.set_etag(etag);
    google::protobuf::Empty empty;
    return server_.sessions().DeleteSession(&context, request, &empty);
  }
  grpc::Status Load(const std::string& id, const std::string& path, v1::Model* model) {
    grpc::ClientContext context;
    v1::LoadModelRequest request;
    request.set_model_id(id);
    request.set_path(path);
    return server_.models().LoadModel(&context, request, model);
  }
  grpc::Status Unload(const std::string& name) {
    grpc::ClientContext context;
    v1::UnloadModelRequest request;
    request.set_name(name);
    google::protobuf::Empty empty;
    return server_.models().UnloadModel(&context, request, &empty);
  }
  grpc::Status GetModel(const std::string& name, v1::Model* model) {
    grpc::ClientContext context;
    v1::GetModelRequest request;
    request.set_name(name);
    return server_.models().GetModel(&context, request, model);
  }

  TestServer server_;
};

TEST_F(ResourcesTest, ANewSessionIsEmptyIdleAndNamed) {
  v1::CreateSessionRequest request;
  request.set_session_id("mine");
  request.mutable_session()->mutable_ttl()->set_seconds(90);
  v1::Session session;
  ASSERT_TRUE(Create(request, &session).ok());
  EXPECT_EQ(session.name(), "sessions/mine");
  EXPECT_EQ(session.model(), "models/tiny");
  EXPECT_EQ(session.condition(), v1::Session::CONDITION_IDLE);
  EXPECT_EQ(session.position(), 0);
  EXPECT_GT(session.state_bytes(), 0);
  EXPECT_EQ(session.ttl().seconds(), 90);
  EXPECT_EQ(session.expire_time().seconds() - session.create_time().seconds(), 90);
  EXPECT_FALSE(session.etag().empty());

  const v1::Session made = server_.GetSession(server_.NewSession());
  EXPECT_THAT(made.name(), ::testing::MatchesRegex("sessions/[a-z][a-z0-9-]+"));
  EXPECT_EQ(made.ttl().seconds(), 3600);  // the server's default
}

TEST_F(ResourcesTest, ATtlOfZeroNeverExpiresAndAShortOneDoes) {
  v1::CreateSessionRequest request;
  request.set_session_id("forever");
  request.mutable_session()->mutable_ttl();
  v1::Session session;
  ASSERT_TRUE(Create(request, &session).ok());
  EXPECT_FALSE(session.has_expire_time());
  request.set_session_id("brief");
  request.mutable_session()->mutable_ttl()->set_seconds(1);
  ASSERT_TRUE(Create(request, &session).ok());
  // The sweep takes it away though nobody asks for it.
  EXPECT_EQ(server_.AwaitMetric("palimpsest_sessions{model=\"tiny\",condition=\"idle\"}", 1), 1);
  EXPECT_EQ(server_.GetSession("sessions/forever").name(), "sessions/forever");
}

TEST_F(ResourcesTest, ACopyOfASessionGoesOnAsTheOriginalDoes) {
  const std::string original = server_.NewSession();
  Say(original, "once upon a time");
  v1::CreateSessionRequest request;
  request.set_source_session(original);
  v1::Session copy;
  ASSERT_TRUE(Create(request, &copy).ok());
  EXPECT_EQ(copy.position(), 20);
  EXPECT_EQ(Next(original), Next(copy.name()));
  Say(copy.name(), "something else");
  EXPECT_NE(Next(original), Next(copy.name()));
}

TEST_F(ResourcesTest, ForksAreManyAtOnceAndIndependent) {
  const std::string parent = server_.NewSession();
  Say(parent, "once upon a time");
  v1::ForkSessionRequest request;
  request.set_name(parent);
  request.set_count(3);
  v1::ForkSessionResponse response;
  ASSERT_TRUE(Fork(request, &response).ok());
  ASSERT_THAT(response.sessions(), SizeIs(3));
  Say(response.sessions(2).name(), "noise");
  const std::vector<int32_t> expected = Next(parent);
  EXPECT_EQ(Next(response.sessions(0).name()), expected);
  EXPECT_EQ(Next(response.sessions(1).name()), expected);
  EXPECT_NE(Next(response.sessions(2).name()), expected);
}

TEST_F(ResourcesTest, ForksTakeTheIdsGivenAndOneWithoutAnyNumber) {
  const std::string parent = server_.NewSession();
  v1::ForkSessionRequest request;
  request.set_name(parent);
  request.add_session_ids("left");
  request.add_session_ids("right");
  request.mutable_ttl()->set_seconds(30);
  v1::ForkSessionResponse response;
  ASSERT_TRUE(Fork(request, &response).ok());
  ASSERT_THAT(response.sessions(), SizeIs(2));
  EXPECT_EQ(response.sessions(0).name(), "sessions/left");
  EXPECT_EQ(response.sessions(1).name(), "sessions/right");
  EXPECT_EQ(response.sessions(1).ttl().seconds(), 30);
  request.clear_session_ids();
  ASSERT_TRUE(Fork(request, &response).ok());
  EXPECT_THAT(response.sessions(), SizeIs(1));
}

TEST_F(ResourcesTest, TheSameRequestIdGivesTheSameAnswerAndDoesNothingASecondTime) {
  v1::CreateSessionRequest request;
  request.set_request_id(kUuid);
  v1::Session first;
  v1::Session second;
  ASSERT_TRUE(Create(request, &first).ok());
  ASSERT_TRUE(Create(request, &second).ok());
  EXPECT_EQ(first.SerializeAsString(), second.SerializeAsString());

  request.set_session_id("another");
  const grpc::Status other = Create(request, &second);
  EXPECT_EQ(other.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(other.error_message(), HasSubstr("came with another request within the last ten minutes"));

  v1::ForkSessionRequest fork;
  fork.set_name(first.name());
  fork.set_count(2);
  fork.set_request_id(kUuid);
  v1::ForkSessionResponse forks;
  v1::ForkSessionResponse again;
  ASSERT_TRUE(Fork(fork, &forks).ok());
  ASSERT_TRUE(Fork(fork, &again).ok());
  EXPECT_EQ(forks.SerializeAsString(), again.SerializeAsString());
  EXPECT_EQ(server_.Metric("palimpsest_sessions{model=\"tiny\",condition=\"idle\"}"), 3);
}

TEST_F(ResourcesTest, ListsComeInPagesByNameAndEndWithAnEmptyToken) {
  std::vector<std::string> names;
  for (int i = 0; i < 7; ++i) names.push_back(server_.NewSession(absl::StrCat("s", i)));
  std::vector<std::string> listed;
  std::string token;
  int pages = 0;
  do {
    grpc::ClientContext context;
    v1::ListSessionsRequest request;
    request.set_page_size(3);
    request.set_page_token(token);
    v1::ListSessionsResponse response;
    ASSERT_TRUE(server_.sessions().ListSessions(&context, request, &response).ok());
    for (const auto& session : response.sessions()) listed.push_back(session.name());
    token = response.next_page_token();
    ++pages;
  } while (!token.empty());
  EXPECT_EQ(listed, names);
  EXPECT_EQ(pages, 3);
}

TEST_F(ResourcesTest, ATokenOfOneListIsNotTakenForAnother) {
  server_.NewSession("a1");
  server_.NewSession("a2");
  grpc::ClientContext context;
  v1::ListSessionsRequest request;
  request.set_page_size(1);
  v1::ListSessionsResponse response;
  ASSERT_TRUE(server_.sessions().ListSessions(&context, request, &response).ok());
  grpc::ClientContext other;
  v1::ListSnapshotsRequest snapshots;
  snapshots.set_page_token(response.next_page_token());
  v1::ListSnapshotsResponse none;
  EXPECT_EQ(server_.snapshots().ListSnapshots(&other, snapshots, &none).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ResourcesTest, UpdateChangesTheTtlIfTheEtagIsCurrent) {
  const v1::Session before = server_.GetSession(server_.NewSession());
  v1::UpdateSessionRequest request;
  *request.mutable_session() = before;
  request.mutable_session()->mutable_ttl()->set_seconds(7);
  request.mutable_update_mask()->add_paths("ttl");
  v1::Session after;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(server_.sessions().UpdateSession(&context, request, &after).ok());
  }
  EXPECT_EQ(after.ttl().seconds(), 7);
  EXPECT_NE(after.etag(), before.etag());
  grpc::ClientContext context;
  const grpc::Status stale = server_.sessions().UpdateSession(&context, request, &after);
  EXPECT_EQ(stale.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(DetailsOf(stale).reason, "ETAG_STALE");
  EXPECT_EQ(DetailsOf(stale).retry_seconds, -1);
}

TEST_F(ResourcesTest, UpdateWithoutAnythingToChangeAnswersTheSession) {
  const v1::Session before = server_.GetSession(server_.NewSession());
  grpc::ClientContext context;
  v1::UpdateSessionRequest request;
  request.mutable_session()->set_name(before.name());
  request.mutable_session()->set_etag(before.etag());
  v1::Session after;
  ASSERT_TRUE(server_.sessions().UpdateSession(&context, request, &after).ok());
  EXPECT_EQ(after.etag(), before.etag());
}

TEST_F(ResourcesTest, ADeletedSessionIsGoneAndAnActiveOneCannotBeDeleted) {
  const std::string session = server_.NewSession();
  EXPECT_TRUE(Delete(session, server_.GetSession(session).etag()).ok());
  EXPECT_EQ(Delete(session).error_code(), grpc::StatusCode::NOT_FOUND);

  const std::string busy = server_.NewSession();
  v1::GenerateRequest request = Ask("hello", 60000);
  request.set_session(busy);
  grpc::ClientContext context;
  const auto reader = server_.generation().Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  const grpc::Status status = Delete(busy);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(DetailsOf(status).reason, "SESSION_BUSY");
  context.TryCancel();
  reader->Finish();
}

TEST_F(ResourcesTest, ASnapshotDownloadedAndUploadedElsewhereGoesOnWithTheSameBytes) {
  const std::string session = server_.NewSession();
  Say(session, "once upon a time");
  const std::string name = server_.NewSnapshot(session);
  grpc::ClientContext context;
  v1::GetSnapshotRequest get;
  get.set_name(name);
  v1::Snapshot snapshot;
  ASSERT_TRUE(server_.snapshots().GetSnapshot(&context, get, &snapshot).ok());
  EXPECT_EQ(snapshot.position(), 20);
  EXPECT_EQ(snapshot.model(), "models/tiny");
  EXPECT_THAT(snapshot.state_digest(), SizeIs(64));
  const auto [status, bytes] = server_.Download(name);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(bytes.size(), snapshot.size_bytes());

  TestServer elsewhere;
  v1::UploadSnapshotRequest first;
  first.set_snapshot_id("moved");
  first.set_model("models/tiny");
  first.mutable_snapshot()->mutable_ttl()->set_seconds(100);
  const auto [uploaded, there] = elsewhere.Upload(bytes, first);
  ASSERT_TRUE(uploaded.ok()) << uploaded.error_message();
  EXPECT_EQ(there.name(), "snapshots/moved");
  EXPECT_EQ(there.state_digest(), snapshot.state_digest());
  EXPECT_EQ(there.expire_time().seconds() - there.create_time().seconds(), 100);
  EXPECT_EQ(elsewhere.Download("snapshots/moved").second, bytes);

  grpc::ClientContext create_context;
  v1::CreateSessionRequest create;
  create.set_source_snapshot("snapshots/moved");
  v1::Session moved;
  ASSERT_TRUE(elsewhere.sessions().CreateSession(&create_context, create, &moved).ok());
  v1::GenerateRequest request = Ask("", 12);
  request.clear_prompt();
  request.set_session(moved.name());
  EXPECT_EQ(elsewhere.Generate(request).ids(), Next(session));
}

TEST_F(ResourcesTest, ALongSnapshotComesInPiecesOfAMebibyte) {
  testing::RandomCheckpointSpec spec;
  spec.hidden = 64;
  spec.layers = 4;
  spec.heads = spec.value_heads = 4;
  spec.key_dim = spec.value_dim = 128;  // 4 layers, 4 heads, 64 KiB each: a mebibyte, and the convolutions' tails
  testing::WriteRandomCheckpoint(server_.checkpoints() + "/wide", spec);
  v1::Model model;
  ASSERT_TRUE(Load("wide", "wide", &model).ok());
  EXPECT_GT(model.state_bytes(), 1 << 20);
  v1::GenerateRequest request = Ask("hello", 2);
  request.set_model("models/wide");
  request.set_return_state(true);
  const Reply reply = server_.Generate(request);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  v1::UploadSnapshotRequest first;
  first.set_snapshot_id("wide");
  first.set_model("models/wide");
  const auto [status, snapshot] = server_.Upload(reply.finish.state(), first, 1 << 20);
  ASSERT_TRUE(status.ok()) << status.error_message();

  grpc::ClientContext context;
  v1::DownloadSnapshotRequest download;
  download.set_name("snapshots/wide");
  const auto reader = server_.snapshots().DownloadSnapshot(&context, download);
  v1::DownloadSnapshotResponse message;
  std::vector<size_t> sizes;
  std::string bytes;
  while (reader->Read(&message)) {
    EXPECT_EQ(message.has_snapshot(), sizes.empty());
    sizes.push_back(message.data().size());
    bytes += message.data();
  }
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_THAT(sizes, ElementsAre(1 << 20, reply.finish.state().size() - (1 << 20)));
  EXPECT_EQ(bytes, reply.finish.state());

  const auto [too_big, unused] = server_.Upload(reply.finish.state(), first, (1 << 20) + 1);
  EXPECT_EQ(too_big.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(too_big.error_message(), HasSubstr("data has 1048577 bytes; accepted: pieces of at most 1048576"));
}

TEST_F(ResourcesTest, ASnapshotOfAnEmptySessionIsAnEmptySession) {
  const std::string name = server_.NewSnapshot(server_.NewSession());
  v1::CreateSessionRequest request;
  request.set_source_snapshot(name);
  v1::Session session;
  ASSERT_TRUE(Create(request, &session).ok());
  EXPECT_EQ(session.position(), 0);
  v1::GenerateRequest hello = Ask("hello", 6);
  hello.set_session(session.name());
  const Reply reply = server_.Generate(hello);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.ids(), server_.Generate(Ask("hello", 6)).ids());
}

TEST_F(ResourcesTest, SnapshotsAreListedAndDeletedAndSessionsMadeFromThemStay) {
  const std::string session = server_.NewSession();
  Say(session, "once");
  const std::string name = server_.NewSnapshot(session, "one");
  server_.NewSnapshot(session, "two");
  v1::CreateSessionRequest create;
  create.set_source_snapshot(name);
  v1::Session copy;
  ASSERT_TRUE(Create(create, &copy).ok());
  {
    grpc::ClientContext context;
    v1::DeleteSnapshotRequest request;
    request.set_name(name);
    google::protobuf::Empty empty;
    ASSERT_TRUE(server_.snapshots().DeleteSnapshot(&context, request, &empty).ok());
  }
  grpc::ClientContext context;
  v1::ListSnapshotsResponse response;
  ASSERT_TRUE(server_.snapshots().ListSnapshots(&context, {}, &response).ok());
  ASSERT_THAT(response.snapshots(), SizeIs(1));
  EXPECT_EQ(response.snapshots(0).name(), "snapshots/two");
  EXPECT_EQ(Next(copy.name()), Next(session));
}

TEST_F(ResourcesTest, AModelTellsWhatItIs) {
  v1::Model model;
  ASSERT_TRUE(GetModel("models/tiny", &model).ok());
  EXPECT_EQ(model.condition(), v1::Model::CONDITION_READY);
  EXPECT_EQ(model.architecture(), "gated_deltanet");
  EXPECT_GT(model.parameter_count(), 10000);
  EXPECT_EQ(model.weight_dtype(), "f32");
  EXPECT_GE(model.weight_bytes(), model.parameter_count() * 4);
  EXPECT_EQ(model.vocabulary_size(), 256);
  EXPECT_GT(model.state_bytes(), 0);
  EXPECT_EQ(model.slots(), 4);
  EXPECT_THAT(model.fingerprint(), SizeIs(64));
  EXPECT_EQ(model.tokenizer(), "bytes");
  EXPECT_THAT(model.backend(), ::testing::MatchesRegex("cpu \\(.+, 1 thread.*\\)"));
}

TEST_F(ResourcesTest, ASecondModelIsLoadedNamedAndUnloaded) {
  v1::Model other;
  const grpc::Status loaded = Load("other.v2", "other", &other);
  ASSERT_TRUE(loaded.ok()) << loaded.error_message();
  EXPECT_EQ(other.name(), "models/other.v2");
  EXPECT_EQ(other.architecture(), "delta_net");

  const Reply unnamed = server_.Generate(Ask("hello", 2));
  EXPECT_EQ(unnamed.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(unnamed.status.error_message(), HasSubstr("model is empty, and the server has 2 models"));
  v1::GenerateRequest request = Ask("hello", 2);
  request.set_model(other.name());
  EXPECT_TRUE(server_.Generate(request).status.ok());
  {
    grpc::ClientContext context;
    v1::ListModelsResponse list;
    ASSERT_TRUE(server_.models().ListModels(&context, {}, &list).ok());
    EXPECT_THAT(list.models(), SizeIs(2));
  }
  // Its sessions and snapshots go with it, and nobody else's.
  v1::CreateSessionRequest create;
  create.set_session_id("theirs");
  create.mutable_session()->set_model(other.name());
  v1::Session theirs;
  ASSERT_TRUE(Create(create, &theirs).ok());
  server_.NewSnapshot(theirs.name(), "theirs");
  create.set_session_id("ours");
  create.mutable_session()->set_model("models/tiny");
  v1::Session ours;
  ASSERT_TRUE(Create(create, &ours).ok());

  ASSERT_TRUE(Unload(other.name()).ok());
  EXPECT_EQ(GetModel(other.name(), &other).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Delete(theirs.name()).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(server_.Download("snapshots/theirs").first.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Delete(ours.name()).ok());
  EXPECT_TRUE(server_.Generate(Ask("hello", 2)).status.ok());
  ASSERT_TRUE(Load("other.v2", "other", &other).ok());
}

TEST_F(ResourcesTest, UnloadingWaitsForTheCallsThatUseTheModelAndTakesNoNewOnes) {
  v1::Model model;
  ASSERT_TRUE(Load("mine", "tiny", &model).ok());
  grpc::ClientContext context;
  v1::GenerateRequest request = Ask("hello", 60000);
  request.set_model("models/mine");
  const auto reader = server_.generation().Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  grpc::Status unloaded;
  std::thread unloading([&] { unloaded = Unload("models/mine"); });

  const absl::Time give_up = absl::Now() + absl::Seconds(20);
  while (absl::Now() < give_up) {
    ASSERT_TRUE(GetModel("models/mine", &model).ok());
    if (model.condition() == v1::Model::CONDITION_UNLOADING) break;
    absl::SleepFor(absl::Milliseconds(2));
  }
  EXPECT_EQ(model.condition(), v1::Model::CONDITION_UNLOADING);
  EXPECT_EQ(server_.Generate(request).status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(reader->Read(&message));  // goes on meanwhile
  context.TryCancel();
  reader->Finish();
  unloading.join();
  EXPECT_TRUE(unloaded.ok()) << unloaded.error_message();
  EXPECT_EQ(GetModel("models/mine", &model).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ResourcesTest, WhatAFlagNamedIsNotUnloadedByACall) {
  const std::string session = server_.NewSession("kept");
  const grpc::Status status = Unload("models/tiny");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << status.error_message();
  EXPECT_EQ(DetailsOf(status).reason, "MODEL_OF_FLAG");
  EXPECT_THAT(status.error_message(), HasSubstr("models/tiny was named by --model"));
  EXPECT_TRUE(server_.Generate(Ask("hello", 2)).status.ok());
  EXPECT_EQ(server_.GetSession(session).name(), session);
}

TEST_F(ResourcesTest, ADamagedCheckpointIsRefusedWithTheReasonAndTheNameStaysFree) {
  const std::string folder = server_.checkpoints() + "/broken";
  std::filesystem::copy(server_.checkpoints() + "/tiny", folder);
  std::filesystem::resize_file(folder + "/model.safetensors",
                               std::filesystem::file_size(folder + "/model.safetensors") / 2);
  v1::Model model;
  const grpc::Status status = Load("broken", "broken", &model);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DATA_LOSS) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr("models/broken: "));
  EXPECT_TRUE(Load("broken", "other", &model).ok());
}

TEST_F(ResourcesTest, ALinkThatLeadsOutOfTheRootIsNotFollowed) {
  TestServer outside;
  std::filesystem::create_directory_symlink(outside.checkpoints() + "/tiny", server_.checkpoints() + "/link");
  v1::Model model;
  const grpc::Status status = Load("linked", "link", &model);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(DetailsOf(status).reason, "PATH_OUTSIDE_ROOT");
}

TEST_F(ResourcesTest, TheNumberOfModelsIsBounded) {
  TestServer full([](ServerOptions& options) { options.limits.max_models = 1; });
  grpc::ClientContext context;
  v1::LoadModelRequest request;
  request.set_model_id("second");
  request.set_path("other");
  v1::Model model;
  const grpc::Status status = full.models().LoadModel(&context, request, &model);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("may hold 1 (--max_models); unload one first"));
  EXPECT_EQ(DetailsOf(status).retry_seconds, -1);
}

TEST_F(ResourcesTest, WithoutARootNoModelIsLoaded) {
  TestServer shut([](ServerOptions& options) { options.model_root.clear(); });
  grpc::ClientContext context;
  v1::LoadModelRequest request;
  request.set_model_id("second");
  request.set_path("other");
  v1::Model model;
  const grpc::Status status = shut.models().LoadModel(&context, request, &model);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(status.error_message(), HasSubstr("the server was started without --model_root"));
}

}  // namespace
}  // namespace palimpsest
