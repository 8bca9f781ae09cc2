#include "server/engine/engine_testing.h"

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/check.h"

namespace palimpsest::testing {
namespace {

constexpr absl::Duration kPatience = absl::Minutes(1);

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

}  // namespace

RandomCheckpointSpec TestSpec() {
  RandomCheckpointSpec spec;
  spec.poison_token = kPoisonToken;
  spec.eos_token = 7;
  return spec;
}

std::shared_ptr<const Model> LoadModel(const RandomCheckpointSpec& spec, ModelOptions options) {
  if (options.device == nullptr) options.device = OpenTestDevice();
  options.write_interval = 3;
  static std::atomic<int> counter = 0;
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / absl::StrCat("palimpsest_engine_test_", getpid(), "_", ++counter);
  WriteRandomCheckpoint(folder.string(), spec);
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(folder.string(), options);
  std::filesystem::remove_all(folder);
  EXPECT_TRUE(model.ok()) << model.status();
  PALIMPSEST_CHECK(model.ok());
  return *std::move(model);
}

std::shared_ptr<const Model> TestModel() {
  static const std::shared_ptr<const Model> model = LoadModel(TestSpec());
  return model;
}

AwkwardTokenizer::AwkwardTokenizer(int32_t vocabulary) {
  // All pieces of "€", "é" and "😀", and letters.
  const std::string characters = "\xE2\x82\xAC\xC3\xA9\xF0\x9F\x98\x80";
  for (int32_t id = 0; id < vocabulary; ++id) {
    if (id % 4 == 0) {
      bytes_.push_back(characters.substr(static_cast<size_t>(id / 4 % 9), static_cast<size_t>(1 + id / 36 % 3)));
    } else {
      std::string letters;
      for (int32_t i = 0; i <= id % 3; ++i) letters += static_cast<char>('a' + (id + i) % 5);
      bytes_.push_back(letters);
    }
  }
}

void RecordingSink::OnDelta(Delta delta) {
  absl::MutexLock lock(&mu_);
  EXPECT_EQ(finishes_, 0) << "a delta after the finish";
  tokens_seen_ += std::ssize(delta.tokens);
  deltas_.push_back(std::move(delta));
}

void RecordingSink::OnFinish(Finish finish) {
  absl::MutexLock lock(&mu_);
  EXPECT_EQ(++finishes_, 1);
  finish_ = std::move(finish);
}

const RequestSink::Finish& RecordingSink::Wait() const {
  absl::MutexLock lock(&mu_);
  const bool finished = mu_.AwaitWithTimeout(absl::Condition(this, &RecordingSink::IsFinished), kPatience);
  PALIMPSEST_CHECK(finished);
  return finish_;
}

void RecordingSink::WaitForTokens(int64_t count) const {
  const absl::Time deadline = absl::Now() + kPatience;
  while (tokens_seen_ < count) {
    PALIMPSEST_CHECK(absl::Now() < deadline);
    absl::SleepFor(absl::Microseconds(100));
  }
}

bool RecordingSink::finished() const {
  absl::MutexLock lock(&mu_);
  return finishes_ > 0;
}

std::vector<int32_t> RecordingSink::ids() const {
  std::vector<int32_t> ids;
  for (const GeneratedTokenValue& token : tokens()) ids.push_back(token.id);
  return ids;
}

std::vector<GeneratedTokenValue> RecordingSink::tokens() const {
  absl::MutexLock lock(&mu_);
  std::vector<GeneratedTokenValue> tokens;
  for (const Delta& delta : deltas_) tokens.insert(tokens.end(), delta.tokens.begin(), delta.tokens.end());
  return tokens;
}

std::string RecordingSink::text() const {
  absl::MutexLock lock(&mu_);
  std::string text;
  for (const Delta& delta : deltas_) text += delta.text;
  return text;
}

std::vector<int64_t> RecordingSink::positions() const {
  absl::MutexLock lock(&mu_);
  std::vector<int64_t> positions;
  for (const Delta& delta : deltas_) positions.push_back(delta.position);
  return positions;
}

std::unique_ptr<Engine> StartEngine(const EngineOptions& options, EngineObserver observer,
                                    std::shared_ptr<const Model> model) {
  auto tokenizer = std::make_shared<AwkwardTokenizer>(model->config().vocabulary);
  absl::StatusOr<std::unique_ptr<Engine>> engine =
      Engine::Start(std::move(model), std::move(tokenizer), options, std::move(observer));
  EXPECT_TRUE(engine.ok()) << engine.status();
  PALIMPSEST_CHECK(engine.ok());
  return *std::move(engine);
}

std::shared_ptr<RecordingSink> Submit(Engine& engine, EngineRequest request, RequestId* id) {
  auto sink = request.sink == nullptr ? std::make_shared<RecordingSink>()
                                      : std::dynamic_pointer_cast<RecordingSink>(request.sink);
  request.sink = sink;
  request.arrival = absl::Now();
  const absl::StatusOr<RequestId> submitted = engine.Submit(request);
  EXPECT_TRUE(submitted.ok()) << submitted.status();
  PALIMPSEST_CHECK(submitted.ok());
  if (id != nullptr) *id = *submitted;
  return sink;
}

std::shared_ptr<RecordingSink> RunToEnd(Engine& engine, EngineRequest request) {
  std::shared_ptr<RecordingSink> sink = Submit(engine, std::move(request));
  sink->Wait();
  return sink;
}

std::vector<int32_t> RandomTokens(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % kPoisonToken);
  return tokens;
}

EngineRequest Generate(std::vector<int32_t> prompt, int64_t max_tokens, StatePtr initial) {
  EngineRequest request;
  request.prompt = std::move(prompt);
  request.initial = std::move(initial);
  request.max_tokens = max_tokens;
  request.sampling.seed = 42;
  request.sampling.top_p = 0.95f;
  request.sampling.repetition_penalty = 1.1f;
  request.sampling.frequency_penalty = 0.1f;
  request.sampling.logit_bias = {{kPoisonToken, -100.0f}};
  request.ignore_end_of_text = true;
  request.want_logprobs = true;
  request.top_logprobs = 3;
  request.want_state = true;
  request.want_digest = true;
  return request;
}

EngineRequest Score(std::vector<int32_t> text, StatePtr initial) {
  EngineRequest request;
  request.kind = EngineRequest::Kind::kScore;
  request.prompt = std::move(text);
  request.initial = std::move(initial);
  request.top_logprobs = 2;
  request.want_state = true;
  request.want_digest = true;
  return request;
}

void SessionsTest::NewSession(const std::string& id) {
  ASSERT_TRUE(store_.Create(kDefaultOwner, {.id = id, .model = "m", .state_bytes = 1}, absl::Now()).ok());
}

EngineRequest SessionsTest::OnSession(const std::string& id, EngineRequest request) {
  absl::StatusOr<SessionLease> lease = store_.Acquire(kDefaultOwner, id, absl::Now());
  EXPECT_TRUE(lease.ok()) << lease.status();
  request.lease = *std::move(lease);
  request.initial = request.lease.state();
  return request;
}

std::string Bits(const std::vector<GeneratedTokenValue>& tokens) {
  std::string bits;
  for (const GeneratedTokenValue& token : tokens) {
    Put(bits, token.id);
    Put(bits, token.logprob);
    for (const TokenLogprobValue& alternative : token.top) {
      Put(bits, alternative.id);
      Put(bits, alternative.logprob);
    }
  }
  return bits;
}

}  // namespace palimpsest::testing
