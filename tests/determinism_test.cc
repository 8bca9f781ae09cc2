// The same calls give the same bytes, whatever else the server is doing: through gRPC and the real binary, state
// digests and log-probabilities compared bit for bit.

#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/checkpoints.h"
#include "tests/support/server_process.h"
#include "tests/support/wire.h"

namespace palimpsest::testing {
namespace {

constexpr int kPrompts = 64;
constexpr int kTokens = 20;

struct Checkpoint {
  std::string name;
  std::function<std::string()> folder;
};

void PrintTo(const Checkpoint& checkpoint, std::ostream* out) { *out << checkpoint.name; }

// Prompts from one byte to several chunks, sampled in different ways. Request `i` is always the same.
v1::GenerateRequest Request(int i) {
  v1::GenerateRequest request;
  static constexpr size_t kLengths[] = {1, 2, 17, 63, 64, 65, 128, 200, 331, 500};
  request.set_text(MakePrompt(i, kLengths[i % 10]));
  request.set_top_logprobs(3);
  request.set_return_state_digest(true);
  request.mutable_stop()->set_max_tokens(kTokens);
  request.mutable_stop()->set_ignore_end_of_text(true);
  auto& sampling = *request.mutable_sampling();
  sampling.set_seed(1000 + i);
  if (i % 3 == 0) sampling.set_temperature(0);
  if (i % 3 == 1) sampling.set_top_p(0.9f);
  if (i % 4 == 1) {
    sampling.set_repetition_penalty(1.3f);
    sampling.set_frequency_penalty(0.2f);
  }
  return request;
}

std::vector<Reply> OneAfterTheOther(const ServerProcess& server) {
  Stubs stubs(server.target());
  std::vector<Reply> replies;
  for (int i = 0; i < kPrompts; ++i) replies.push_back(GenerateOk(stubs, Request(i)));
  return replies;
}

std::vector<Reply> AllTogether(const ServerProcess& server) {
  Stubs stubs(server.target());
  std::vector<Reply> replies(kPrompts);
  std::vector<std::thread> threads;
  for (int i = 0; i < kPrompts; ++i) {
    threads.emplace_back([&, i] { replies[i] = GenerateOk(stubs, Request(i)); });
  }
  for (std::thread& thread : threads) thread.join();
  return replies;
}

class Determinism : public ::testing::TestWithParam<Checkpoint> {
 protected:
  // One server of each checkpoint for the tests that can share it.
  static ServerProcess& Shared() {
    std::unique_ptr<ServerProcess>& server = servers_[GetParam().name];
    if (server == nullptr) server = Fresh({});
    return *server;
  }
  static std::unique_ptr<ServerProcess> Fresh(const std::vector<std::string>& flags) {
    std::string& folder = folders_[GetParam().name];
    if (folder.empty()) folder = GetParam().folder();
    std::unique_ptr<ServerProcess> server = ServerProcess::Start(folder, flags);
    PALIMPSEST_CHECK(server != nullptr);
    return server;
  }
  static void TearDownTestSuite() { servers_.clear(); }

  static std::map<std::string, std::string> folders_;
  static std::map<std::string, std::unique_ptr<ServerProcess>> servers_;
};
std::map<std::string, std::string> Determinism::folders_;
std::map<std::string, std::unique_ptr<ServerProcess>> Determinism::servers_;

// Continues a context in the one way that the tests of states compare.
v1::GenerateRequest Continuation() {
  v1::GenerateRequest request;
  request.set_text(" and so " + MakePrompt(77, 70));
  request.set_logprobs(true);
  request.set_return_state_digest(true);
  request.mutable_stop()->set_max_tokens(kTokens);
  request.mutable_stop()->set_ignore_end_of_text(true);
  request.mutable_sampling()->set_seed(42);
  request.mutable_sampling()->set_repetition_penalty(1.2f);  // looks back over the border
  return request;
}

Reply Continue(Stubs& stubs, const std::string& session) {
  v1::GenerateRequest request = Continuation();
  request.set_session(session);
  return GenerateOk(stubs, request);
}

Reply ContinueInline(Stubs& stubs, const std::string& state) {
  v1::GenerateRequest request = Continuation();
  request.set_state(state);
  // As with a session, the bytes of an unfinished character stay in the state; without one they would end the text.
  request.set_return_state(true);
  Reply reply = GenerateOk(stubs, request);
  EXPECT_FALSE(reply.state.empty());
  reply.state.clear();
  return reply;
}

// Reads a beginning into a session, with a reply.
void Begin(Stubs& stubs, const std::string& session, int i) {
  v1::GenerateRequest request = Request(i);
  request.set_session(session);
  GenerateOk(stubs, request);
}

TEST_P(Determinism, PromptsGiveTheSameBitsAloneTogetherAndUnderAnyBudgetSlotsAndThreads) {
  const std::vector<Reply> alone = OneAfterTheOther(Shared());
  for (int i = 0; i < kPrompts; ++i) {
    ASSERT_EQ(alone[i].tokens.size(), kTokens) << "prompt " << i;
    ASSERT_EQ(alone[i].tokens[0].logprobs.size(), 7) << "prompt " << i;
    ASSERT_EQ(alone[i].digest.size(), 64) << "prompt " << i;
  }
  ASSERT_NE(alone[0], alone[10]) << "the comparison would see nothing";
  EXPECT_EQ(AllTogether(Shared()), alone);
  const std::vector<std::vector<std::string>> settings = {
      {"--threads=1", "--slots=64", "--prefill_budget=64"},
      {"--threads=2", "--slots=5", "--prefill_budget=1"},
      {"--threads=3", "--slots=33", "--prefill_budget=100000"},
  };
  for (const std::vector<std::string>& flags : settings) {
    SCOPED_TRACE(flags[0] + " " + flags[1] + " " + flags[2]);
    const auto server = Fresh(flags);
    const std::vector<Reply> together = AllTogether(*server);
    for (int i = 0; i < kPrompts; ++i) EXPECT_EQ(together[i], alone[i]) << "prompt " << i;
  }
}

TEST_P(Determinism, ASnapshotGoesOnInAnotherProcessAsIfNothingHadHappened) {
  Stubs here(Shared().target());
  const auto other = Fresh({"--threads=1", "--slots=3"});
  Stubs there(other->target());
  for (int i : {0, 4, 9}) {
    SCOPED_TRACE(absl::StrCat("prompt ", i));
    const std::string session = CreateSession(here);
    Begin(here, session, i);
    const v1::Snapshot snapshot = CreateSnapshot(here, session);
    const Reply stayed = Continue(here, session);
    const std::string bytes = DownloadSnapshot(here, snapshot.name());
    EXPECT_EQ(static_cast<int64_t>(bytes.size()), snapshot.size_bytes());

    const v1::Snapshot uploaded = UploadSnapshot(there, bytes);
    EXPECT_EQ(uploaded.state_digest(), snapshot.state_digest());
    EXPECT_EQ(uploaded.position(), snapshot.position());
    EXPECT_EQ(DownloadSnapshot(there, uploaded.name()), bytes);
    EXPECT_EQ(Continue(there, CreateSession(there, uploaded.name())), stayed);
    EXPECT_EQ(ContinueInline(there, bytes), stayed);
    EXPECT_EQ(Continue(here, CreateSession(here, snapshot.name())), stayed);
    EXPECT_EQ(ContinueInline(here, bytes), stayed);
  }
}

TEST_P(Determinism, ForksGoTheirParentsWayAtOnceAndAfterIt) {
  Stubs stubs(Shared().target());
  const std::string parent = CreateSession(stubs);
  Begin(stubs, parent, 7);
  const std::vector<std::string> forks = ForkSession(stubs, parent, 8);
  ASSERT_EQ(forks.size(), 8);
  const std::vector<std::string> grandchildren = ForkSession(stubs, forks[7], 2);
  const Reply of_parent = Continue(stubs, parent);

  std::vector<Reply> replies(7);
  std::vector<std::thread> threads;
  for (int i = 0; i < 7; ++i) threads.emplace_back([&, i] { replies[i] = Continue(stubs, forks[i]); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(replies, ::testing::Each(of_parent));
  EXPECT_EQ(Continue(stubs, grandchildren[1]), of_parent);
  // The parent has gone on; what it left is not what it is.
  EXPECT_NE(Continue(stubs, parent).digest, of_parent.digest);
  EXPECT_EQ(Continue(stubs, forks[7]), of_parent);
}

TEST_P(Determinism, AStateHeldByTheClientGoesOnLikeASession) {
  Stubs stubs(Shared().target());
  const std::string session = CreateSession(stubs);
  std::string state;
  for (int i : {3, 8, 5}) {
    SCOPED_TRACE(absl::StrCat("prompt ", i));
    v1::GenerateRequest with_session = Request(i);
    with_session.set_session(session);
    const Reply from_session = GenerateOk(stubs, with_session);

    v1::GenerateRequest with_state = Request(i);
    with_state.set_return_state(true);
    if (!state.empty()) with_state.set_state(state);
    Reply from_state = GenerateOk(stubs, with_state);
    state = std::move(from_state.state);
    from_state.state.clear();
    EXPECT_EQ(from_state, from_session);
    EXPECT_FALSE(state.empty());
  }
}

TEST_P(Determinism, AReplyInPiecesIsTheReplyInOne) {
  Stubs stubs(Shared().target());
  v1::GenerateRequest request = Request(1);
  request.mutable_stop()->set_max_tokens(30);
  const Reply whole = GenerateOk(stubs, request);

  const std::string session = CreateSession(stubs);
  std::vector<TokenBits> tokens;
  Reply last;
  for (int count : {11, 1, 18}) {
    request.set_session(session);
    request.mutable_stop()->set_max_tokens(count);
    last = GenerateOk(stubs, request);
    tokens.insert(tokens.end(), last.tokens.begin(), last.tokens.end());
    request.clear_text();
  }
  EXPECT_EQ(tokens, whole.tokens);
  EXPECT_EQ(last.digest, whole.digest);
  EXPECT_EQ(last.position, whole.position);
}

TEST_P(Determinism, ScoresHaveTheSameBitsWhileOthersRun) {
  Stubs stubs(Shared().target());
  v1::ScoreRequest request;
  request.set_text(MakePrompt(5, 700));
  request.set_return_tokens(true);
  request.set_return_state_digest(true);
  auto score = [&] {
    grpc::ClientContext context;
    SetTimeout(context, absl::Minutes(2));
    v1::ScoreResponse response;
    const grpc::Status status = stubs.generation->Score(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    response.clear_usage();  // times
    return response.SerializeAsString();
  };
  const std::string alone = score();
  EXPECT_GT(alone.size(), 700u);
  std::vector<std::string> scores(4);
  std::vector<std::thread> threads;
  for (std::string& result : scores) threads.emplace_back([&result, &score] { result = score(); });
  for (int i = 0; i < 12; ++i) threads.emplace_back([&stubs, i] { GenerateOk(stubs, Request(i)); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(scores, ::testing::Each(alone));
}

RandomCheckpointSpec DeltaNetBf16() {
  RandomCheckpointSpec spec;
  spec.model_type = "delta_net";
  spec.dtype = DType::kBF16;
  spec.hidden = 48;
  spec.heads = spec.value_heads = 3;
  spec.seed = 3;
  return spec;
}

RandomCheckpointSpec Paper(const char* settings) {
  RandomCheckpointSpec spec;
  spec.model_type = "fwp";
  spec.settings = settings;
  return spec;
}
const char* const kNormalisedDpfp = R"({"feature_map": "dpfp", "dpfp_nu": 2, "qk_norm": "sum",
    "attention_norm": "key_and_output", "cutoffs": [60, 110], "embedding_size": 20})";
const char* const kTransformerXl = R"({"mixer": "softmax", "positions": "relative", "segment_length": 50,
    "memory_length": 30})";

INSTANTIATE_TEST_SUITE_P(
    Checkpoints, Determinism,
    ::testing::Values(Checkpoint{"GatedDeltaNetF32", [] { return MakeCheckpoint(); }},
                      Checkpoint{"DeltaNetBf16", [] { return MakeCheckpoint(DeltaNetBf16()); }},
                      Checkpoint{"NormalisedDpfp", [] { return MakeCheckpoint(Paper(kNormalisedDpfp)); }},
                      Checkpoint{"TransformerXl", [] { return MakeCheckpoint(Paper(kTransformerXl)); }},
                      Checkpoint{"Bundled", BundledCheckpoint}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace palimpsest::testing
