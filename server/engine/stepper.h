// Runs what the scheduler decided: one forward pass over the batch, then the sampling of its rows.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/common/thread_pool.h"
#include "kernels/sampling/sampling.h"
#include "server/engine/scheduler.h"
#include "server/engine/sequence.h"
#include "server/model/model.h"
#include "server/session/slot_pool.h"

namespace palimpsest {

// The engine thread's alone. The one place that runs the model. Its buffers grow to the largest batch and are reused.
class Stepper {
 public:
  // `model` and `slots` must live as long. Batches have at most `max_rows` rows.
  Stepper(const Model& model, int32_t threads, SlotPool& slots, int32_t max_rows);

  // Takes all the memory that batches will need, and runs one step and one chunk in a free slot; on a device, every
  // size of batch that is recorded, too. Throws std::bad_alloc where the host has no memory left. DATA_LOSS: the logits
  // are not finite.  INTERNAL: the device failed. `biases`: the logits that every request has adjusted, at least.
  absl::Status WarmUp(int32_t biases);

  // Puts the batch to work; `by_slot[item.slot]` is the item's sequence, whose request, slot and tokens must stay as
  // they are until Finish. A device has then begun; the processor has done it.
  void Begin(std::span<const Scheduler::Item> items, std::span<Sequence* const> by_slot);
  // Waits for the batch and samples. The states have moved on, nothing else of the sequences has. INTERNAL: the device
  // failed; there are no answers, and the states are lost.
  absl::Status Finish();
  // Makes the state in a slot whole, for SlotPool::CopyOut.
  void MakeWhole(SlotHandle slot);
  // The answers of the i-th item of the last run: of a decode, one; of a prompt that is scored, one for each row that
  // predicts a scored token; else none.
  std::span<SampleRow> answers(size_t item) {
    const auto [begin, end] = answer_ranges_[item];
    return std::span(answers_).subspan(begin, end - begin);
  }
  int32_t rows() const { return static_cast<int32_t>(tokens_.size()); }
  Workspace::Counts passes() const { return workspace_.counts(); }

 private:
  void Clear(size_t items);
  void Add(const Scheduler::Item& item, const Sequence& sequence);
  // Asks for the logits of row `row`.
  SampleRow& AddAnswer(int32_t row);
  void Forward();
  absl::Status Synchronize();
  void GrowLogits(int64_t rows);

  const Model& model_;
  SlotPool& slots_;
  const int32_t max_rows_;
  ThreadPool pool_;
  const ExecContext context_;
  Workspace workspace_;

  // The batch.
  std::vector<int32_t> tokens_;
  std::vector<int32_t> row_begin_;
  std::vector<int32_t> slot_;
  std::vector<int64_t> first_position_;
  std::vector<int32_t> logit_rows_;
  std::vector<int32_t> targets_;                          // for each of logit_rows_, as in ForwardBatch
  std::vector<SampleRow> answers_;                        // one for each of logit_rows_
  int32_t steps_ = 0;                                     // sequences of one row, which come first
  std::vector<std::pair<size_t, size_t>> answer_ranges_;  // by item: first of its answers, and past the last
  AlignedArray<float> logits_;                            // [logit rows, vocabulary]
};

}  // namespace palimpsest
