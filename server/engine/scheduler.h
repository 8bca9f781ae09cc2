// Decides what runs next, from plain data: no model, no threads, no clock of its own.
//
// A job is a request as the scheduler sees it. It waits in line for a lane (a place in the batch), then
//   1. feeds its context's pending token, as a step of its own, if it has one and a prompt follows;
//   2. prefills its prompt in chunks of kChunk rows counted from the prompt's first token;
//   3. decodes, one row in each batch, until it leaves.
// The border between one and two, and the borders of the chunks, are the job's own: they never depend on what else
// runs. That is what makes a sequence's bits independent of the schedule, so a chunk is never cut to fit a budget.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "kernels/fast_weight/fast_weight.h"

namespace palimpsest {

// Not thread-safe.
class Scheduler {
 public:
  static constexpr int32_t kChunk = FastWeightParams::kChunk;

  struct Job {
    uint64_t id = 0;
    absl::Time deadline = absl::InfiniteFuture();
    bool feed = false;         // a pending token comes before the prompt
    int64_t prefill_rows = 0;  // prompt tokens that the model takes in before it decodes
    bool decode = false;       // else the job has nothing more to run after its prompt
  };
  struct Admission {
    uint64_t id = 0;
    int32_t lane = -1;
  };
  enum class Work : uint8_t { kFeed, kPrefill, kDecode };
  // What one lane does in a batch. Lanes of a batch are distinct.
  struct Item {
    int32_t lane = -1;
    Work work = Work::kDecode;
    int64_t begin = 0;  // kPrefill: first prompt token, a multiple of kChunk
    int32_t rows = 1;
    bool completes_prompt = false;  // nothing of feed and prompt is left after this
  };

  // A batch decodes all lanes that are ready and takes in up to `prefill_budget` prompt rows, at least one chunk.
  Scheduler(int32_t lanes, int32_t prefill_budget);

  // To the end of the line.
  void Enqueue(const Job& job);
  // The job at the head of the line gets a lane; nothing if there is no job or no free lane. A job without feed and
  // prefill rows is ready to decode at once.
  std::optional<Admission> Admit();
  // Takes a waiting job out of the line. False: it is not waiting.
  bool Withdraw(uint64_t id);
  // Frees a lane.
  void Leave(int32_t lane);
  // A lane that is held does not decode.
  void Hold(int32_t lane, bool held);

  // Replaces `items` by the next batch, which is taken as done from here on. Prompts take turns, one chunk each; whose
  // turn it was not comes first the next time. A last chunk of one row is a step, and never in one item with others.
  void NextBatch(std::vector<Item>& items);

  // Whether Admit has a lane to give, or NextBatch something to run.
  bool HasWork() const;

  // Jobs whose deadline is not after `now`, waiting ones in line first.
  std::vector<uint64_t> Expired(absl::Time now) const;
  // The earliest deadline of any job; InfiniteFuture without one.
  absl::Time NextDeadline() const;

  // The job at the head of the line.
  std::optional<uint64_t> first_waiting() const {
    return line_.empty() ? std::nullopt : std::optional(line_.front().id);
  }
  int32_t waiting() const { return static_cast<int32_t>(line_.size()); }
  int32_t running() const { return running_; }

 private:
  enum class Phase : uint8_t { kFree, kFeeding, kPrefilling, kDecoding, kDone };
  struct Lane {
    Phase phase = Phase::kFree;
    bool held = false;
    int64_t prefilled = 0;
    int32_t item = -1;  // in the batch being made
    Job job;
  };

  Phase PhaseAfterPrompt(const Job& job) const { return job.decode ? Phase::kDecoding : Phase::kDone; }
  void TakePrompts(std::vector<Item>& items);

  const int32_t prefill_budget_;
  std::vector<Lane> lanes_;
  std::deque<Job> line_;
  std::deque<int32_t> turns_;  // lanes that prefill, whose turn is next in front
  int32_t running_ = 0;
};

}  // namespace palimpsest
