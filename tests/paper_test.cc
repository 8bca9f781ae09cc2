// The systems of 2102.11174 through the real server: what Score says of 512 tokens against what the official code said,
// each by the protocol that the toolkit itself evaluates it with.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/model/testing/paper_golden.h"
#include "tests/support/server_process.h"
#include "tests/support/wire.h"

namespace palimpsest::testing {
namespace {

struct Golden : PaperGolden {
  std::string model;  // its name on the server
};

class PaperTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    goldens_ = new std::vector<Golden>();
    for (const PaperGolden& golden : PaperGoldens(PALIMPSEST_SOURCE_DIR)) {
      goldens_->push_back({golden, absl::StrReplaceAll(golden.name, {{"_", "-"}})});
    }
    ASSERT_GE(goldens_->size(), 20);
    std::vector<std::string> flags = {"--slots=4", "--threads=1", "--max_models=64"};
    for (size_t i = 1; i < goldens_->size(); ++i) {
      flags.push_back(absl::StrCat("--model=", goldens_->at(i).model, "=", goldens_->at(i).folder));
    }
    server_ = ServerProcess::Start(goldens_->at(0).folder, flags).release();
    ASSERT_NE(server_, nullptr);
    goldens_->at(0).model = "test";  // as ServerProcess calls it
  }
  static void TearDownTestSuite() {
    delete server_;
    delete goldens_;
  }

  static std::vector<Golden>* goldens_;
  static ServerProcess* server_;
};
std::vector<Golden>* PaperTest::goldens_ = nullptr;
ServerProcess* PaperTest::server_ = nullptr;

TEST_F(PaperTest, ScoresAreThoseOfTheOfficialCode) {
  Stubs stubs(server_->target());
  for (const Golden& golden : *goldens_) {
    SCOPED_TRACE(golden.name);
    const auto count = static_cast<int32_t>(golden.next_logprob.size());
    const int32_t length = golden.segment > 0 ? golden.segment : count;
    double worst = 0;
    for (int32_t at = 0; at < count; at += length) {
      v1::ScoreRequest request;
      request.set_model("models/" + golden.model);
      const auto end = golden.tokens.begin() + std::min(at + length, count) + 1;
      request.mutable_tokens()->mutable_ids()->Add(golden.tokens.begin() + at, end);
      request.set_return_tokens(true);
      grpc::ClientContext context;
      SetTimeout(context, absl::Minutes(2));
      v1::ScoreResponse response;
      const grpc::Status status = stubs.generation->Score(&context, request, &response);
      ASSERT_TRUE(status.ok()) << status.error_message();
      ASSERT_EQ(response.scored_tokens(), request.tokens().ids_size() - 1);
      for (int32_t i = 0; i < response.scored_tokens(); ++i) {
        const double got = response.tokens(i + 1).logprob();
        worst = std::max(worst, std::fabs(got - golden.next_logprob[at + i]));
      }
    }
    EXPECT_LT(worst, golden.name == "sum_dpfp_6" ? 5e-3 : 1e-4);
  }
}

// `palimpsest score` on a text, against the perplexities of the toolkit's eval.py and eval_sliding_window.py.
TEST_F(PaperTest, PerplexitiesAreThoseOfTheOfficialScripts) {
  const std::string folder = PALIMPSEST_SOURCE_DIR "/tests/golden_paper";
  std::ifstream file(folder + "/scores.json");
  const nlohmann::json scores = nlohmann::json::parse(file);
  ASSERT_GE(scores["results"].size(), 7);
  for (const nlohmann::json& expected : scores["results"]) {
    const auto golden = std::ranges::find(*goldens_, expected["model"].get<std::string>(), &Golden::name);
    ASSERT_NE(golden, goldens_->end());
    const std::string protocol = expected["protocol"];
    std::string command = absl::StrCat(PALIMPSEST_CLI_BINARY, " --server ", server_->target(), " score ", folder,
                                       "/scores.txt --json --model models/", golden->model, " --protocol ", protocol);
    if (protocol != "carried") absl::StrAppend(&command, " --window ", expected["window"].get<int>());
    SCOPED_TRACE(command);
    FILE* const pipe = popen(command.c_str(), "r");
    ASSERT_NE(pipe, nullptr);
    std::string output;
    char buffer[4096];
    while (const size_t n = fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, n);
    ASSERT_EQ(pclose(pipe), 0) << output;
    const nlohmann::json got = nlohmann::json::parse(output);
    EXPECT_EQ(got["tokens"], scores["tokens"]);
    EXPECT_EQ(got["scored_tokens"], scores["tokens"].get<int64_t>() - 1);
    const double perplexity = expected["perplexity"];
    // The script's last segment is shorter; its positions count down to its own end, ours to that of a whole one.
    EXPECT_NEAR(got["perplexity"].get<double>(), perplexity, 5e-5 * perplexity);
  }
}

// A head of clusters computes those that a draw falls into. Asked for alternatives it computes them all, and draws the
// same tokens.
TEST_F(PaperTest, DrawsFromSomeClustersAreThoseFromAll) {
  Stubs stubs(server_->target());
  for (const char* name : {"delta_elu_24_skip", "narrowing_clusters_untied", "projected_clusters"}) {
    SCOPED_TRACE(name);
    const auto golden = std::ranges::find(*goldens_, name, &Golden::name);
    ASSERT_NE(golden, goldens_->end());
    int32_t largest = 0;
    for (const float temperature : {0.0f, 1.0f}) {
      v1::GenerateRequest request;
      request.set_model("models/" + golden->model);
      request.mutable_tokens()->add_ids(golden->tokens.front());
      request.mutable_stop()->set_max_tokens(2000);
      request.mutable_sampling()->set_temperature(temperature);
      request.mutable_sampling()->set_seed(7);
      request.set_logprobs(true);
      const Reply some = GenerateOk(stubs, request);
      request.set_top_logprobs(1);
      const Reply all = GenerateOk(stubs, request);
      ASSERT_EQ(some.tokens.size(), all.tokens.size());
      for (size_t i = 0; i < some.tokens.size(); ++i) {
        ASSERT_EQ(some.tokens[i].id, all.tokens[i].id) << "token " << i;
        EXPECT_NEAR(std::bit_cast<float>(some.tokens[i].logprobs[0]), std::bit_cast<float>(all.tokens[i].logprobs[0]),
                    1e-5);
        largest = std::max(largest, some.tokens[i].id);
      }
    }
    EXPECT_GE(largest, 110) << "no token of the last cluster was drawn";
  }
}

TEST_F(PaperTest, TheServerTellsTheBytesOfAStateAndWhatTheyAre) {
  Stubs stubs(server_->target());
  grpc::ClientContext context;
  v1::ListModelsResponse response;
  const grpc::Status status = stubs.models->ListModels(&context, {}, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.models_size(), goldens_->size());
  for (const v1::Model& model : response.models()) {
    int64_t bytes = 0;
    for (const v1::StatePiece& piece : model.state_pieces()) {
      int64_t elements = 1;
      for (const int64_t size : piece.shape()) elements *= size;
      EXPECT_EQ(piece.dtype(), "f32");
      bytes += (4 * elements + 63) / 64 * 64;
    }
    EXPECT_EQ(model.state_bytes(), bytes) << model.name();
  }
}

// A long life costs nothing: neither the session's bytes nor the server's memory grow with the text.
TEST_F(PaperTest, ASessionOf200000TokensTakesNoMoreMemoryThanOneOf2000) {
  constexpr int32_t kTokens = 200000, kPiece = 2000;
  Stubs stubs(server_->target());
  for (const char* name : {"delta_norm_dpfp_46", "sum_favor_35", "transformer_xl"}) {
    SCOPED_TRACE(name);
    const auto golden = std::ranges::find(*goldens_, name, &Golden::name);
    ASSERT_NE(golden, goldens_->end());
    grpc::ClientContext context;
    v1::CreateSessionRequest create;
    create.mutable_session()->set_model("models/" + golden->model);
    v1::Session session;
    ASSERT_TRUE(stubs.sessions->CreateSession(&context, create, &session).ok());
    double before = 0;
    for (int32_t at = 0; at < kTokens; at += kPiece) {
      v1::GenerateRequest request;
      request.set_session(session.name());
      for (int32_t i = 0; i < kPiece; ++i) {
        request.mutable_tokens()->add_ids(golden->tokens[(at + i) % golden->tokens.size()]);
      }
      request.mutable_stop()->set_max_tokens(0);
      GenerateOk(stubs, request);
      if (at == 5 * kPiece) before = server_->Metric("process_resident_memory_bytes");
    }
    const v1::Session after = GetSession(stubs, session.name());
    EXPECT_EQ(after.position(), kTokens);
    EXPECT_EQ(after.state_bytes(), session.state_bytes());
    EXPECT_GT(before, 0);
    EXPECT_LT(server_->Metric("process_resident_memory_bytes") - before, kSanitized ? 64e6 : 4e6);
    DeleteSession(stubs, session.name());
  }
}

TEST_F(PaperTest, PositionsThatAreUsedUpAreSaid) {
  Stubs stubs(server_->target());
  const auto golden = std::ranges::find(*goldens_, "delta_elu_24_positions", &Golden::name);
  ASSERT_NE(golden, goldens_->end());
  const int32_t most = golden->segment + 1;
  const auto request = [&](int32_t prompt, int32_t max_tokens) {
    v1::GenerateRequest made;
    made.set_model("models/" + golden->model);
    made.mutable_tokens()->mutable_ids()->Add(golden->tokens.begin(), golden->tokens.begin() + prompt);
    made.mutable_stop()->set_max_tokens(max_tokens);
    made.mutable_stop()->set_ignore_end_of_text(true);
    return made;
  };
  const Reply full = GenerateOk(stubs, request(most - 5, 100));
  EXPECT_EQ(full.reason, v1::FINISH_REASON_CONTEXT_FULL);
  EXPECT_EQ(full.tokens.size(), 5);
  EXPECT_EQ(full.position, most);
  EXPECT_EQ(GenerateOk(stubs, request(most, 0)).position, most);
  for (const auto& [prompt, max_tokens] : {std::pair(most, 1), std::pair(most + 1, 0)}) {
    grpc::ClientContext context;
    const Outcome outcome = Generate(stubs, request(prompt, max_tokens), context);
    EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_THAT(
        outcome.status.error_message(),
        ::testing::HasSubstr(absl::StrCat("on segments of ", most - 1, " tokens, so a context holds at most ", most)));
  }
  // A session that is full answers nothing more, and says so.
  v1::GenerateRequest in_session = request(most, 0);
  in_session.clear_model();
  grpc::ClientContext create_context;
  v1::CreateSessionRequest create;
  create.mutable_session()->set_model("models/" + golden->model);
  v1::Session session;
  ASSERT_TRUE(stubs.sessions->CreateSession(&create_context, create, &session).ok());
  in_session.set_session(session.name());
  GenerateOk(stubs, in_session);
  v1::GenerateRequest more;
  more.set_session(session.name());
  more.mutable_stop()->set_max_tokens(1);
  grpc::ClientContext context;
  EXPECT_EQ(Generate(stubs, more, context).status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  DeleteSession(stubs, session.name());
}

}  // namespace
}  // namespace palimpsest::testing
