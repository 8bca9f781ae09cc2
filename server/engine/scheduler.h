// Decides what runs next, from plain data: no model, no threads, no clock of its own.
//
// A job is a request as the scheduler sees it. It waits in its owner's line for a slot (a place for its state), then
//   1. feeds its context's pending token, as a step of its own, if it has one and a prompt follows;
//   2. prefills its prompt in chunks of kChunk rows counted from the prompt's first token;
//   3. decodes, one row in each batch, until it leaves.
// The border between one and two, and the borders of the chunks, are the job's own: they never depend on what else
// runs. That is what makes a sequence's bits independent of the schedule, so a chunk is never cut to fit a budget.
//
// Who is next. Between owners: a slot that comes free goes to the owner that waits and has used least for its weight,
// counted in rows (start-time fair queueing). What an owner used while nobody waited for a slot is not held against it,
// and what it did not use is not owed to it. Nobody is put off a slot, none stays free while somebody waits who may
// have it, and an owner alone may have all. The prompt rows of a batch are shared between owners in the same way.
// Within an owner: slots go in turn to the job that has waited longest and to the one with the least work. So a short
// one gets in with the second slot that its owner gets, however long the line; and one before which n jobs came gets in
// with slot 2n + 2 at the latest, however many short ones come after it.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/model/chunk.h"

namespace palimpsest {

// Not thread-safe.
class Scheduler {
 public:
  // An owner pays for a job when it gets a slot: its prompt, and so many rows of its reply. Rows beyond are paid for as
  // they run, and what was not used comes back at the end.
  static constexpr int64_t kReplyRowsPaidAhead = 256;

  // What the owner of a job may use. The latest job's counts for all of them.
  struct Share {
    double weight = 1.0;                                           // more than 0
    int32_t max_slots = std::numeric_limits<int32_t>::max();       // at once
    int32_t prefill_budget = std::numeric_limits<int32_t>::max();  // prompt rows in one batch, at least one chunk
  };
  struct Job {
    uint64_t id = 0;
    absl::Time deadline = absl::InfiniteFuture();
    bool feed = false;         // a pending token comes before the prompt
    int64_t prefill_rows = 0;  // prompt tokens that the model processes before it decodes
    bool decode = false;       // else the job has nothing more to run after its prompt
    int64_t decode_rows = 0;   // at most; the job leaves by itself
    std::string owner = {};
    Share share = {};

    int64_t work() const { return (feed ? 1 : 0) + prefill_rows + decode_rows; }
  };
  struct Admission {
    uint64_t id = 0;
    int32_t slot = -1;
  };
  enum class Work : uint8_t { kFeed, kPrefill, kDecode };
  // What one slot does in a batch. Slots of a batch are distinct.
  struct Item {
    int32_t slot = -1;
    Work work = Work::kDecode;
    int64_t begin = 0;  // kPrefill: first prompt token, a multiple of kChunk
    int32_t rows = 1;
    bool completes_prompt = false;  // nothing of feed and prompt is left after this
  };

  // Slots are those of a SlotPool of as many, by index. A batch decodes all that are ready and prefills up to
  // `prefill_budget` prompt rows, at least one chunk.
  Scheduler(int32_t slots, int32_t prefill_budget);

  // To the end of its owner's line.
  void Enqueue(const Job& job);
  // The next job gets a slot; nothing if there is no free slot or nobody waits who may have it. A job without feed and
  // prefill rows is ready to decode at once.
  std::optional<Admission> Admit();
  // Takes a waiting job out of the line. False: it is not waiting.
  bool Withdraw(uint64_t id);
  // Frees a slot.
  void Leave(int32_t slot);
  // A slot that is paused does not decode.
  void Pause(int32_t slot, bool paused);

  // Replaces `items` by the next batch, which is taken as done from here on. Prompts of an owner take turns, one chunk
  // each; whose turn it was not comes first the next time. A last chunk of one row is a step, and never in one item
  // with others.
  void NextBatch(std::vector<Item>& items);

  // Whether Admit has a slot to give, or NextBatch something to run.
  bool HasWork() const;

  // Jobs whose deadline is not after `now`, waiting ones first.
  std::vector<uint64_t> Expired(absl::Time now) const;
  // The earliest deadline of any job; InfiniteFuture without one.
  absl::Time NextDeadline() const;

  // The job that has waited longest.
  std::optional<uint64_t> first_waiting() const;
  // The job of this owner that has waited least.
  std::optional<uint64_t> newest_waiting(const std::string& owner) const;
  int32_t waiting() const { return waiting_; }
  int32_t running() const { return running_; }

 private:
  enum class Phase : uint8_t { kFree, kFeeding, kPrefilling, kDecoding, kDone };
  struct Waiting {
    Job job;
    uint64_t number = 0;  // in the order of arrival
  };
  struct Owner {
    std::string name;
    Share share;
    std::deque<Waiting> line;  // in the order of arrival
    bool least_is_next = false;
    int32_t slots = 0;
    double used = 0.0;           // rows paid for, per weight
    std::deque<int32_t> turns;   // slots that prefill, whose turn is next in front
    double prefilled = 0.0;      // rows, per weight
    std::vector<int32_t> later;  // the rest: of the batch being made. All that is left of these is a chunk of one row,
                                 // which goes alone
    int64_t batch_rows = 0;
    bool budget_is_used = false;

    bool HasJobs() const { return !line.empty() || slots > 0; }
    bool MayHaveSlot() const { return !line.empty() && slots < share.max_slots; }
    bool MayPrefill() const { return !turns.empty() && !budget_is_used; }
  };
  struct Slot {
    Phase phase = Phase::kFree;
    bool paused = false;
    int64_t prefilled = 0;
    int64_t rows_run = 0;
    int64_t rows_paid = 0;
    int32_t item = -1;  // in the batch being made
    Owner* owner = nullptr;
    Job job;
  };

  Phase PhaseAfterPrompt(const Job& job) const { return job.decode ? Phase::kDecoding : Phase::kDone; }
  // Null: there is none.
  Owner* Find(const std::string& name) const;
  // The owner that gets the next slot; null: nobody waits who may have one.
  Owner* NextForSlot() const;
  void Forget();
  void Run(Slot& slot, int64_t rows);
  void BeginPrefill(int32_t index);
  Owner* NextForPrefill() const;
  void TakePrompts(std::vector<Item>& items);

  const int32_t prefill_budget_;
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<Owner>> owners_;  // those that have jobs, or whose use counts still
  uint64_t arrivals_ = 0;
  int32_t waiting_ = 0;
  int32_t running_ = 0;
};

}  // namespace palimpsest
