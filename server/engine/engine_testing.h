// What the engine's tests share: a tiny model, a tokenizer with awkward tokens, a sink that remembers.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kernels/common/test_device.h"
#include "server/engine/engine.h"
#include "server/model/testing/random_checkpoint.h"
#include "server/session/session_store.h"

namespace palimpsest::testing {

// Ends a sequence's numbers in the model of TestSpec().
constexpr int32_t kPoisonToken = 255;

// A reply so long that it cannot end by itself while a test runs.
constexpr int64_t kEndless = 1'000'000'000;

RandomCheckpointSpec TestSpec();
// On the test device, if there is one, unless the options name another.
std::shared_ptr<const Model> LoadModel(const RandomCheckpointSpec& spec, ModelOptions options = {});
// The model of TestSpec(), loaded once.
std::shared_ptr<const Model> TestModel();

// Tokens of one to three bytes, many of which are parts of characters.
class AwkwardTokenizer : public Tokenizer {
 public:
  explicit AwkwardTokenizer(int32_t vocabulary);
  std::string_view kind() const override { return "awkward"; }
  int32_t vocabulary() const override { return static_cast<int32_t>(bytes_.size()); }
  std::string_view Bytes(int32_t id, int32_t) const override {
    return id < vocabulary() ? std::string_view(bytes_[id]) : std::string_view();
  }

 protected:
  void Append(std::string_view, bool, size_t, std::vector<int32_t>&, int64_t&) const override {}
  int32_t Find(std::string_view) const override { return -1; }

 private:
  std::vector<std::string> bytes_;
};

// Remembers all that it is told, and checks that nothing follows OnFinish. Thread-safe.
class RecordingSink : public RequestSink {
 public:
  void OnDelta(Delta delta) override;
  void OnFinish(Finish finish) override;
  int64_t undelivered_tokens() const override { return slow_ ? tokens_seen_.load() - taken_.load() : 0; }

  // A reader that has taken `taken` tokens so far.
  void ReadSlowly(int64_t taken) {
    taken_ = taken;
    slow_ = true;
  }
  // Fails the test after a minute.
  const Finish& Wait() const;
  // Waits until at least `count` tokens have come.
  void WaitForTokens(int64_t count) const;
  bool finished() const;
  std::vector<int32_t> ids() const;
  std::vector<GeneratedTokenValue> tokens() const;
  std::string text() const;
  // Of each delta.
  std::vector<int64_t> positions() const;

 private:
  bool IsFinished() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return finishes_ > 0; }

  mutable absl::Mutex mu_;
  std::vector<Delta> deltas_ ABSL_GUARDED_BY(mu_);
  Finish finish_ ABSL_GUARDED_BY(mu_);
  int finishes_ ABSL_GUARDED_BY(mu_) = 0;
  std::atomic<int64_t> tokens_seen_ = 0;
  std::atomic<int64_t> taken_ = 0;
  std::atomic<bool> slow_ = false;
};

std::unique_ptr<Engine> StartEngine(const EngineOptions& options, EngineObserver observer = {},
                                    std::shared_ptr<const Model> model = TestModel());

// Submits and returns the sink; the test fails if the engine refuses.
std::shared_ptr<RecordingSink> Submit(Engine& engine, EngineRequest request, RequestId* id = nullptr);
// Submits and waits.
std::shared_ptr<RecordingSink> RunToEnd(Engine& engine, EngineRequest request);

// `count` random ids, none of them poison.
std::vector<int32_t> RandomTokens(int64_t count, uint64_t seed);

// A request to generate, with sampling that uses all of its parts.
EngineRequest Generate(std::vector<int32_t> prompt, int64_t max_tokens, StatePtr initial = nullptr);
EngineRequest Score(std::vector<int32_t> text, StatePtr initial = nullptr);

// Tests with sessions.
class SessionsTest : public ::testing::Test {
 protected:
  void NewSession(const std::string& id);
  EngineRequest OnSession(const std::string& id, EngineRequest request);
  StatePtr Parked(const std::string& id) { return store_.Peek(kDefaultOwner, id, absl::Now())->state; }

  SessionStore store_{{}};
};

// All bits of the tokens: ids, log-probabilities, alternatives.
std::string Bits(const std::vector<GeneratedTokenValue>& tokens);

}  // namespace palimpsest::testing
