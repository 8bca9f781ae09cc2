// The same calls give the same bytes, whatever else the engine is doing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <string>

#include "kernels/common/test_device.h"
#include "server/engine/engine.h"
#include "server/engine/engine_testing.h"
#include "server/model/testing/model_runner.h"
#include "server/session/session_store.h"

namespace palimpsest::testing {
namespace {

using ::testing::ElementsAreArray;

std::vector<int32_t> Concatenated(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::vector<int32_t> Part(const std::vector<int32_t>& tokens, size_t begin, size_t end) {
  return {tokens.begin() + static_cast<int64_t>(begin), tokens.begin() + static_cast<int64_t>(end)};
}

// The rule of how a context grows, followed by hand on the model alone, greedily.
class ByHand {
 public:
  explicit ByHand(const Model& model) : vocabulary_(model.config().vocabulary), runner_(model, 1, 1) {}

  void Append(const std::vector<int32_t>& tokens) {
    if (pending_ >= 0) Forward({pending_});
    for (size_t i = 0; i + 1 < tokens.size(); i += 64) {
      Forward(Part(tokens, i, std::min(i + 64, tokens.size() - 1)));
    }
    pending_ = tokens.back();
  }
  int32_t Next() {
    Forward({pending_});
    const auto last = logits_.end() - vocabulary_;
    return pending_ = static_cast<int32_t>(std::max_element(last, logits_.end()) - last);
  }
  // Those of the state that are used.
  std::string StateBytes(const StateFormat& format) {
    const std::vector<std::byte> state = runner_.State(0);
    std::string bytes;
    for (const ByteRange& range : format.UsedRanges(position_)) {
      bytes.append(reinterpret_cast<const char*>(state.data()) + range.offset, static_cast<size_t>(range.bytes));
    }
    return bytes;
  }

 private:
  void Forward(const std::vector<int32_t>& tokens) {
    const ModelRunner::Piece piece{.slot = 0, .tokens = tokens, .first_position = position_};
    logits_ = runner_.Forward({&piece, 1});
    position_ += std::ssize(tokens);
  }

  const int64_t vocabulary_;
  ModelRunner runner_;
  std::vector<float> logits_;
  int32_t pending_ = -1;
  int64_t position_ = 0;
};

struct Family {
  const char* name;
  RandomCheckpointSpec spec;

  friend void PrintTo(const Family& row, std::ostream* out) { *out << row.name; }
};

std::vector<Family> Families() {
  const auto model = [](const char* model_type, const char* settings) {
    RandomCheckpointSpec spec;
    spec.model_type = model_type;
    spec.settings = settings;
    spec.eos_token = 7;
    return spec;
  };
  RandomCheckpointSpec delta_net;
  delta_net.model_type = "delta_net";
  return {{"gated_deltanet", TestSpec()},
          {"delta_net", delta_net},
          {"kda", model("kda", R"({"head_dim": 16})")},
          {"gated_deltaproduct", model("gated_deltaproduct", R"({"head_dim": 16, "num_householder": 2,
                                                                "use_forget_gate": true})")},
          {"gla", model("gla", "{}")},
          {"linear_attn", model("linear_attn", R"({"feature_map": "hedgehog", "norm_feature_map": true})")},
          {"fwp", model("fwp", R"({"qk_norm": "sum", "attention_norm": "key_and_output"})")},
          {"fwp_window", model("fwp", R"({"mixer": "softmax", "segment_length": 40})")}};
}

class LawsOfEveryFamily : public ::testing::TestWithParam<Family> {
 protected:
  // Loaded once for each family.
  static std::shared_ptr<const Model> ModelOfFamily() {
    static std::map<std::string, std::shared_ptr<const Model>> models;
    std::shared_ptr<const Model>& model = models[GetParam().name];
    if (model == nullptr) model = LoadModel(GetParam().spec);
    return model;
  }
};

INSTANTIATE_TEST_SUITE_P(EngineLaws, LawsOfEveryFamily, ::testing::ValuesIn(Families()),
                         [](const auto& info) { return info.param.name; });

TEST_P(LawsOfEveryFamily, AContextGrowsByTheDocumentedRule) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 2, .slots = 4}, {}, ModelOfFamily());
  for (const int64_t first : {1, 2, 64, 65, 66, 129, 200}) {
    for (const int64_t second : {0, 1, 2, 65, 130}) {
      ByHand by_hand(engine->model());
      const std::vector<int32_t> prompt = RandomTokens(first, 1);
      const std::vector<int32_t> more = RandomTokens(second, 2);
      const auto greedy = [](EngineRequest request) {
        request.sampling = {};
        request.sampling.temperature = 0;
        return request;
      };
      const auto expect_same = [&](const RecordingSink& reply) {
        for (const int32_t id : reply.ids()) ASSERT_EQ(by_hand.Next(), id);
        const State& state = *reply.Wait().state;
        ASSERT_EQ(by_hand.StateBytes(state.format), std::string(reinterpret_cast<const char*>(state.data.data()),
                                                                static_cast<size_t>(state.data.size())));
      };
      by_hand.Append(prompt);
      const auto reply = RunToEnd(*engine, greedy(Generate(prompt, 5)));
      ASSERT_EQ(reply->ids().size(), 5);
      expect_same(*reply);
      if (second > 0) by_hand.Append(more);
      const auto next = RunToEnd(*engine, greedy(Generate(more, 5, reply->Wait().state)));
      expect_same(*next);
      EXPECT_EQ(next->Wait().position, first + second + 10);
    }
  }
}

struct Outcome {
  std::string bits;
  std::string text;
  std::string digest;
  bool operator==(const Outcome&) const = default;
};

Outcome OutcomeOf(const RecordingSink& sink) {
  EXPECT_TRUE(sink.Wait().status.ok()) << sink.Wait().status;
  return {Bits(sink.tokens()), sink.text(), sink.Wait().state_digest};
}

std::vector<EngineRequest> SixtyFourRequests() {
  std::vector<EngineRequest> requests;
  for (uint64_t i = 0; i < 64; ++i) {
    const int64_t lengths[] = {1, 2, 63, 64, 65, 66, 127, 128, 129, 200, 300, 17};
    EngineRequest request = i % 8 == 7 ? Score(RandomTokens(lengths[i % 12], i))
                                       : Generate(RandomTokens(lengths[i % 12], i), static_cast<int64_t>(1 + i % 20));
    request.sampling.seed = i;
    if (i % 5 == 0) request.sampling.temperature = 0;
    requests.push_back(std::move(request));
  }
  return requests;
}

EngineRequest Copy(const EngineRequest& request) {
  EngineRequest copy;
  copy.kind = request.kind;
  copy.prompt = request.prompt;
  copy.initial = request.initial;
  copy.sampling = request.sampling;
  copy.max_tokens = request.max_tokens;
  copy.stop_strings = request.stop_strings;
  copy.ignore_end_of_text = request.ignore_end_of_text;
  copy.want_logprobs = request.want_logprobs;
  copy.top_logprobs = request.top_logprobs;
  copy.want_state = request.want_state;
  copy.want_digest = request.want_digest;
  return copy;
}

TEST_P(LawsOfEveryFamily, SixtyFourPromptsAloneAndTogetherGiveTheSameBytes) {
  const std::vector<EngineRequest> requests = SixtyFourRequests();
  std::vector<Outcome> alone;
  {
    const std::unique_ptr<Engine> engine =
        StartEngine({.threads = 1, .slots = 1, .prefill_budget = 64}, {}, ModelOfFamily());
    for (const EngineRequest& request : requests) alone.push_back(OutcomeOf(*RunToEnd(*engine, Copy(request))));
  }
  const EngineOptions kOptions[] = {
      {.threads = 1, .slots = 64, .prefill_budget = 256},     {.threads = 2, .slots = 64, .prefill_budget = 256},
      {.threads = 2, .slots = 7, .prefill_budget = 1},        {.threads = 2, .slots = 33, .prefill_budget = 100},
      {.threads = 1, .slots = 64, .prefill_budget = 100'000},
  };
  std::mt19937 random(5);
  for (const EngineOptions& options : kOptions) {
    const std::unique_ptr<Engine> engine = StartEngine(options, {}, ModelOfFamily());
    std::vector<size_t> order(requests.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::shuffle(order, random);
    std::vector<std::shared_ptr<RecordingSink>> sinks(requests.size());
    for (const size_t i : order) sinks[i] = Submit(*engine, Copy(requests[i]));
    for (size_t i = 0; i < sinks.size(); ++i) {
      const Outcome outcome = OutcomeOf(*sinks[i]);
      EXPECT_TRUE(outcome == alone[i]) << "request " << i << " with " << options.slots << " slots, budget "
                                       << options.prefill_budget;
    }
    EXPECT_EQ(engine->stats().slots_used, 0);
  }
}

TEST_P(LawsOfEveryFamily, TwentyTokensAreTenAndTen) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 2, .slots = 2}, {}, ModelOfFamily());
  for (const int64_t length : {1, 64, 100}) {
    const std::vector<int32_t> prompt = RandomTokens(length, 3);
    const Outcome whole = OutcomeOf(*RunToEnd(*engine, Generate(prompt, 20)));
    Outcome parts;
    StatePtr state;
    for (const int64_t count : {10, 1, 0, 9}) {
      const auto reply = RunToEnd(*engine, Generate(state == nullptr ? prompt : std::vector<int32_t>(), count, state));
      EXPECT_EQ(reply->ids().size(), count);
      const Outcome part = OutcomeOf(*reply);
      parts = {parts.bits + part.bits, parts.text + part.text, part.digest};
      state = reply->Wait().state;
    }
    EXPECT_TRUE(parts.bits == whole.bits);
    EXPECT_EQ(parts.text, whole.text);
    EXPECT_EQ(parts.digest, whole.digest);
  }
}

TEST_P(LawsOfEveryFamily, AppendingFirstAndThenGeneratingIsOneCall) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2}, {}, ModelOfFamily());
  const std::vector<int32_t> prompt = RandomTokens(150, 4);
  const auto appended = RunToEnd(*engine, Generate(prompt, 0));
  EXPECT_EQ(appended->Wait().position, 150);
  EXPECT_TRUE(appended->ids().empty());
  EXPECT_EQ(OutcomeOf(*RunToEnd(*engine, Generate({}, 9, appended->Wait().state))),
            OutcomeOf(*RunToEnd(*engine, Generate(prompt, 9))));
}

TEST_P(LawsOfEveryFamily, ForksSessionsAndInlineStatesGoOnAlike) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 2, .slots = 8}, {}, ModelOfFamily());
  SessionStore store({});
  const absl::Time now = absl::Now();
  ASSERT_TRUE(
      store.Create(kDefaultOwner, {.id = "parent", .model = "m", .state_bytes = engine->state_format().bytes}, now)
          .ok());
  const auto on_session = [&](const std::string& id, std::vector<int32_t> prompt, int64_t count) {
    EngineRequest request = Generate(std::move(prompt), count);
    request.lease = *store.Acquire(kDefaultOwner, id, absl::Now());
    request.initial = request.lease.state();
    return Submit(*engine, std::move(request));
  };
  on_session("parent", RandomTokens(100, 5), 7)->Wait();
  EXPECT_EQ(store.Get(kDefaultOwner, "parent", now)->position, 107);
  ASSERT_TRUE(store.Fork(kDefaultOwner, "parent", {"a", "b", "c"}, {}, now).ok());
  const StatePtr inline_state = store.Peek(kDefaultOwner, "parent", now)->state;
  const std::vector<int32_t> more = RandomTokens(70, 6);
  const auto inline_reply = Submit(*engine, Generate(more, 12, inline_state));
  std::vector<std::shared_ptr<RecordingSink>> replies;
  for (const char* id : {"parent", "a", "b"}) replies.push_back(on_session(id, more, 12));
  const auto other = on_session("c", RandomTokens(70, 7), 12);
  const Outcome expected = OutcomeOf(*inline_reply);
  for (const auto& reply : replies) EXPECT_EQ(OutcomeOf(*reply), expected);
  EXPECT_NE(OutcomeOf(*other).digest, expected.digest);
  EXPECT_EQ(StateDigest(*store.Peek(kDefaultOwner, "a", now)->state), expected.digest);
}

TEST_P(LawsOfEveryFamily, ASnapshotTakenUpElsewhereGoesOnAsIfNothingHadHappened) {
  Outcome straight;
  std::string bytes;
  Outcome resumed;
  const std::vector<int32_t> prompt = RandomTokens(90, 8);
  {
    const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2}, {}, ModelOfFamily());
    const auto first = RunToEnd(*engine, Generate(prompt, 300));
    bytes = *SerializeSnapshot(*first->Wait().state);
    straight = OutcomeOf(*RunToEnd(*engine, Generate({}, 20, first->Wait().state)));
  }
  // Another engine, with another model object loaded from the same checkpoint.
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 2, .slots = 5}, {}, LoadModel(GetParam().spec));
  const auto state = ParseSnapshot(bytes, engine->state_format());
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(OutcomeOf(*RunToEnd(*engine, Generate({}, 20, *state))), straight);
}

TEST(EngineLaws, StatesOfBFloat16KeepTheLaws) {
  const std::shared_ptr<const Model> model = LoadModel(TestSpec(), {.state_dtype = DType::kBF16});
  std::vector<EngineRequest> requests;
  for (int32_t i = 0; i < 6; ++i) requests.push_back(Generate(RandomTokens(1 + 37 * i, 40 + i), 12));
  std::vector<Outcome> alone;
  std::string bytes;
  {
    const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1}, {}, model);
    for (const EngineRequest& request : requests) alone.push_back(OutcomeOf(*RunToEnd(*engine, Copy(request))));
    bytes = *SerializeSnapshot(*RunToEnd(*engine, Copy(requests[0]))->Wait().state);
  }
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 2, .slots = 4, .prefill_budget = 100}, {}, model);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (const EngineRequest& request : requests) sinks.push_back(Submit(*engine, Copy(request)));
  for (size_t i = 0; i < sinks.size(); ++i) EXPECT_TRUE(OutcomeOf(*sinks[i]) == alone[i]) << "request " << i;
  // A snapshot goes on where its state went on, and is of no use where states are float32.
  const auto state = ParseSnapshot(bytes, engine->state_format());
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(OutcomeOf(*RunToEnd(*engine, Generate({}, 9, *state))),
            OutcomeOf(*RunToEnd(*engine, Generate({}, 9, sinks[0]->Wait().state))));
  const std::unique_ptr<Engine> other = StartEngine({.threads = 1, .slots = 1});
  const auto refused = ParseSnapshot(bytes, other->state_format());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()), ::testing::HasSubstr("--state_dtype"));
}

TEST_P(LawsOfEveryFamily, AScoreInPiecesIsTheScoreOfTheWhole) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 2, .slots = 2}, {}, ModelOfFamily());
  const std::vector<int32_t> text = RandomTokens(400, 9);
  const auto whole = RunToEnd(*engine, Score(text));
  ASSERT_EQ(whole->ids(), Part(text, 1, 400));
  EXPECT_EQ(whole->positions().back(), 400);
  EXPECT_EQ(whole->Wait().position, 400);
  std::vector<GeneratedTokenValue> pieces;
  StatePtr state;
  size_t begin = 0;
  for (const size_t length : {1, 1, 2, 62, 64, 65, 5, 200}) {
    const auto piece = RunToEnd(*engine, Score(Part(text, begin, begin + length), state));
    state = piece->Wait().state;
    begin += length;
    EXPECT_EQ(state->head.position, static_cast<int64_t>(begin));
    for (const GeneratedTokenValue& token : piece->tokens()) pieces.push_back(token);
  }
  ASSERT_EQ(begin, 400);
  ASSERT_EQ(pieces.size(), 399);
  const std::vector<GeneratedTokenValue> expected = whole->tokens();
  for (size_t i = 0; i < pieces.size(); ++i) {
    EXPECT_EQ(pieces[i].id, expected[i].id);
    EXPECT_NEAR(pieces[i].logprob, expected[i].logprob, 1e-4);
    EXPECT_EQ(pieces[i].top.size(), 2);
  }
}

TEST_P(LawsOfEveryFamily, WhatIsScoredLastHasTheBitsOfTheWhole) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 2, .slots = 2}, {}, ModelOfFamily());
  const std::vector<int32_t> text = RandomTokens(200, 13);
  const StatePtr context = RunToEnd(*engine, Score(RandomTokens(70, 14)))->Wait().state;
  for (const StatePtr& initial : {StatePtr(), context}) {
    const auto whole = RunToEnd(*engine, Score(text, initial));
    const std::vector<GeneratedTokenValue> expected = whole->tokens();
    for (const int64_t first : {0, 1, 2, 63, 64, 65, 66, 128, 199}) {
      EngineRequest request = Score(text, initial);
      request.first_scored = first;
      const auto part = RunToEnd(*engine, std::move(request));
      const int64_t before = std::max<int64_t>(first - (initial == nullptr ? 1 : 0), 0);  // that have an answer
      EXPECT_EQ(Bits(part->tokens()), Bits({expected.begin() + before, expected.end()})) << first;
      EXPECT_EQ(part->Wait().state_digest, whole->Wait().state_digest);
      EXPECT_EQ(part->positions().back(), whole->positions().back());
    }
  }
}

TEST(EngineLaws, TheScoreOfAReplyIsWhatItsTokensSaid) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 2});
  const std::vector<int32_t> prompt = RandomTokens(30, 10);
  const auto reply = RunToEnd(*engine, Generate(prompt, 40));
  const auto score = RunToEnd(*engine, Score(Concatenated(prompt, reply->ids())));
  const std::vector<GeneratedTokenValue> said = reply->tokens();
  const std::vector<GeneratedTokenValue> scored = score->tokens();
  for (size_t i = 0; i < said.size(); ++i) {
    EXPECT_EQ(scored[29 + i].id, said[i].id);
    EXPECT_NEAR(scored[29 + i].logprob, said[i].logprob, 1e-4);
  }
}

TEST(EngineLaws, SamplingCountsByPosition) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 4});
  const std::vector<int32_t> prompt = RandomTokens(10, 11);
  EngineRequest other_seed = Generate(prompt, 30);
  other_seed.sampling.seed = 43;
  const auto first = RunToEnd(*engine, Generate(prompt, 30));
  EXPECT_NE(RunToEnd(*engine, std::move(other_seed))->ids(), first->ids());
  EXPECT_EQ(RunToEnd(*engine, Generate(prompt, 30))->ids(), first->ids());
  EXPECT_EQ(first->Wait().seed, 42);
  std::vector<int64_t> positions;
  for (int64_t i = 11; i <= 40; ++i) positions.push_back(i);
  EXPECT_THAT(first->positions(), ElementsAreArray(positions));
}

// A penalty so high that no token of the window may come again shows what the window holds.
TEST(EngineLaws, PenaltiesSeeThePromptAndTheReplyOfEarlierCalls) {
  const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1});
  const std::vector<int32_t> prompt = RandomTokens(20, 12);
  std::vector<int32_t> seen = prompt;
  StatePtr state;
  for (int call = 0; call < 5; ++call) {
    EngineRequest request = Generate(call == 0 ? prompt : std::vector<int32_t>(), 30, state);
    request.sampling = {};
    request.sampling.temperature = 0;
    request.sampling.presence_penalty = 1e6f;
    request.sampling.logit_bias = {{kPoisonToken, -1e7f}};
    const auto reply = RunToEnd(*engine, std::move(request));
    for (const int32_t id : reply->ids()) {
      EXPECT_EQ(std::ranges::count(seen, id), 0) << id;
      seen.push_back(id);
    }
    state = reply->Wait().state;
  }
}

// The device sums in another order: logits differ in the last digits, greedy text does not. (With bf16 products a last
// digit can turn the rounding of a factor, and a near tie with it.)
TEST(EngineLaws, TheBundledCheckpointSaysTheSameOnADevice) {
  const std::shared_ptr<Device> device = OpenTestDevice();
  if (device == nullptr) GTEST_SKIP() << "no device in this program";
  const auto say = [](std::shared_ptr<Device> where) {
    absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(
        PALIMPSEST_SOURCE_DIR "/checkpoints/books-5m", {.math = ModelOptions::Math::kF32, .device = std::move(where)});
    EXPECT_TRUE(model.ok()) << model.status();
    const std::unique_ptr<Engine> engine = StartEngine({.threads = 1, .slots = 1}, {}, *std::move(model));
    EngineRequest request = Generate({310, 52, 7, 1200, 33, 8, 95}, 40);
    request.sampling = {};
    request.sampling.temperature = 0;
    request.ignore_end_of_text = true;
    return RunToEnd(*engine, std::move(request))->ids();
  };
  EXPECT_THAT(say(device), ElementsAreArray(say(nullptr)));
}

}  // namespace
}  // namespace palimpsest::testing
