// Generate, Score, Tokenize, Detokenize over real gRPC.
#include <gmock/gmock.h>
#include <grpcpp/channel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/rpc/testing/test_server.h"

namespace palimpsest {
namespace {

using ::palimpsest::testing::Ask;
using ::palimpsest::testing::DetailsOf;
using ::palimpsest::testing::kPoisonToken;
using ::palimpsest::testing::Reply;
using ::palimpsest::testing::TestServer;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::SizeIs;

constexpr char kHex[] = "0123456789abcdef";

class GenerationTest : public ::testing::Test {
 protected:
  TestServer server_;
};

TEST_F(GenerationTest, StreamsTokensTextUsageAndTheReason) {
  const Reply reply = server_.Generate(Ask("hello", 12));
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_THAT(reply.tokens, SizeIs(12));
  EXPECT_EQ(reply.position, 17);
  EXPECT_EQ(reply.finish.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(reply.finish.usage().prompt_tokens(), 5);
  EXPECT_EQ(reply.finish.usage().generated_tokens(), 12);
  EXPECT_EQ(reply.finish.usage().cached_tokens(), 0);
  EXPECT_GT(reply.finish.usage().time_to_first_token_seconds(), 0);
  EXPECT_GE(reply.finish.usage().total_seconds(), reply.finish.usage().time_to_first_token_seconds());
  EXPECT_FALSE(reply.tokens[0].has_logprob());
}

TEST_F(GenerationTest, TheTextIsThatOfTheTokens) {
  const Reply reply = server_.Generate(Ask("hello", 40));
  ASSERT_TRUE(reply.status.ok());
  v1::DetokenizeRequest request;
  for (const int32_t id : reply.ids()) request.add_ids(id);
  grpc::ClientContext context;
  v1::DetokenizeResponse response;
  ASSERT_TRUE(server_.generation().Detokenize(&context, request, &response).ok());
  EXPECT_EQ(reply.text, response.text());
}

TEST_F(GenerationTest, TheSameSeedGivesTheSameTokensAndNoSeedIsToldInTheFinish) {
  v1::GenerateRequest request = Ask("hello", 30);
  request.mutable_sampling()->clear_temperature();
  const Reply first = server_.Generate(request);
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  request.mutable_sampling()->set_seed(first.finish.seed());
  const Reply second = server_.Generate(request);
  EXPECT_EQ(first.ids(), second.ids());
  request.mutable_sampling()->set_seed(first.finish.seed() + 1);
  EXPECT_NE(server_.Generate(request).ids(), first.ids());
}

TEST_F(GenerationTest, LogprobsComeWhenAskedForAndGreedyTakesTheMostProbable) {
  v1::GenerateRequest request = Ask("hello", 6);
  request.set_top_logprobs(3);
  const Reply reply = server_.Generate(request);
  ASSERT_THAT(reply.tokens, SizeIs(6));
  for (const v1::GeneratedToken& token : reply.tokens) {
    ASSERT_THAT(token.top(), SizeIs(3));
    EXPECT_EQ(token.id(), token.top(0).id());
    EXPECT_EQ(token.logprob(), token.top(0).logprob());
    EXPECT_GE(token.top(0).logprob(), token.top(1).logprob());
    EXPECT_GE(token.top(1).logprob(), token.top(2).logprob());
    EXPECT_EQ(token.top(0).token(), std::string(1, static_cast<char>(token.id())));
    EXPECT_LE(token.logprob(), 0);
  }
}

TEST_F(GenerationTest, AStopTokenEndsTheReplyAndItsTextIsNotSent) {
  const std::vector<int32_t> ids = server_.Generate(Ask("hello", 10)).ids();
  v1::GenerateRequest request = Ask("hello", 10);
  request.mutable_stop()->add_token_ids(ids[3]);
  const size_t expected = std::find(ids.begin(), ids.end(), ids[3]) - ids.begin() + 1;
  const Reply reply = server_.Generate(request);
  EXPECT_EQ(reply.finish.reason(), v1::FINISH_REASON_STOP_TOKEN);
  EXPECT_EQ(reply.finish.usage().generated_tokens(), expected);
  EXPECT_THAT(reply.tokens, SizeIs(expected));
}

TEST_F(GenerationTest, AStopStringEndsTheReplyBeforeItself) {
  v1::GenerateRequest request = Ask("hello", 40);
  // Only letters, so that text and tokens correspond.
  for (int32_t id = 0; id < 256; ++id) {
    if (id < 'a' || id > 'z') (*request.mutable_sampling()->mutable_logit_bias())[id] = -100;
  }
  const Reply whole = server_.Generate(request);
  ASSERT_THAT(whole.text, SizeIs(40));
  const std::string stop = whole.text.substr(7, 3);
  const size_t at = whole.text.find(stop);
  request.mutable_stop()->add_strings("not to be found");
  request.mutable_stop()->add_strings(stop);
  const Reply reply = server_.Generate(request);
  EXPECT_EQ(reply.finish.reason(), v1::FINISH_REASON_STOP_STRING);
  EXPECT_EQ(reply.finish.stop_string(), stop);
  EXPECT_EQ(reply.text, whole.text.substr(0, at));
  EXPECT_EQ(reply.finish.usage().generated_tokens(), at + 3);
}

TEST_F(GenerationTest, ZeroTokensOnlyAppendsThePrompt) {
  const std::string session = server_.NewSession();
  v1::GenerateRequest request = Ask("hello", 0);
  request.set_session(session);
  const Reply reply = server_.Generate(request);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_THAT(reply.tokens, SizeIs(0));
  EXPECT_EQ(reply.finish.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(server_.GetSession(session).position(), 5);
}

TEST_F(GenerationTest, ASessionKeepsPromptAndReplyAndGoesOnWithoutOne) {
  const std::string session = server_.NewSession("talk");
  v1::GenerateRequest request = Ask("hello", 6);
  request.set_session(session);
  const Reply first = server_.Generate(request);
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_EQ(server_.GetSession(session).position(), 11);
  request.clear_prompt();
  const Reply second = server_.Generate(request);
  ASSERT_TRUE(second.status.ok()) << second.status.error_message();
  EXPECT_EQ(second.finish.usage().cached_tokens(), 11);
  EXPECT_EQ(second.finish.usage().prompt_tokens(), 0);
  EXPECT_EQ(server_.GetSession(session).position(), 17);

  std::vector<int32_t> both = first.ids();
  for (const int32_t id : second.ids()) both.push_back(id);
  EXPECT_EQ(both, server_.Generate(Ask("hello", 12)).ids());
}

TEST_F(GenerationTest, AnInlineStateIsAsGoodAsASession) {
  const std::string session = server_.NewSession();
  v1::GenerateRequest request = Ask("hello", 6);
  request.set_session(session);
  server_.Generate(request);
  request.set_text(" world");
  request.set_return_state_digest(true);
  const Reply by_session = server_.Generate(request);

  v1::GenerateRequest inline_request = Ask("hello", 6);
  inline_request.set_return_state(true);
  const Reply first = server_.Generate(inline_request);
  ASSERT_FALSE(first.finish.state().empty());
  inline_request.set_state(first.finish.state());
  inline_request.set_text(" world");
  inline_request.set_return_state_digest(true);
  const Reply by_state = server_.Generate(inline_request);

  ASSERT_TRUE(by_session.status.ok() && by_state.status.ok());
  EXPECT_EQ(by_session.ids(), by_state.ids());
  EXPECT_EQ(by_session.finish.state_digest(), by_state.finish.state_digest());
  EXPECT_THAT(by_state.finish.state_digest(), SizeIs(64));
  EXPECT_EQ(by_state.finish.state_digest().find_first_not_of(kHex), std::string::npos);
}

TEST_F(GenerationTest, TheCallersIdComesBackAndOneIsMadeWithout) {
  v1::GenerateRequest request = Ask("hello", 2);
  request.set_call_id("my-id-7");
  grpc::ClientContext context;
  ASSERT_TRUE(server_.Generate(context, request).status.ok());
  const auto& headers = context.GetServerInitialMetadata();
  ASSERT_EQ(headers.count("x-call-id"), 1);
  EXPECT_EQ(std::string(headers.find("x-call-id")->second.data(), headers.find("x-call-id")->second.size()), "my-id-7");
  grpc::ClientContext second;
  request.clear_call_id();
  ASSERT_TRUE(server_.Generate(second, request).status.ok());
  EXPECT_EQ(second.GetServerInitialMetadata().find("x-call-id")->second.size(), 16);
}

TEST_F(GenerationTest, TwoAtOnceOnOneSessionIsAborted) {
  const std::string session = server_.NewSession();
  v1::GenerateRequest request = Ask("hello", 60000);
  request.set_session(session);
  grpc::ClientContext context;
  const auto reader = server_.generation().Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(server_.GetSession(session).condition(), v1::Session::CONDITION_ACTIVE);

  request = Ask("hello", 1);
  request.set_session(session);
  const Reply second = server_.Generate(request);
  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(DetailsOf(second.status).reason, "SESSION_BUSY");
  EXPECT_GT(DetailsOf(second.status).retry_seconds, 0);
  context.TryCancel();
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GenerationTest, CancellingStopsAtOnceAndTheSessionStandsAtTheLastTokenSampled) {
  const std::string session = server_.NewSession();
  v1::GenerateRequest request = Ask("hello", 60000);
  request.set_session(session);
  int64_t seen = 0;
  {
    grpc::ClientContext context;
    const auto reader = server_.generation().Generate(&context, request);
    v1::GenerateResponse message;
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(reader->Read(&message));
      seen = message.position();
    }
    context.TryCancel();
    while (reader->Read(&message)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  const absl::Time give_up = absl::Now() + absl::Seconds(20);
  while (server_.GetSession(session).condition() != v1::Session::CONDITION_IDLE && absl::Now() < give_up) {
    absl::SleepFor(absl::Milliseconds(2));
  }
  const v1::Session after = server_.GetSession(session);
  EXPECT_EQ(after.condition(), v1::Session::CONDITION_IDLE);
  EXPECT_THAT(after.position(), AllOf(Ge(seen), Le(60000)));
  request = Ask(" again", 3);
  request.set_session(session);
  const Reply reply = server_.Generate(request);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.position, after.position() + 6 + 3);
}

TEST_F(GenerationTest, ADeadlineEndsTheReply) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  const Reply reply = server_.Generate(context, Ask("hello", 60000));
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_FALSE(reply.tokens.empty());
  EXPECT_LT(reply.tokens.size(), 60000);
}

TEST_F(GenerationTest, ASlowReadersSequenceStopsUntilItReadsAndHoldsUpNobody) {
  // So much that neither gRPC's buffers nor the socket's hold it.
#ifdef __SANITIZE_THREAD__
  constexpr int kTokens = 25000;  // it looks long at each message of gRPC's
#else
  constexpr int kTokens = 60000;
#endif
  v1::GenerateRequest request = Ask("hello", kTokens);
  request.set_top_logprobs(20);
  grpc::ClientContext context;
  const auto reader = server_.generation().Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  std::vector<int32_t> ids;
  for (const auto& token : message.tokens()) ids.push_back(token.id());

  const auto generated = [this] { return server_.Metric("palimpsest_generated_tokens_total{model=\"tiny\"}"); };
  // It has stopped when nothing has come for a second; a busy machine may pause for less.
  double before = -1;
  for (double now = generated(); now != before; now = generated()) {
    before = now;
    absl::SleepFor(absl::Seconds(1));
  }
  EXPECT_LT(before, kTokens);
  EXPECT_EQ(server_.Metric("palimpsest_slots{model=\"tiny\",condition=\"used\"}"), 1);
  for (int i = 0; i < 3; ++i) {
    const Reply other = server_.Generate(Ask("others", 20));
    ASSERT_TRUE(other.status.ok());
  }
  EXPECT_LT(generated(), kTokens);

  while (reader->Read(&message)) {
    for (const auto& token : message.tokens()) ids.push_back(token.id());
  }
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(message.finish().usage().generated_tokens(), kTokens);
  EXPECT_THAT(ids, SizeIs(kTokens));
  EXPECT_EQ(ids, server_.Generate(Ask("hello", kTokens)).ids());
}

TEST_F(GenerationTest, NumbersThatAreNotFiniteEndTheirOwnCallOnly) {
  v1::GenerateRequest request = Ask("", 4);
  request.mutable_tokens()->add_ids(kPoisonToken);
  request.mutable_tokens()->add_ids(1);
  const std::string session = server_.NewSession();
  request.set_session(session);
  const Reply reply = server_.Generate(request);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(DetailsOf(reply.status).reason, "NUMBERS_NOT_FINITE");
  EXPECT_THAT(reply.status.error_message(), HasSubstr("its session is quarantined"));
  EXPECT_EQ(server_.GetSession(session).condition(), v1::Session::CONDITION_QUARANTINED);
  EXPECT_TRUE(server_.Generate(Ask("hello", 4)).status.ok());
}

TEST_F(GenerationTest, AFullQueueIsRefusedWithARetryDelay) {
  TestServer small([](ServerOptions& options) {
    options.engine.slots = 1;
    options.engine.max_queue = 1;
  });
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  v1::GenerateResponse message;
  for (int i = 0; i < 2; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(small.generation().Generate(contexts.back().get(), Ask("hello", 60000)));
    if (i > 0) continue;
    ASSERT_TRUE(readers[0]->Read(&message));
  }
  // The second one waits for the slot; that it has come can only be seen from outside.
  ASSERT_EQ(small.AwaitMetric("palimpsest_requests_waiting{model=\"tiny\"}", 1), 1);
  const Reply third = small.Generate(Ask("hello", 1));
  EXPECT_EQ(third.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(third.status).reason, "QUEUE_FULL");
  EXPECT_GT(DetailsOf(third.status).retry_seconds, 0);
  for (const auto& context : contexts) context->TryCancel();
  for (const auto& reader : readers) reader->Finish();
}

TEST_F(GenerationTest, ManyStreamsAtOnceEachGetTheirOwnTokens) {
  std::vector<std::vector<int32_t>> alone;
  for (int i = 0; i < 8; ++i) alone.push_back(server_.Generate(Ask(absl::StrCat("prompt ", i), 40)).ids());
  std::vector<std::vector<int32_t>> together(alone.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < together.size(); ++i) {
    threads.emplace_back([&, i] { together[i] = server_.Generate(Ask(absl::StrCat("prompt ", i), 40)).ids(); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(alone, together);
}

TEST_F(GenerationTest, ScoreGivesWhatGenerateSaidOfTheSameTokens) {
  v1::GenerateRequest request = Ask("hello", 10);
  request.set_logprobs(true);
  const Reply reply = server_.Generate(request);
  v1::ScoreRequest score;
  for (const char c : std::string("hello")) score.mutable_tokens()->add_ids(c);
  for (const int32_t id : reply.ids()) score.mutable_tokens()->add_ids(id);
  score.set_return_tokens(true);
  const auto [status, response] = server_.Score(score);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_THAT(response.tokens(), SizeIs(15));
  EXPECT_FALSE(response.tokens(0).has_logprob());
  EXPECT_EQ(response.tokens(0).token(), "h");
  EXPECT_EQ(response.scored_tokens(), 14);
  EXPECT_EQ(response.scored_bytes(), 14);
  EXPECT_EQ(response.position(), 15);
  double sum = 0;
  for (int i = 1; i < 15; ++i) sum += response.tokens(i).logprob();
  EXPECT_NEAR(response.total_logprob(), sum, 1e-9);
  // Prefill and decode may differ in the last bits.
  for (int i = 0; i < 10; ++i) EXPECT_NEAR(response.tokens(5 + i).logprob(), reply.tokens[i].logprob(), 1e-4);
}

TEST_F(GenerationTest, ScoringInPiecesThroughASessionGivesTheWhole) {
  const std::string text = "It was a dark and stormy night; the rain fell in torrents, except at intervals.";
  v1::ScoreRequest whole;
  whole.set_text(text);
  const auto [status, all] = server_.Score(whole);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(all.scored_tokens(), text.size() - 1);
  EXPECT_THAT(all.tokens(), SizeIs(0));

  const std::string session = server_.NewSession();
  double total = 0;
  int64_t tokens = 0;
  for (size_t at = 0; at < text.size(); at += 17) {
    v1::ScoreRequest piece;
    piece.set_session(session);
    piece.set_text(text.substr(at, 17));
    const auto [piece_status, response] = server_.Score(piece);
    ASSERT_TRUE(piece_status.ok()) << piece_status.error_message();
    total += response.total_logprob();
    tokens += response.scored_tokens();
  }
  EXPECT_EQ(tokens, all.scored_tokens());
  EXPECT_NEAR(total, all.total_logprob(), 1e-3);
  EXPECT_EQ(server_.GetSession(session).position(), text.size());
}

TEST_F(GenerationTest, ScoreReturnsAlternativesAndTheState) {
  v1::ScoreRequest request;
  request.set_text("hello");
  request.set_top_logprobs(2);
  request.set_return_state(true);
  request.set_return_state_digest(true);
  const auto [status, response] = server_.Score(request);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(response.tokens(4).top(), SizeIs(2));
  v1::GenerateRequest go_on = Ask("", 5);
  go_on.clear_prompt();
  go_on.set_state(response.state());
  const Reply reply = server_.Generate(go_on);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.ids(), server_.Generate(Ask("hello", 5)).ids());
}

TEST_F(GenerationTest, ScoreLastScoresOnlyTheLastTokens) {
  v1::ScoreRequest request;
  request.set_text("It was a dark and stormy night; the rain fell in torrents, except at occasional intervals.");
  request.set_return_tokens(true);
  request.set_return_state_digest(true);
  const auto [all_status, all] = server_.Score(request);
  ASSERT_TRUE(all_status.ok()) << all_status.error_message();
  const int size = all.tokens_size();
  ASSERT_GT(size, 66) << "more than a chunk";
  for (const int last : {1, 2, size - 65, size - 64, size - 63, size - 1, size}) {
    SCOPED_TRACE(last);
    request.set_score_last(last);
    const auto [status, response] = server_.Score(request);
    ASSERT_TRUE(status.ok()) << status.error_message();
    ASSERT_THAT(response.tokens(), SizeIs(last));
    double sum = 0;
    for (int i = 0; i < last; ++i) {
      EXPECT_EQ(response.tokens(i).SerializeAsString(), all.tokens(size - last + i).SerializeAsString()) << i;
      sum += response.tokens(i).logprob();
    }
    EXPECT_NEAR(response.total_logprob(), sum, 1e-9);
    // Nothing predicts the first token of an empty context, asked for or not.
    EXPECT_EQ(response.scored_tokens(), std::min(last, size - 1));
    EXPECT_EQ(response.scored_bytes(), response.scored_tokens());
    EXPECT_EQ(response.scored_characters(), response.scored_tokens());
    EXPECT_EQ(response.unknown_tokens(), 0);
    EXPECT_EQ(response.position(), size);
    EXPECT_EQ(response.state_digest(), all.state_digest());
  }
}

TEST_F(GenerationTest, ScoreLastWithinASessionMayBeTheWholePiece) {
  const std::string session = server_.NewSession();
  v1::ScoreRequest request;
  request.set_session(session);
  request.set_text("It was ");
  ASSERT_TRUE(server_.Score(request).first.ok());
  request.set_text("dark");
  request.set_score_last(4);
  request.set_return_tokens(true);
  const auto [status, response] = server_.Score(request);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.scored_tokens(), 4);
  EXPECT_EQ(response.tokens(0).token(), "d");
  EXPECT_TRUE(response.tokens(0).has_logprob());
}

TEST_F(GenerationTest, ScoredCharactersAreCodePoints) {
  v1::ScoreRequest request;
  request.set_text("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  const auto [status, response] = server_.Score(request);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.scored_bytes(), 9);
  EXPECT_EQ(response.scored_characters(), 3);
}

// A server whose model has a vocabulary of words.
class WordsTest : public ::testing::Test {
 protected:
  static void AddVocabulary(ServerOptions& options) {
    const std::string folder = options.model_root + "/tiny";
    std::ofstream symbols(folder + "/vocab.txt");
    symbols << "<eos>\n<unk>\nthe\ncat\n\xC3\xA9t\xC3\xA9\n";
    for (int id = 5; id < 256; ++id) symbols << "w" << id << "\n";
    std::ofstream(folder + "/vocabulary.json") << R"({"kind": "word", "unk": "<unk>", "eos": "<eos>"})";
  }
  TestServer server_{AddVocabulary};
};

TEST_F(WordsTest, TokenizeCountsWhatTheVocabularyDoesNotHave) {
  v1::TokenizeRequest request;
  v1::TokenizeResponse response;
  request.set_text(" the  dog \n\ncat the");
  {
    grpc::ClientContext context;
    ASSERT_TRUE(server_.generation().Tokenize(&context, request, &response).ok());
  }
  EXPECT_THAT(response.ids(), ElementsAre(2, 1, 0, 0, 3, 2));
  EXPECT_THAT(response.tokens(), ElementsAre("the", " <unk>", "\n", "\n", "cat", " the"));
  EXPECT_EQ(response.unknown_tokens(), 1);
  request.set_text("the");
  request.set_continues(true);
  {
    grpc::ClientContext context;
    ASSERT_TRUE(server_.generation().Tokenize(&context, request, &response).ok());
  }
  EXPECT_THAT(response.tokens(), ElementsAre(" the"));
  EXPECT_EQ(response.unknown_tokens(), 0);
  grpc::ClientContext context;
  v1::Model model;
  v1::GetModelRequest get;
  get.set_name("models/tiny");
  ASSERT_TRUE(server_.models().GetModel(&context, get, &model).ok());
  EXPECT_EQ(model.tokenizer(), "words");
}

TEST_F(WordsTest, ScoresInPiecesAddUpToTheWhole) {
  v1::ScoreRequest request;
  request.set_text("the dog \xC3\xA9t\xC3\xA9\ncat the");
  request.set_return_tokens(true);
  const auto [status, whole] = server_.Score(request);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(whole.unknown_tokens(), 1);
  EXPECT_EQ(whole.scored_tokens(), 5);
  EXPECT_EQ(whole.scored_bytes(), 6 + 6 + 1 + 3 + 4) << " <unk>, \xC3\xA9t\xC3\xA9 with its space, the line end, ...";
  EXPECT_EQ(whole.scored_characters(), whole.scored_bytes() - 2);
  const std::string session = server_.NewSession();
  v1::ScoreResponse sum;
  // The last piece holds no token at all.
  for (const char* text : {"the", " dog \xC3\xA9t\xC3\xA9", "\ncat", " the", "  "}) {
    v1::ScoreRequest piece;
    piece.set_session(session);
    piece.set_text(text);
    piece.set_return_tokens(true);
    const auto [piece_status, response] = server_.Score(piece);
    ASSERT_TRUE(piece_status.ok()) << piece_status.error_message();
    sum.set_total_logprob(sum.total_logprob() + response.total_logprob());
    sum.set_scored_bytes(sum.scored_bytes() + response.scored_bytes());
    sum.set_unknown_tokens(sum.unknown_tokens() + response.unknown_tokens());
    for (const v1::ScoredToken& token : response.tokens()) *sum.add_tokens() = token;
  }
  EXPECT_NEAR(sum.total_logprob(), whole.total_logprob(), 1e-3);
  EXPECT_EQ(sum.scored_bytes(), whole.scored_bytes());
  EXPECT_EQ(sum.unknown_tokens(), 1);
  ASSERT_EQ(sum.tokens_size(), whole.tokens_size());
  for (int i = 0; i < sum.tokens_size(); ++i) EXPECT_EQ(sum.tokens(i).token(), whole.tokens(i).token()) << i;
  // Nothing to score at all, and no context either.
  v1::ScoreRequest blank;
  blank.set_text("  ");
  const auto [blank_status, nothing] = server_.Score(blank);
  EXPECT_TRUE(blank_status.ok()) << blank_status.error_message();
  EXPECT_EQ(nothing.scored_tokens(), 0);
}

TEST_F(WordsTest, TheReplyIsTheTextOfItsTokensAfterThePrompt) {
  for (const std::string prompt : {"the cat", "the cat\n"}) {
    v1::GenerateRequest request = Ask(prompt, 30);
    request.set_top_logprobs(2);
    const Reply reply = server_.Generate(request);
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
    v1::DetokenizeRequest all;
    all.add_ids(2);
    all.add_ids(3);
    if (prompt.ends_with('\n')) all.add_ids(0);
    for (const int32_t id : reply.ids()) all.add_ids(id);
    grpc::ClientContext context;
    v1::DetokenizeResponse text;
    ASSERT_TRUE(server_.generation().Detokenize(&context, all, &text).ok());
    EXPECT_EQ(prompt + reply.text, text.text());
    // Greedy: the first alternative is the token itself, with the bytes that it has at its place.
    std::string told;
    for (const v1::GeneratedToken& token : reply.tokens) told += token.top(0).token();
    EXPECT_EQ(told, reply.text);
  }
}

TEST_F(GenerationTest, TokenizeAndDetokenizeAreInverse) {
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  request.set_text("h\xC3\xA9!");
  v1::TokenizeResponse tokens;
  ASSERT_TRUE(server_.generation().Tokenize(&context, request, &tokens).ok());
  EXPECT_THAT(tokens.ids(), ElementsAre('h', 0xC3, 0xA9, '!'));
  EXPECT_THAT(tokens.tokens(), ElementsAre("h", "\xC3", "\xA9", "!"));
  grpc::ClientContext back;
  v1::DetokenizeRequest ids;
  *ids.mutable_ids() = tokens.ids();
  v1::DetokenizeResponse text;
  ASSERT_TRUE(server_.generation().Detokenize(&back, ids, &text).ok());
  EXPECT_EQ(text.text(), request.text());
}

}  // namespace
}  // namespace palimpsest
