#include "server/engine/stepper.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/common/device.h"
#include "server/model/padded_steps.h"

namespace palimpsest {

namespace {

// Whether a draw can be made cluster by cluster: it takes the greatest logit, or the probabilities as they are.
bool NeedsFewLogits(const EngineRequest& request) {
  const SamplingSettings& s = request.sampling;
  const bool unadjusted = s.logit_bias.empty() && !s.penalises();
  const bool plain = s.temperature == 1.0f && s.top_k <= 0 && s.top_p >= 1.0f && s.min_p <= 0.0f;
  return unadjusted && (plain || s.temperature == 0.0f) && request.top_logprobs == 0;
}

}  // namespace

Stepper::Stepper(const Model& model, int32_t threads, SlotPool& slots, int32_t max_rows)
    : model_(model),
      slots_(slots),
      max_rows_(max_rows),
      pool_(threads),
      context_{.pool = &pool_, .device = model.device()} {}

absl::Status Stepper::WarmUp(int32_t biases) {
  const SlotHandle slot = slots_.Acquire(nullptr);
  PALIMPSEST_CHECK(slot.index >= 0);
  bool finite = true;
  const int32_t vocabulary = model_.config().vocabulary;
  const auto run = [&](int32_t sequences, int32_t rows, int32_t slot_index) {
    Clear(0);
    for (int32_t s = 0; s < sequences; ++s) {
      row_begin_.push_back(static_cast<int32_t>(tokens_.size()));
      slot_.push_back(slot_index);
      first_position_.push_back(0);
      for (int32_t i = 0; i < rows; ++i) tokens_.push_back(i % vocabulary);
      AddAnswer(static_cast<int32_t>(tokens_.size()) - 1);
    }
    steps_ = rows == 1 ? sequences : 0;
    Forward();
  };
  const int64_t most = model_.max_context();
  const int32_t chunk = most > 0 ? static_cast<int32_t>(std::min<int64_t>(kChunk, most - 1)) : kChunk;
  // So that no batch can fail for want of memory later. The host's is touched on first use only; a device's is taken by
  // the largest batch below.
  GrowLogits(max_rows_);
  if (context_.device == nullptr) model_.Reserve(context_, workspace_, max_rows_);
  if (context_.device != nullptr) {
    run((max_rows_ + chunk - 1) / chunk, chunk, /*slot_index=*/-1);
    int32_t recorded = 0;
    for (int32_t steps = slots_.size(); steps > 0; --steps) {
      if (PaddedSteps(steps) == recorded) continue;
      const bool largest = recorded == 0;
      recorded = PaddedSteps(steps);
      run(steps, 1, /*slot_index=*/-1);
      if (!largest) continue;
      // A bias has the logits copied: every row at once may ask for that.
      SamplingSettings biased;
      for (int32_t id = 0; id < std::max(biases, 1); ++id) biased.logit_bias.emplace_back(id, 0.0f);
      for (SampleRow& answer : answers_) answer.settings = &biased;
      Sample(context_, answers_, vocabulary);
    }
  }
  for (const int32_t rows : {chunk, 1}) {
    run(1, rows, slot.index);
    Sample(context_, answers_, vocabulary);
    PALIMPSEST_RETURN_IF_ERROR(Synchronize());
    finite = finite && answers_.front().finite;
  }
  slots_.Release(slot);
  if (finite) return absl::OkStatus();
  return absl::DataLossError("the model's logits are not finite for its first tokens: the checkpoint is damaged");
}

void Stepper::Begin(std::span<const Scheduler::Item> items, std::span<Sequence* const> by_slot) {
  Clear(items.size());
  for (const bool steps : {true, false}) {
    for (size_t i = 0; i < items.size(); ++i) {
      if ((items[i].rows == 1) != steps) continue;
      answer_ranges_[i].first = answers_.size();
      Add(items[i], *by_slot[items[i].slot]);
      answer_ranges_[i].second = answers_.size();
      steps_ += steps ? 1 : 0;
    }
  }
  Forward();
  BeginSample(context_, answers_, model_.config().vocabulary);
}

absl::Status Stepper::Finish() {
  if (!answers_.empty()) model_.FinishSampling(context_, workspace_, answers_, logits_.data());
  return Synchronize();
}

void Stepper::MakeWhole(SlotHandle slot) {
  model_.MakeWhole(context_, slots_.base(), slots_.stride(), {&slot.index, 1}, workspace_);
}

absl::Status Stepper::Synchronize() {
  return context_.device == nullptr ? absl::OkStatus() : context_.device->Synchronize();
}

void Stepper::Clear(size_t items) {
  steps_ = 0;
  tokens_.clear();
  row_begin_.clear();
  slot_.clear();
  first_position_.clear();
  logit_rows_.clear();
  targets_.clear();
  answers_.clear();
  answer_ranges_.assign(items, {});
}

void Stepper::Add(const Scheduler::Item& item, const Sequence& sequence) {
  const auto first_row = static_cast<int32_t>(tokens_.size());
  const EngineRequest& request = sequence.request;
  row_begin_.push_back(first_row);
  slot_.push_back(sequence.slot.index);
  // All but the pending token have been taken in.
  first_position_.push_back(item.work == Scheduler::Work::kPrefill ? sequence.initial_position + item.begin
                                                                   : sequence.head.position - 1);
  int64_t next = 0;  // the prompt's token that the first row predicts
  switch (item.work) {
    case Scheduler::Work::kDecode: {
      tokens_.push_back(sequence.head.pending);
      SampleRow& answer = AddAnswer(first_row);
      answer.settings = &request.sampling;
      answer.recent = sequence.head.recent;
      answer.position = sequence.head.position;
      answer.top_logprobs = request.top_logprobs;
      answer.want_logprob = request.want_logprobs || request.top_logprobs > 0;
      if (NeedsFewLogits(request)) targets_.back() = kNoIdYet;
      return;
    }
    case Scheduler::Work::kFeed:
      tokens_.push_back(sequence.head.pending);
      break;
    case Scheduler::Work::kPrefill: {
      const auto begin = request.prompt.begin() + item.begin;
      tokens_.insert(tokens_.end(), begin, begin + item.rows);
      next = item.begin + 1;
      break;
    }
  }
  if (!sequence.scores()) return;
  const int64_t context_rows = std::max<int64_t>(request.first_scored - next, 0);
  for (int64_t i = context_rows; i < item.rows; ++i) {
    SampleRow& answer = AddAnswer(first_row + static_cast<int32_t>(i));
    answer.target = request.prompt[next + i];
    if (request.top_logprobs == 0) targets_.back() = answer.target;
    answer.top_logprobs = request.top_logprobs;
    answer.want_logprob = true;
  }
}

void Stepper::GrowLogits(int64_t rows) {
  const int64_t needed = rows * model_.config().vocabulary;
  if (logits_.size() >= needed) return;
  logits_ = {};  // never both at once
  logits_ = AlignedArray<float>(needed, context_.device);
  PALIMPSEST_CHECK(logits_.data() != nullptr);
}

SampleRow& Stepper::AddAnswer(int32_t row) {
  logit_rows_.push_back(row);
  targets_.push_back(kAllIds);
  return answers_.emplace_back();
}

void Stepper::Forward() {
  const int64_t vocabulary = model_.config().vocabulary;
  const auto logit_rows = static_cast<int32_t>(logit_rows_.size());
  GrowLogits(context_.device == nullptr || logit_rows == 0 ? logit_rows : PaddedSteps(logit_rows));
  row_begin_.push_back(static_cast<int32_t>(tokens_.size()));
  ForwardBatch batch;
  batch.tokens = tokens_;
  batch.rows = {.num_sequences = static_cast<int32_t>(slot_.size()),
                .row_begin = row_begin_.data(),
                .slot = slot_.data(),
                .num_steps = steps_};
  batch.states = slots_.base();
  batch.state_stride = slots_.stride();
  batch.first_position = first_position_;
  batch.logit_rows = logit_rows_;
  batch.targets = targets_;
  model_.Forward(context_, batch, workspace_, logits_.data());
  for (size_t i = 0; i < answers_.size(); ++i)
    answers_[i].logits = logits_.data() + static_cast<int64_t>(i) * vocabulary;
}

}  // namespace palimpsest
