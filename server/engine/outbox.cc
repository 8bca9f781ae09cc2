#include "server/engine/outbox.h"

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace palimpsest {
namespace {

GeneratedTokenValue TokenOf(SampleRow& answer) {
  return {.id = answer.token, .logprob = answer.logprob, .top = std::move(answer.top)};
}

}  // namespace

void Outbox::AddIteration(int32_t rows, int32_t sequences, absl::Duration time) {
  iteration_ = {.rows = rows, .sequences = sequences, .time = time};
}

void Outbox::AddToken(Sequence& sequence, SampleRow& answer, absl::Duration time) {
  sequence.delta.tokens.push_back(TokenOf(answer));
  sequence.delta.position = sequence.head.position;
  news_.push_back({.sequence = &sequence, .token_time = time});
}

void Outbox::AddScores(Sequence& sequence, std::span<SampleRow> answers, int64_t position) {
  sequence.delta.tokens.reserve(answers.size());
  for (SampleRow& answer : answers) sequence.delta.tokens.push_back(TokenOf(answer));
  sequence.delta.position = position;
  news_.push_back({.sequence = &sequence});
}

void Outbox::SendDeltas() {
  if (iteration_ && observer_.on_iteration) {
    observer_.on_iteration(iteration_->rows, iteration_->sequences, iteration_->time);
  }
  iteration_.reset();
  if (observer_.on_queued) {
    for (const absl::Duration time : queued_) observer_.on_queued(time);
  }
  queued_.clear();
  for (Ended& ended : ended_) AddTail(ended);
  for (const News& news : news_) {
    Sequence& sequence = *news.sequence;
    if (sequence.taken_back) continue;
    sequence.ReadToken(tokenizer_);
    if (news.token_time) {
      const auto& observe = sequence.generated_tokens == 1 ? observer_.on_first_token : observer_.on_token;
      if (observe) observe(*news.token_time);
      --sequence.coming_tokens;
    }
    sequence.request.sink->OnDelta(std::exchange(sequence.delta, {}));
  }
  news_.clear();
}

// What was held back belongs to tokens that are delivered.
void Outbox::AddTail(Ended& ended) {
  Sequence& sequence = *ended.sequence;
  if (sequence.taken_back) return;
  sequence.ReadToken(tokenizer_);
  // With nobody to go on from here, the beginning of a character stays one.
  const bool flush = ended.ending == Ending::kDone && sequence.generated_tokens > 0 &&
                     ended.finish.reason != EndReason::kStopString && !sequence.request.lease &&
                     !sequence.request.want_state;
  const std::string tail = flush ? sequence.reply.Flush() : sequence.reply.Release();
  if (tail.empty()) return;
  if (sequence.delta.tokens.empty()) {
    sequence.delta.position = sequence.head.position;
    news_.push_back({.sequence = &sequence});
  }
  sequence.delta.text += tail;
}

absl::Status Outbox::AwaitStates() {
  absl::Status failed;
  for (Ended& ended : ended_) {
    absl::Status arrived = ended.copy.Finish();
    if (arrived.ok()) continue;
    ended.ending = Ending::kDeviceFailed;
    ended.state = nullptr;
    ended.finish.device_failed = true;
    ended.finish.status = LostWithDevice(*ended.sequence, arrived);
    failed = std::move(arrived);
  }
  return failed;
}

void Outbox::Settle(EngineStats& counted, absl::Time now) {
  for (Ended& ended : ended_) Settle(ended, counted, now);
}

void Outbox::Settle(Ended& ended, EngineStats& counted, absl::Time now) {
  Sequence& sequence = *ended.sequence;
  EngineRequest& request = sequence.request;
  RequestSink::Finish& finish = ended.finish;
  finish.position = sequence.Keeps(ended.ending) ? sequence.head.position : sequence.initial_position;
  if (ended.ending == Ending::kNotFinite || (ended.state != nullptr && !IsFinite(layout_, *ended.state))) {
    finish.status = absl::InternalError(
        absl::StrCat("the numbers of this sequence stopped being finite at position ", sequence.head.position,
                     request.lease ? "; its session is quarantined: delete it or go back to a snapshot" : ""));
    if (request.lease) request.lease.Quarantine(now);
    ++counted.quarantined;
    counted.wasted_tokens += sequence.rows_taken;
    return;
  }
  if (ended.ending != Ending::kDone && sequence.generated_tokens == 0) counted.wasted_tokens += sequence.rows_taken;
  if (ended.state != nullptr) ended.state->head = sequence.head;
  if (sequence.HandsOutState(ended.ending)) {
    if (request.want_digest) finish.state_digest = StateDigest(*ended.state);
    if (request.want_state) finish.state = ended.state;
  }
  if (sequence.Commits(ended.ending)) {
    request.lease.Commit(std::move(ended.state), now);
  } else {
    request.lease.Abandon(now);
  }
}

void Outbox::SendFinishes() {
  for (Ended& ended : ended_) {
    if (observer_.on_finish) observer_.on_finish(ended.finish);
    ended.sequence->request.sink->OnFinish(std::move(ended.finish));
  }
  ended_.clear();
}

}  // namespace palimpsest
