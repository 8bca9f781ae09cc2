// How a reply ends, what its text is, and what is counted.
#include "server/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "absl/time/clock.h"
#include "server/engine/engine_testing.h"
#include "server/session/session_store.h"

namespace palimpsest::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// The text of the tokens, invalid bytes replaced.
std::string TextOf(const Engine& engine, const std::vector<int32_t>& ids) {
  Utf8Stream stream;
  std::string text;
  for (const int32_t id : ids) text += stream.Push(engine.tokenizer().Bytes(id, 0));
  return text + stream.Flush();
}

// Nobody can go on from the reply: no session, no state.
EngineRequest Stateless(EngineRequest request) {
  request.want_state = false;
  return request;
}

class EngineTest : public ::testing::Test {
 protected:
  const std::unique_ptr<Engine> engine_ = StartEngine({.threads = 1, .slots = 4});
};

TEST_F(EngineTest, StreamsTheTextOfItsTokens) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto reply = RunToEnd(*engine_, Stateless(Generate(RandomTokens(5, seed), 25)));
    EXPECT_EQ(reply->text(), TextOf(*engine_, reply->ids()));
    EXPECT_EQ(reply->Wait().reason, EndReason::kLength);
  }
}

// Ids that have no text, since the embedding has more rows than the tokenizer has tokens.
TEST(EnginePadding, IsNeverDrawnAndIsScoredAsItIs) {
  constexpr int32_t kTokens = 246;
  RandomCheckpointSpec spec;
  spec.eos_token = 250;
  const std::shared_ptr<const Model> model = LoadModel(spec);
  const auto start = [&](int32_t tokens) {
    return *Engine::Start(model, std::make_shared<AwkwardTokenizer>(tokens), {.threads = 1, .slots = 2});
  };
  const std::unique_ptr<Engine> padded = start(kTokens), whole = start(spec.vocabulary);
  std::set<int32_t> drawn, drawn_of_all;
  for (const auto& [engine, ids] : {std::pair(padded.get(), &drawn), std::pair(whole.get(), &drawn_of_all)}) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      EngineRequest request = Generate(RandomTokens(3, seed), 600);
      request.sampling = {.logit_bias = {{3, 1.0f}, {251, 50.0f}}, .temperature = 8.0f, .seed = seed};
      for (const int32_t id : RunToEnd(*engine, std::move(request))->ids()) ids->insert(id);
    }
  }
  drawn.erase(spec.eos_token);
  EXPECT_LT(*drawn.rbegin(), kTokens);
  EXPECT_GE(*drawn_of_all.rbegin(), kTokens) << "what is never drawn would be";
  const std::vector<int32_t> text = {3, 251, 255, 246, 7};
  EXPECT_EQ(Bits(RunToEnd(*padded, Score(text))->tokens()), Bits(RunToEnd(*whole, Score(text))->tokens()));
}

TEST_F(EngineTest, CountsAndTimesWhatItDid) {
  const absl::Time begin = absl::Now();
  const auto first = RunToEnd(*engine_, Generate(RandomTokens(80, 1), 9));
  const auto second = RunToEnd(*engine_, Generate(RandomTokens(5, 2), 4, first->Wait().state));
  const absl::Duration elapsed = absl::Now() - begin;
  const RequestSink::Finish& finish = second->Wait();
  EXPECT_EQ(finish.prompt_tokens, 5);
  EXPECT_EQ(finish.generated_tokens, 4);
  EXPECT_EQ(finish.cached_tokens, 89);
  EXPECT_EQ(finish.position, 98);
  EXPECT_GE(finish.queue_time, absl::ZeroDuration());
  EXPECT_GE(finish.time_to_first_token, finish.queue_time);
  EXPECT_GE(finish.total_time, finish.time_to_first_token);
  EXPECT_LE(finish.total_time, elapsed);
  const EngineStats stats = engine_->stats();
  EXPECT_EQ(stats.slots, 4);
  EXPECT_EQ(stats.slots_used, 0);
  EXPECT_EQ(stats.prompt_tokens, 85);
  EXPECT_EQ(stats.generated_tokens, 13);
  EXPECT_EQ(stats.cached_tokens, 89);
  // 79 prompt tokens in one iteration, 9 steps; the pending token, 4 prompt tokens, 4 steps.
  EXPECT_EQ(stats.iterations, 10 + 6);
}

TEST_F(EngineTest, StopsAtAStopStringWhereverTheTokensCutIt) {
  const std::vector<int32_t> prompt = RandomTokens(8, 3);
  const auto whole = RunToEnd(*engine_, Stateless(Generate(prompt, 60)));
  const std::string text = whole->text();
  int stopped_inside = 0;
  for (size_t begin = 3; begin + 4 < text.size(); begin += 5) {
    const std::string stop = text.substr(begin, 4);
    const auto is_tail = [](char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; };
    if (is_tail(text[begin]) || is_tail(text[begin + 4])) continue;  // not whole characters
    EngineRequest request = Generate(prompt, 60);
    request.stop_strings = {"no such text", stop};
    const auto reply = RunToEnd(*engine_, std::move(request));
    const size_t expected = text.find(stop);
    EXPECT_EQ(reply->text(), text.substr(0, expected));
    EXPECT_EQ(reply->Wait().reason, EndReason::kStopString);
    EXPECT_EQ(reply->Wait().stop_string, stop);
    // No token after the one that completed the match; the context keeps them all.
    const std::vector<int32_t> ids = reply->ids();
    const std::vector<int32_t> all_but_last(ids.begin(), ids.end() - 1);
    EXPECT_EQ(TextOf(*engine_, all_but_last).find(stop), std::string::npos);
    EXPECT_NE(TextOf(*engine_, ids).find(stop), std::string::npos);
    EXPECT_EQ(reply->Wait().position, 8 + std::ssize(ids));
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), whole->ids().begin()));
    ++stopped_inside;
  }
  EXPECT_GE(stopped_inside, 5);
}

TEST_F(EngineTest, SendsWhatLookedLikeAStopStringWhenTheReplyEnds) {
  const std::vector<int32_t> prompt = RandomTokens(8, 4);
  const auto whole = RunToEnd(*engine_, Stateless(Generate(prompt, 20)));
  EngineRequest request = Stateless(Generate(prompt, 20));
  request.stop_strings = {whole->text().substr(whole->text().size() - 12) + "and more"};
  const auto reply = RunToEnd(*engine_, std::move(request));
  EXPECT_EQ(reply->text(), whole->text());
  EXPECT_EQ(reply->Wait().reason, EndReason::kLength);
}

TEST_F(EngineTest, StopsAtAStopTokenWhichIsPartOfTheContextButNotOfTheText) {
  const std::vector<int32_t> prompt = RandomTokens(8, 5);
  const auto whole = RunToEnd(*engine_, Stateless(Generate(prompt, 30)));
  const std::vector<int32_t> ids = whole->ids();
  const int32_t stop = ids[12];
  const int64_t first = std::ranges::find(ids, stop) - ids.begin();
  EngineRequest request = Generate(prompt, 30);
  request.stop_tokens = {200, stop};
  const auto reply = RunToEnd(*engine_, Stateless(std::move(request)));
  EXPECT_EQ(reply->Wait().reason, EndReason::kStopToken);
  EXPECT_EQ(reply->ids(), std::vector<int32_t>(ids.begin(), ids.begin() + first + 1));
  EXPECT_EQ(reply->text(), TextOf(*engine_, {ids.begin(), ids.begin() + first}));
  EXPECT_EQ(reply->Wait().generated_tokens, first + 1);
  EXPECT_EQ(reply->Wait().position, 8 + first + 1);
}

TEST_F(EngineTest, StopsAtTheModelsEndOfTextUnlessItIsIgnored) {
  const int32_t end_of_text = TestSpec().eos_token;
  ASSERT_THAT(engine_->model().config().eos_tokens, ElementsAre(end_of_text));
  for (const bool ignore : {false, true}) {
    EngineRequest request = Generate(RandomTokens(8, 6), 5);
    request.sampling = {};
    request.sampling.temperature = 0;
    request.sampling.logit_bias = {{end_of_text, 1e6f}};
    request.ignore_end_of_text = ignore;
    const auto reply = RunToEnd(*engine_, Stateless(std::move(request)));
    EXPECT_EQ(reply->Wait().reason, ignore ? EndReason::kLength : EndReason::kStopToken);
    EXPECT_EQ(reply->ids().size(), ignore ? 5 : 1);
    EXPECT_EQ(reply->text().empty(), !ignore);
  }
}

TEST_F(EngineTest, ACharacterThatOneReplyBeginsIsFinishedByTheNext) {
  // Find tokens that stand for "\xE2" and, after it, for bytes that go on.
  const auto force = [&](EngineRequest request, int32_t token) {
    request.sampling = {};
    request.sampling.temperature = 0;
    request.sampling.logit_bias = {{token, 1e6f}};
    return request;
  };
  const auto token_of = [&](std::string_view bytes) {
    for (int32_t id = 0; id < 256; ++id) {
      if (engine_->tokenizer().Bytes(id, 0) == bytes) return id;
    }
    return -1;
  };
  const int32_t begin = token_of("\xE2\x82");
  const int32_t end = token_of("\xAC");
  ASSERT_GE(begin, 0);
  ASSERT_GE(end, 0);
  const auto first = RunToEnd(*engine_, force(Generate({1}, 1), begin));
  EXPECT_EQ(first->text(), "");
  EXPECT_EQ(first->Wait().state->head.undecoded, "\xE2\x82");
  const auto appended_nothing = RunToEnd(*engine_, Generate({}, 0, first->Wait().state));
  EXPECT_EQ(appended_nothing->Wait().state_digest, first->Wait().state_digest);
  const auto next = RunToEnd(*engine_, force(Generate({}, 1, first->Wait().state), end));
  EXPECT_EQ(next->text(), "€");
  EXPECT_EQ(next->Wait().state->head.undecoded, "");
  // A prompt comes between.
  const auto apart = RunToEnd(*engine_, force(Generate({1}, 1, first->Wait().state), end));
  EXPECT_EQ(apart->text(), "\xEF\xBF\xBD");
  // Nobody goes on: the text says that something was there. The state would be the same.
  const auto alone = RunToEnd(*engine_, force(Stateless(Generate({1}, 1)), begin));
  EXPECT_EQ(alone->text(), "\xEF\xBF\xBD");
  EXPECT_EQ(alone->Wait().state_digest, first->Wait().state_digest);
}

TEST_F(EngineTest, RequestsWithNothingToRunEndAtOnce) {
  const auto nothing = RunToEnd(*engine_, Generate({}, 0));
  EXPECT_TRUE(nothing->Wait().status.ok());
  EXPECT_EQ(nothing->Wait().position, 0);
  EXPECT_EQ(nothing->Wait().state->head, SequenceHead());
  const auto one = RunToEnd(*engine_, Score({9}));
  EXPECT_EQ(one->Wait().position, 1);
  EXPECT_THAT(one->ids(), IsEmpty());
  EXPECT_EQ(one->Wait().state->head.pending, 9);
  EXPECT_EQ(RunToEnd(*engine_, Score({}))->Wait().position, 0);
  const auto second = RunToEnd(*engine_, Score({11}, one->Wait().state));
  EXPECT_THAT(second->ids(), ElementsAre(11));
  EXPECT_EQ(engine_->stats().iterations, 1);
}

TEST_F(EngineTest, ReportsLogProbabilitiesOnlyWhenAsked) {
  EngineRequest request = Generate({1, 2, 3}, 4);
  request.top_logprobs = 0;
  request.want_logprobs = false;
  const auto quiet = RunToEnd(*engine_, std::move(request));
  const auto full = RunToEnd(*engine_, Generate({1, 2, 3}, 4));
  EXPECT_EQ(quiet->ids(), full->ids());
  for (const GeneratedTokenValue& token : quiet->tokens()) EXPECT_TRUE(token.top.empty());
  for (const GeneratedTokenValue& token : full->tokens()) {
    ASSERT_EQ(token.top.size(), 3);
    EXPECT_LT(token.logprob, 0);
    EXPECT_GE(token.top[0].logprob, token.top[1].logprob);
    EXPECT_LE(token.logprob, token.top[0].logprob);
  }
}

TEST_F(EngineTest, AsksForStateAndDigestOneByOne) {
  EngineRequest request = Generate({1, 2, 3}, 4);
  request.want_digest = false;
  const auto state = RunToEnd(*engine_, std::move(request));
  EXPECT_TRUE(state->Wait().state_digest.empty());
  ASSERT_NE(state->Wait().state, nullptr);
  EXPECT_EQ(state->Wait().state->format, engine_->state_format());
  const auto digest = RunToEnd(*engine_, Stateless(Generate({1, 2, 3}, 4)));
  EXPECT_EQ(digest->Wait().state, nullptr);
  EXPECT_EQ(digest->Wait().state_digest, StateDigest(*state->Wait().state));
}

TEST_F(EngineTest, AnEmptyAppendLeavesASessionUntouched) {
  SessionStore store({});
  const uint64_t version =
      store.Create(kDefaultOwner, {.id = "a", .model = "m", .state_bytes = 1}, absl::Now())->version;
  EngineRequest request = Generate({}, 0);
  request.lease = *store.Acquire(kDefaultOwner, "a", absl::Now());
  EXPECT_TRUE(RunToEnd(*engine_, std::move(request))->Wait().status.ok());
  EXPECT_EQ(store.Get(kDefaultOwner, "a", absl::Now())->version, version);
  EXPECT_EQ(store.Peek(kDefaultOwner, "a", absl::Now())->state, nullptr);
}

TEST(EngineObserverTest, IsToldOfIterationsTokensAndFinishes) {
  int64_t rows = 0;
  int64_t sequences = 0;
  int64_t gaps = 0;
  std::vector<absl::Duration> queued;
  std::vector<absl::Duration> first;
  std::vector<int64_t> finished;
  std::unique_ptr<Engine> engine =
      StartEngine({.threads = 1, .slots = 2},
                  {.on_iteration =
                       [&](int32_t batch_rows, int32_t batch_sequences, absl::Duration time) {
                         rows += batch_rows;
                         sequences += batch_sequences;
                         EXPECT_GT(time, absl::ZeroDuration());
                       },
                   .on_queued = [&](absl::Duration time) { queued.push_back(time); },
                   .on_first_token = [&](absl::Duration time) { first.push_back(time); },
                   .on_finish = [&](const RequestSink::Finish& finish) { finished.push_back(finish.generated_tokens); },
                   .on_token =
                       [&](absl::Duration time) {
                         ++gaps;
                         EXPECT_GT(time, absl::ZeroDuration());
                       }});
  const auto sink = RunToEnd(*engine, Generate(RandomTokens(70, 7), 5));
  engine.reset();
  EXPECT_THAT(queued, ElementsAre(sink->Wait().queue_time));
  EXPECT_THAT(first, ElementsAre(sink->Wait().time_to_first_token));
  EXPECT_EQ(rows, 69 + 5);
  EXPECT_EQ(sequences, 1 + 5);
  EXPECT_EQ(gaps, 4);
  EXPECT_THAT(finished, ElementsAre(5));
}

}  // namespace
}  // namespace palimpsest::testing
