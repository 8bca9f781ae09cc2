// Runs what the scheduler decided: one forward pass over the batch, then the sampling of its rows.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

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
  // `model` and `slots` must live as long.
  Stepper(const Model& model, int32_t threads, SlotPool& slots);

  // Runs one step and one chunk in a free slot. False: the logits are not finite.
  bool WarmUp();

  // Runs the batch; `lanes[item.lane]` is the item's sequence. Their states move on, nothing else of them does.
  void Run(std::span<const Scheduler::Item> items, std::span<Sequence* const> lanes);
  // The answers of the i-th item of the last run: of a decode, one; of a prompt that is scored, one for each row that
  // predicts a scored token; else none.
  std::span<SampleRow> answers(size_t item) {
    return std::span(answers_).subspan(answers_begin_[item], answers_begin_[item + 1] - answers_begin_[item]);
  }
  int32_t rows() const { return static_cast<int32_t>(tokens_.size()); }

 private:
  void Clear();
  void Add(const Scheduler::Item& item, const Sequence& sequence);
  // Asks for the logits of row `row`.
  SampleRow& AddAnswer(int32_t row);
  void Forward();
  // Samples all answers, computing what they turn out to need of the logits.
  void SampleAll();

  const Model& model_;
  SlotPool& slots_;
  ThreadPool pool_;
  const ExecContext context_;
  Workspace workspace_;

  // The batch.
  std::vector<int32_t> tokens_;
  std::vector<int32_t> row_begin_;
  std::vector<int32_t> slot_;
  std::vector<int64_t> first_position_;
  std::vector<int32_t> logit_rows_;
  std::vector<int32_t> targets_;       // for each of logit_rows_, as in ForwardBatch
  std::vector<SampleRow> answers_;     // one for each of logit_rows_
  std::vector<size_t> answers_begin_;  // [items + 1]
  AlignedArray<float> logits_;         // [logit rows, vocabulary]
};

}  // namespace palimpsest
