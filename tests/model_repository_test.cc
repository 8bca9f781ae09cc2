// The real server on a model repository that changes while it is used.

#include <signal.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/checkpoints.h"
#include "tests/support/server_process.h"
#include "tests/support/wire.h"

namespace palimpsest::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

// Another seed, other weights: a version whose replies and whose fingerprint are its own.
RandomCheckpointSpec Version(uint64_t seed) {
  RandomCheckpointSpec spec;
  spec.seed = seed;
  return spec;
}

// As the documentation says: beside, then renamed.
void Publish(const std::string& repository, const std::string& place, const RandomCheckpointSpec& spec) {
  const fs::path target = fs::path(repository) / place;
  const fs::path beside = target.parent_path() / absl::StrCat(".", target.filename().string());
  fs::create_directories(target.parent_path());
  WriteRandomCheckpoint(beside.string(), spec);
  fs::rename(beside, target);
}

void Remove(const std::string& repository, const std::string& place) { fs::remove_all(fs::path(repository) / place); }

std::unique_ptr<ServerProcess> Serve(const std::string& repository, std::vector<std::string> flags = {}) {
  flags.insert(flags.begin(), {absl::StrCat("--model_repository=", repository), "--model_repository_poll=100ms",
                               "--slots=4", "--threads=1"});
  return ServerProcess::Start("", flags);
}

// The model as the server tells of it; empty if it has none of the name.
v1::Model GetModel(Stubs& stubs, const std::string& name = "models/m") {
  grpc::ClientContext context;
  SetTimeout(context, absl::Minutes(1));
  v1::GetModelRequest request;
  request.set_name(name);
  v1::Model model;
  const grpc::Status status = stubs.models->GetModel(&context, request, &model);
  return status.ok() ? model : v1::Model();
}

template <class Condition>
bool Await(const Condition& condition) {
  for (const absl::Time give_up = absl::Now() + absl::Minutes(1); absl::Now() < give_up;) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(10));
  }
  return false;
}

bool AwaitVersion(Stubs& stubs, const std::string& version) {
  return Await([&] { return GetModel(stubs).version() == version; });
}

v1::GenerateRequest Ask(const std::string& session = "", int tokens = 4) {
  v1::GenerateRequest request;
  request.set_text("The sea ");
  request.mutable_stop()->set_max_tokens(tokens);
  request.mutable_stop()->set_ignore_end_of_text(true);
  request.mutable_sampling()->set_temperature(0);
  if (!session.empty()) request.set_session(session);
  return request;
}

Outcome Call(Stubs& stubs, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  SetTimeout(context, absl::Minutes(2));
  return Generate(stubs, request, context);
}

TEST(ModelRepository, TheHighestVersionIsServedAndANewOneTakesOver) {
  const std::string repository = MakeFolder("repository");
  Publish(repository, "m/9", Version(9));
  Publish(repository, "m/10", Version(10));  // as numbers, not as text
  Publish(repository, "plain", Version(3));
  const auto server = Serve(repository);
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());
  const v1::Model first = GetModel(stubs);
  EXPECT_EQ(first.version(), "10");
  EXPECT_EQ(GetModel(stubs, "models/plain").version(), "");
  EXPECT_NE(GetModel(stubs, "models/plain").fingerprint(), "");

  v1::GenerateRequest request = Ask();
  request.set_model("models/m");
  const Reply before = GenerateOk(stubs, request);
  Publish(repository, "m/11", Version(11));
  ASSERT_TRUE(AwaitVersion(stubs, "11")) << server->process().Log();
  EXPECT_NE(GetModel(stubs).fingerprint(), first.fingerprint());
  EXPECT_NE(GenerateOk(stubs, request).tokens, before.tokens);
  EXPECT_EQ(server->Metric("palimpsest_model_repository_loads_total", "code=\"OK\",model=\"m\""), 2);
  // Nobody needs it: gone with the next sweep.
  EXPECT_TRUE(Await([&] { return server->Metric("palimpsest_model_versions_retiring", "model=\"m\"") == 0; }));
  EXPECT_EQ(server->Metric("palimpsest_generated_tokens_total", "model=\"m\""), 8) << "counters do not fall";

  // And back.
  Remove(repository, "m/11");
  ASSERT_TRUE(AwaitVersion(stubs, "10"));
  EXPECT_EQ(GenerateOk(stubs, request).tokens, before.tokens);
}

TEST(ModelRepository, NoCallFailsWhileVersionsChange) {
  const std::string repository = MakeFolder("repository");
  Publish(repository, "m/1", Version(1));
  const auto server = Serve(repository, {"--max_queue=64"});
  ASSERT_NE(server, nullptr);
  std::atomic<bool> stop{false};
  std::atomic<int> calls{0}, failures{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      Stubs stubs(server->target());
      while (!stop) {
        const Outcome outcome = Call(stubs, Ask("", 32));
        ++calls;
        if (!outcome.status.ok() && ++failures == 1) ADD_FAILURE() << outcome.status.error_message();
      }
    });
  }
  Stubs stubs(server->target());
  for (int version = 2; version <= 4; ++version) {
    const int seen = calls;
    Publish(repository, absl::StrCat("m/", version), Version(version));
    EXPECT_TRUE(AwaitVersion(stubs, absl::StrCat(version)));
    EXPECT_TRUE(Await([&] { return calls > seen + 8; }));
  }
  stop = true;
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(failures, 0);
  EXPECT_TRUE(Await([&] { return server->Metric("palimpsest_model_versions_retiring") == 0; }));
  server->process().Signal(SIGTERM);
  EXPECT_EQ(server->process().WaitForExit(absl::Minutes(1)), 0);
}

TEST(ModelRepository, ACallInFlightAndASessionStayWithTheirVersion) {
  const std::string repository = MakeFolder("repository");
  Publish(repository, "m/1", Version(1));
  const auto server = Serve(repository);
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());
  const std::string session = CreateSession(stubs), empty = CreateSession(stubs);
  GenerateOk(stubs, Ask(session));
  const std::string twin = ForkSession(stubs, session, 1)[0];
  const Reply expected = GenerateOk(stubs, Ask(twin));
  DeleteSession(stubs, twin);

  // A stream that is stalled by its reader spans the change. Its session has no state but the one to come.
  const std::string late = CreateSession(stubs);
  grpc::ClientContext context;
  SetTimeout(context, absl::Minutes(2));
  bool changed = false;
  const Outcome spanning = Generate(stubs, Ask(late, 2000), context, [&](const v1::GenerateResponse&) {
    if (std::exchange(changed, true)) return;
    Publish(repository, "m/2", Version(2));
    ASSERT_TRUE(AwaitVersion(stubs, "2"));
  });
  EXPECT_TRUE(spanning.status.ok()) << spanning.status.error_message();
  EXPECT_EQ(spanning.reply.tokens.size(), 2000);

  EXPECT_EQ(server->Metric("palimpsest_model_versions_retiring", "model=\"m\""), 1);
  EXPECT_EQ(GenerateOk(stubs, Ask(session)), expected) << "goes on with the weights that made its state";
  EXPECT_EQ(GenerateOk(stubs, Ask(empty)).tokens, GenerateOk(stubs, Ask()).tokens) << "had no state yet";
  DeleteSession(stubs, session);
  EXPECT_EQ(Call(stubs, Ask(late)).status.error_message(), "");
  DeleteSession(stubs, late);
  EXPECT_TRUE(Await([&] { return server->Metric("palimpsest_model_versions_retiring", "model=\"m\"") == 0; }));
  EXPECT_THAT(server->process().Log(), HasSubstr("model version gone"));
}

TEST(ModelRepository, ASessionWhoseVersionIsGoneSaysSoAndKeepsItsState) {
  const std::string repository = MakeFolder("repository");
  Publish(repository, "m/1", Version(1));
  const auto server = Serve(repository, {"--model_repository_retire_after=0"});
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());
  const std::string session = CreateSession(stubs);
  GenerateOk(stubs, Ask(session));
  Publish(repository, "m/2", Version(2));
  ASSERT_TRUE(AwaitVersion(stubs, "2"));
  ASSERT_TRUE(Await([&] { return server->Metric("palimpsest_model_versions_retiring", "model=\"m\"") == 0; }));

  const Outcome refused = Call(stubs, Ask(session));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(refused.status.error_message(),
              AllOf(HasSubstr("earlier version of models/m"), HasSubstr("begin a new")));
  EXPECT_GT(GetSession(stubs, session).position(), 0);

  // The way out that the message names: it goes on, on a server that has the version.
  const std::string bytes = DownloadSnapshot(stubs, CreateSnapshot(stubs, session).name());
  Remove(repository, "m/2");
  ASSERT_TRUE(AwaitVersion(stubs, "1"));
  const std::string rescued = CreateSession(stubs, UploadSnapshot(stubs, bytes).name());
  EXPECT_EQ(GenerateOk(stubs, Ask(rescued)), GenerateOk(stubs, Ask(session)));
}

TEST(ModelRepository, AVersionThatDoesNotLoadIsCountedAndTheOldOneStays) {
  const std::string repository = MakeFolder("repository");
  Publish(repository, "m/1", Version(1));
  const auto server = Serve(repository);
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());

  // Cut short, as a copy that was broken off: published by renaming, so nothing protects the server but its own checks.
  const std::string beside = absl::StrCat(repository, "/m/.2"), weights = beside + "/model.safetensors";
  WriteRandomCheckpoint(beside, Version(2));
  fs::resize_file(weights, fs::file_size(weights) - 1);
  fs::rename(beside, absl::StrCat(repository, "/m/2"));
  const auto failed = [&] { return server->Metric("palimpsest_model_repository_loads_total", "code=\"DATA_LOSS\""); };
  ASSERT_TRUE(Await([&] { return failed() == 1; })) << server->process().Log();
  absl::SleepFor(absl::Milliseconds(500));
  EXPECT_EQ(failed(), 1) << "not tried again while it is the same";
  EXPECT_EQ(GetModel(stubs).version(), "1");
  GenerateOk(stubs, Ask());
  EXPECT_THAT(server->process().Log(), HasSubstr("what is served stays"));

  // Mended in place: taken up once it has settled.
  WriteRandomCheckpoint(absl::StrCat(repository, "/m/2"), Version(2));
  ASSERT_TRUE(AwaitVersion(stubs, "2"));
}

TEST(ModelRepository, AfterARestartTheHighestVersionThatLoadsIsServed) {
  const std::string repository = MakeFolder("repository");
  Publish(repository, "m/1", Version(1));
  fs::create_directories(absl::StrCat(repository, "/m/2"));
  std::ofstream(absl::StrCat(repository, "/m/2/config.json")) << "{}";
  const auto server = Serve(repository);
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());
  EXPECT_EQ(GetModel(stubs).version(), "1");
}

TEST(ModelRepository, ModelsComeAndGoWithTheirFolders) {
  const std::string repository = MakeFolder("repository");
  Publish(repository, "m", Version(1));
  Publish(repository, "Not_A_Name", Version(1));
  const auto server = Serve(repository);
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());
  EXPECT_THAT(server->process().Log(), AllOf(HasSubstr("Not_A_Name"), HasSubstr("its name cannot be a model's")));

  Publish(repository, "late", Version(2));
  EXPECT_TRUE(Await([&] { return !GetModel(stubs, "models/late").name().empty(); }));
  const std::string session = [&] {
    grpc::ClientContext context;
    v1::CreateSessionRequest request;
    request.mutable_session()->set_model("models/late");
    v1::Session made;
    EXPECT_TRUE(stubs.sessions->CreateSession(&context, request, &made).ok());
    return made.name();
  }();
  GenerateOk(stubs, Ask(session));
  Remove(repository, "late");
  EXPECT_TRUE(Await([&] { return GetModel(stubs, "models/late").name().empty(); }));
  GenerateOk(stubs, Ask(session));  // its version stays for it

  {
    grpc::ClientContext context;
    v1::UnloadModelRequest request;
    request.set_name("models/m");
    google::protobuf::Empty nothing;
    const grpc::Status refused = stubs.models->UnloadModel(&context, request, &nothing);
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_THAT(refused.error_message(), HasSubstr("--model_repository"));
  }
  // A mount that is away: what is served stays.
  fs::rename(repository, repository + ".away");
  EXPECT_TRUE(
      Await([&] { return server->process().Log().find("cannot be read; what is served stays") != std::string::npos; }));
  GenerateOk(stubs, Ask());
  fs::rename(repository + ".away", repository);
}

TEST(ModelRepository, ARepositoryWithNothingToServeIsAReasonNotToStart) {
  const std::string repository = MakeFolder("repository");
  const std::vector<std::string> flags = {absl::StrCat("--model_repository=", repository), "--port=0",
                                          "--metrics_address="};
  const Exit empty = RunServer(flags);
  EXPECT_EQ(empty.code, 2);
  EXPECT_THAT(empty.reason, AllOf(HasSubstr(repository), HasSubstr("has no model"), HasSubstr("NAME/VERSION")));

  fs::create_directories(absl::StrCat(repository, "/m"));
  std::ofstream(absl::StrCat(repository, "/m/config.json")) << "{}";
  const Exit broken = RunServer(flags);
  EXPECT_EQ(broken.code, 2);
  EXPECT_THAT(broken.reason, AllOf(HasSubstr("models/m"), HasSubstr("config.json")));

  const Exit taken =
      RunServer({absl::StrCat("--model_repository=", repository), "--port=0",
                 "--metrics_address=", absl::StrCat("--model=other=", MakeCheckpoint()), "--max_models=0"});
  EXPECT_EQ(taken.code, 2);
}

}  // namespace
}  // namespace palimpsest::testing
