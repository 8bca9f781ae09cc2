#include "server/engine/engine.h"

#include <pthread.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/check.h"
#include "base/host/available_processors.h"
#include "base/status_macros.h"
#include "base/steady_clock.h"
#include "kernels/common/device.h"
#include "server/engine/admission.h"
#include "server/engine/bell.h"
#include "server/engine/outbox.h"
#include "server/engine/scheduler.h"
#include "server/engine/sequence.h"
#include "server/engine/stepper.h"
#include "server/engine/waiting_room.h"
#include "server/session/no_memory.h"
#include "server/session/slot_pool.h"

namespace palimpsest {
namespace {

// Ids beyond the tokenizer's are what the embedding was padded with, or tokens that a later training added. They have
// no text, so none is drawn but those that end one; a prompt may hold them, and they are scored as they are.
void NeverDrawPadding(int32_t tokenizer_vocabulary, const ModelConfig& config, SamplingSettings& settings) {
  constexpr float kNever = -1e30f;
  auto& biases = settings.logit_bias;
  for (int32_t id = tokenizer_vocabulary; id < config.vocabulary; ++id) {
    if (std::ranges::binary_search(config.eos_tokens, id)) continue;
    const auto at = std::ranges::lower_bound(biases, id, {}, &std::pair<int32_t, float>::first);
    if (at != biases.end() && at->first == id) {
      at->second = kNever;
    } else {
      biases.insert(at, {id, kNever});
    }
  }
}

// With values that let every request run some day.
EngineShare ShareOf(const EngineOptions& options, const std::string& owner) {
  constexpr double kLeastWeight = 1e-3;
  EngineShare share = options.shares ? options.shares(owner) : EngineShare();
  if (!(share.weight > kLeastWeight)) share.weight = kLeastWeight;
  if (share.max_slots) share.max_slots = std::max(*share.max_slots, 1);
  if (share.max_queue) share.max_queue = std::max(*share.max_queue, 0);
  return share;
}

}  // namespace

class Engine::Impl {
 public:
  Impl(std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer, const EngineOptions& options,
       EngineObserver observer)
      : model_(std::move(model)),
        tokenizer_(std::move(tokenizer)),
        options_(options),
        observer_(std::move(observer)),
        format_({.model_fingerprint = model_->fingerprint(),
                 .layout_hash = model_->layout().hash(),
                 .bytes = model_->layout().bytes(),
                 .vocabulary = model_->config().vocabulary,
                 .positioned = model_->layout().positioned()}),
        slots_(options.slots, model_->slot_bytes(), model_->device()),
        stepper_(*model_, options.threads == 0 ? AvailableProcessors() : options.threads, slots_,
                 MaxRows(options.slots, options.prefill_budget)),
        scheduler_(options.slots, options.prefill_budget),
        by_slot_(static_cast<size_t>(options.slots), nullptr),
        outbox_(*tokenizer_, model_->layout(), observer_),
        waiting_room_(options.slots, options.max_queue) {}
  ~Impl();

  absl::Status Start() ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<RequestId> Submit(EngineRequest& request) ABSL_LOCKS_EXCLUDED(mu_);
  void Cancel(RequestId id) ABSL_LOCKS_EXCLUDED(mu_);
  void Wake() ABSL_LOCKS_EXCLUDED(mu_);
  void Drain(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  EngineStats stats() const ABSL_LOCKS_EXCLUDED(mu_);
  bool device_failed() const ABSL_LOCKS_EXCLUDED(mu_);

  const Model& model() const { return *model_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const EngineOptions& options() const { return options_; }
  const StateFormat& format() const { return format_; }

 private:
  // What other threads have left for the engine's.
  struct Mail {
    std::vector<std::unique_ptr<Sequence>> submitted;
    std::vector<RequestId> cancelled;
    absl::Time drain_deadline = absl::InfiniteFuture();
  };

  // Conditions to wait for.
  bool HasMail() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return !submitted_.empty() || !cancelled_.empty() || woken_ || stop_;
  }
  bool IsWarm() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return warm_.has_value(); }
  bool IsEmpty() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return waiting_room_.here() == 0 && delivering_ == 0; }

  // The engine's thread, as all below.
  void Loop() ABSL_LOCKS_EXCLUDED(mu_);
  // Replaces `mail` by what has come since. With nothing to run it waits for some first, but no longer than to the next
  // deadline. False: the engine is to stop.
  bool TakeMail(Mail& mail) ABSL_LOCKS_EXCLUDED(mu_);
  void ReadMail(Mail& mail);
  void EndLate(const Mail& mail, absl::Time now);
  // Those whose readers take nothing, and those who are done and whose readers have taken all.
  void EndUnread(absl::Time now);
  void AdmitWaiting(absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);
  // Gives slots, and refuses those that are to make room. Whom the slots were given to.
  std::vector<Scheduler::Admission> GiveSlots() ABSL_LOCKS_EXCLUDED(mu_);
  void PauseSlowReaders();
  void NoteOldestWaiting();
  void RunBatch() ABSL_LOCKS_EXCLUDED(mu_);
  // Copies the states that a token that is not delivered would be taken back to. INTERNAL: the device failed.
  absl::Status KeepStates();
  // Has the sequences of the batch go on by what came of it: all that the next batch depends on.
  void Advance(absl::Time now);
  void AdvanceToken(Sequence& sequence, SampleRow& answer, absl::Time now);
  // And the rest, which may wait until that one runs: callers and observers hear, slow readers are looked at.
  void Tell() ABSL_LOCKS_EXCLUDED(mu_);
  void CompletePrompt(Sequence& sequence);
  // At once, or when the reader has taken all, whichever was asked for.
  void Conclude(Sequence& sequence, Conclusion conclusion);
  void EndEarly(Sequence& sequence, absl::StatusCode code, const std::string& why);
  void End(Sequence& sequence, Ending ending, absl::Status status, Conclusion conclusion = {});
  // From now on nothing is taken.
  void NoteDeviceFailure(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  // And everything ends.
  void FailDevice(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  bool OnDevice() const { return model_->device() != nullptr; }
  // Whether its reader has to catch up before it may have another token.
  bool IsFull(const Sequence& sequence) const;

  // Constant after construction.
  const std::shared_ptr<const Model> model_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const EngineOptions options_;
  const EngineObserver observer_;
  const StateFormat format_;

  // The engine thread's alone.
  SlotPool slots_;
  Stepper stepper_;
  Scheduler scheduler_;
  std::vector<Sequence*> by_slot_;  // by slot index; null: free
  absl::flat_hash_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::vector<Scheduler::Item> items_;  // the batch
  Outbox outbox_;
  EngineStats counted_;
  absl::Time next_stall_ = absl::InfiniteFuture();  // when the first of the slow readers has taken nothing for too long
  bool all_taken_ = false;                          // somebody is done, and the reader has taken all

  mutable absl::Mutex mu_;  // never held across a forward pass or a call to a sink
  std::vector<std::unique_ptr<Sequence>> submitted_ ABSL_GUARDED_BY(mu_);
  std::vector<RequestId> cancelled_ ABSL_GUARDED_BY(mu_);
  bool woken_ ABSL_GUARDED_BY(mu_) = false;  // a reader has room again, or a drain began
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time drain_deadline_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  Bell mail_came_;
  WaitingRoom waiting_room_ ABSL_GUARDED_BY(mu_);  // taken and not yet settled
  int32_t delivering_ ABSL_GUARDED_BY(mu_) = 0;    // settled, OnFinish not yet called
  RequestId last_id_ ABSL_GUARDED_BY(mu_) = 0;
  EngineStats stats_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> warm_ ABSL_GUARDED_BY(mu_);  // what came of the warm-up
  absl::Status device_status_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;  // last: uses all of the above
};

Engine::Impl::~Impl() {
  if (!thread_.joinable()) return;
  Drain(absl::InfinitePast());
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
    mail_came_.Ring();
  }
  thread_.join();
}

absl::Status Engine::Impl::Start() {
  counted_.slots = options_.slots;
  counted_.max_queue = options_.max_queue;
  absl::MutexLock lock(&mu_);
  stats_ = counted_;
  thread_ = std::thread([this] { Loop(); });
  mu_.Await(absl::Condition(this, &Impl::IsWarm));
  return *warm_;
}

absl::StatusOr<RequestId> Engine::Impl::Submit(EngineRequest& request) {
  PALIMPSEST_CHECK(request.sink != nullptr);
  PALIMPSEST_RETURN_IF_ERROR(CheckRequest(request, format_, model_->max_context()));
  const EngineShare share = ShareOf(options_, request.owner);
  RequestId id = 0;
  {
    absl::MutexLock lock(&mu_);
    if (draining_) return absl::UnavailableError("the server is draining; retry on another replica");
    if (!device_status_.ok()) {
      return absl::UnavailableError(absl::StrCat(device_status_.message(), "; retry on another replica"));
    }
    PALIMPSEST_RETURN_IF_ERROR(waiting_room_.Enter(request.owner, share));
    id = ++last_id_;
  }
  NeverDrawPadding(tokenizer_->vocabulary(), model_->config(), request.sampling);
  auto sequence = std::make_unique<Sequence>(id, std::move(request), model_->config().eos_tokens);
  sequence->share = share;
  request = EngineRequest();
  absl::MutexLock lock(&mu_);
  submitted_.push_back(std::move(sequence));
  mail_came_.Ring();
  return id;
}

void Engine::Impl::Cancel(RequestId id) {
  absl::MutexLock lock(&mu_);
  cancelled_.push_back(id);
  mail_came_.Ring();
}

void Engine::Impl::Wake() {
  absl::MutexLock lock(&mu_);
  woken_ = true;
  mail_came_.Ring();
}

void Engine::Impl::Drain(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  draining_ = true;
  drain_deadline_ = std::min(drain_deadline_, deadline);
  woken_ = true;
  mail_came_.Ring();
  mu_.Await(absl::Condition(this, &Impl::IsEmpty));
}

EngineStats Engine::Impl::stats() const {
  int64_t total = 0, free = 0;
  if (Device* const device = model_->device(); device != nullptr) {
    total = device->info().total_bytes;
    free = device->FreeBytes();
  }
  absl::MutexLock lock(&mu_);
  EngineStats stats = stats_;
  stats.device_total_bytes = total;
  stats.device_free_bytes = free;
  stats.waiting = waiting_room_.waiting();
  for (const auto& [name, count] : waiting_room_.owners()) {
    stats.owners.push_back({.name = name, .waiting = count.waiting + count.making_room, .running = count.running});
  }
  // Those that the engine's thread has not seen yet.
  for (const std::unique_ptr<Sequence>& sequence : submitted_) {
    stats.oldest_waiting = std::min(stats.oldest_waiting, sequence->request.arrival);
  }
  return stats;
}

void Engine::Impl::Loop() {
  pthread_setname_np(pthread_self(), "engine");
  absl::Status warm =
      OrNoMemory("batches", [this] { return stepper_.WarmUp(model_->config().vocabulary - tokenizer_->vocabulary()); });
  {
    absl::MutexLock lock(&mu_);
    warm_ = std::move(warm);
  }
  Mail mail;
  for (;;) {
    // On a device, callers hear while the next batch runs, if there is one.
    if (!OnDevice() || !scheduler_.HasWork()) Tell();
    // Only now, between two batches: what came while one ran is part of the next, and nothing ends that is in one.
    if (!TakeMail(mail)) return;
    const absl::Time now = SteadyNow();
    ReadMail(mail);
    EndLate(mail, now);
    EndUnread(now);
    AdmitWaiting(now);
    scheduler_.NextBatch(items_);
    if (!items_.empty()) RunBatch();
  }
}

bool Engine::Impl::TakeMail(Mail& mail) {
  mail.submitted.clear();
  mail.cancelled.clear();
  const bool idle = !scheduler_.HasWork() && !all_taken_;
  absl::Time wake = absl::InfiniteFuture();
  if (idle && !sequences_.empty()) wake = std::min({scheduler_.NextDeadline(), mail.drain_deadline, next_stall_});
  absl::MutexLock lock(&mu_);
  stats_ = counted_;
  if (idle) mail_came_.Wait(mu_, wake, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return HasMail(); });
  std::swap(mail.submitted, submitted_);
  std::swap(mail.cancelled, cancelled_);
  woken_ = false;
  mail.drain_deadline = drain_deadline_;
  return !stop_;
}

void Engine::Impl::ReadMail(Mail& mail) {
  for (std::unique_ptr<Sequence>& sequence : mail.submitted) {
    scheduler_.Enqueue(sequence->MakeJob());
    const RequestId id = sequence->id;
    sequences_.emplace(id, std::move(sequence));
  }
  for (const RequestId id : mail.cancelled) {
    const auto it = sequences_.find(id);
    if (it != sequences_.end()) EndEarly(*it->second, absl::StatusCode::kCancelled, "the caller cancelled");
  }
}

void Engine::Impl::EndLate(const Mail& mail, absl::Time now) {
  for (const RequestId id : scheduler_.Expired(now)) {
    EndEarly(*sequences_.at(id), absl::StatusCode::kDeadlineExceeded, "the deadline passed");
  }
  if (mail.drain_deadline > now) return;
  std::vector<RequestId> rest;
  for (const auto& [id, sequence] : sequences_) rest.push_back(id);
  std::ranges::sort(rest);
  for (const RequestId id : rest) {
    EndEarly(*sequences_.at(id), absl::StatusCode::kUnavailable, "the server is shutting down");
  }
}

void Engine::Impl::EndUnread(absl::Time now) {
  for (Sequence* const sequence : by_slot_) {
    if (sequence == nullptr) continue;
    if (sequence->conclusion && sequence->undelivered() == 0) {
      End(*sequence, Ending::kDone, absl::OkStatus(), *std::move(sequence->conclusion));
    } else if (now - sequence->paused_since >= options_.max_stall) {
      EndEarly(
          *sequence, absl::StatusCode::kAborted,
          absl::StrCat("the reader read nothing for ", absl::FormatDuration(options_.max_stall), " (--max_stall),"));
    }
  }
}

std::vector<Scheduler::Admission> Engine::Impl::GiveSlots() {
  std::vector<RequestId> refused;
  std::vector<Scheduler::Admission> admitted;
  {
    // At once: a request that is to make room gets no slot, and one that has a slot makes no room.
    absl::MutexLock lock(&mu_);
    for (const std::string& owner : waiting_room_.making_room()) {
      const std::optional<RequestId> newest = scheduler_.newest_waiting(owner);
      if (!newest) continue;  // all of the owner's have come since the mail was taken
      waiting_room_.MakeRoom(owner);
      scheduler_.Withdraw(*newest);
      refused.push_back(*newest);
    }
    while (const std::optional<Scheduler::Admission> admission = scheduler_.Admit()) {
      waiting_room_.GetSlot(sequences_.at(admission->id)->request.owner);
      admitted.push_back(*admission);
    }
  }
  for (const RequestId id : refused) {
    sequences_.at(id)->made_room = true;
    EndEarly(*sequences_.at(id), absl::StatusCode::kResourceExhausted,
             "the queue is full, and the request made room for one of an owner that has less in it; retry later;");
  }
  return admitted;
}

void Engine::Impl::AdmitWaiting(absl::Time now) {
  for (;;) {
    const std::vector<Scheduler::Admission> admitted = GiveSlots();
    if (admitted.empty()) return;
    for (const Scheduler::Admission& admission : admitted) {
      Sequence& sequence = *sequences_.at(admission.id);
      sequence.admitted = now;
      sequence.slot = slots_.Acquire(admission.slot, sequence.request.initial.get());
      sequence.request.initial = nullptr;
      by_slot_[sequence.slot.index] = &sequence;
      scheduler_.Pause(sequence.slot.index, IsFull(sequence));
      ++counted_.running;
      ++counted_.slots_used;
      counted_.cached_tokens += sequence.initial_position;
      outbox_.AddQueued(now - sequence.request.arrival);
      // Such a prompt has nothing to take in: it is empty, or its one token is pending at once.
      const Scheduler::Job job = sequence.MakeJob();
      if (!job.feed && job.prefill_rows == 0) CompletePrompt(sequence);
    }
  }
}

bool Engine::Impl::IsFull(const Sequence& sequence) const {
  if (sequence.conclusion) return true;
  return sequence.undelivered() >= (sequence.commits_delivered() ? 1 : options_.max_undelivered_tokens);
}

void Engine::Impl::PauseSlowReaders() {
  const absl::Time now = SteadyNow();
  counted_.paused = 0;
  next_stall_ = absl::InfiniteFuture();
  all_taken_ = false;
  for (Sequence* const sequence : by_slot_) {
    if (sequence == nullptr) continue;
    const bool full = IsFull(*sequence);
    scheduler_.Pause(sequence->slot.index, full);
    all_taken_ |= sequence->conclusion && sequence->undelivered() == 0;
    sequence->paused_since = full ? std::min(sequence->paused_since, now) : absl::InfiniteFuture();
    if (!full) continue;
    ++counted_.paused;
    next_stall_ = std::min(next_stall_, sequence->paused_since + options_.max_stall);
  }
}

void Engine::Impl::NoteOldestWaiting() {
  const std::optional<RequestId> first = scheduler_.first_waiting();
  counted_.oldest_waiting = first ? sequences_.at(*first)->request.arrival : absl::InfiniteFuture();
}

void Engine::Impl::RunBatch() {
  const absl::Time begin = SteadyNow();
  if (absl::Status status = KeepStates(); !status.ok()) return FailDevice(status);
  stepper_.Begin(items_, by_slot_);
  const absl::Time begun = SteadyNow();
  for (const Scheduler::Item& item : items_) {
    if (item.work == Scheduler::Work::kDecode) ++by_slot_[item.slot]->coming_tokens;
  }
  if (OnDevice()) Tell();
  const absl::Status status = stepper_.Finish();
  const absl::Time end = SteadyNow();
  if (OnDevice()) counted_.device_wait += end - begun;
  ++counted_.iterations;
  counted_.recorded_passes = stepper_.passes().recorded_passes;
  counted_.direct_passes = stepper_.passes().direct_passes;
  if (!status.ok()) return FailDevice(status);
  Advance(end);
  outbox_.AddIteration(stepper_.rows(), static_cast<int32_t>(items_.size()), end - begin);
}

absl::Status Engine::Impl::KeepStates() {
  for (const Scheduler::Item& item : items_) {
    Sequence& sequence = *by_slot_[item.slot];
    if (item.work != Scheduler::Work::kDecode || !sequence.commits_delivered()) continue;
    stepper_.MakeWhole(sequence.slot);
    PALIMPSEST_ASSIGN_OR_RETURN(sequence.before,
                                CopyState(format_, sequence.head, slots_, sequence.slot, std::move(sequence.before)));
  }
  return absl::OkStatus();
}

void Engine::Impl::Advance(absl::Time now) {
  int64_t logit_rows = 0;
  for (size_t i = 0; i < items_.size(); ++i) {
    const Scheduler::Item& item = items_[i];
    Sequence& sequence = *by_slot_[item.slot];
    const std::span<SampleRow> answers = stepper_.answers(i);
    sequence.rows_taken += item.rows;
    logit_rows += std::ssize(answers);
    if (!std::ranges::all_of(answers, &SampleRow::finite)) {
      End(sequence, Ending::kNotFinite, absl::OkStatus());
    } else if (item.work == Scheduler::Work::kDecode) {
      AdvanceToken(sequence, answers.front(), now);
    } else {
      // The last row, which is scored if any of them is, predicts this token of the prompt.
      const int64_t last = item.work == Scheduler::Work::kFeed ? 0 : item.begin + item.rows;
      if (!answers.empty()) outbox_.AddScores(sequence, answers, sequence.initial_position + last + 1);
      if (item.completes_prompt) CompletePrompt(sequence);
    }
  }
  const WorkEstimate minimum = model_->Work(stepper_.rows(), std::ssize(items_), logit_rows);
  counted_.minimum_bytes += minimum.bytes;
  counted_.minimum_flops += minimum.flops;
}

void Engine::Impl::AdvanceToken(Sequence& sequence, SampleRow& answer, absl::Time now) {
  const EngineRequest& request = sequence.request;
  const int32_t previous = sequence.head.pending;
  sequence.head.Append(answer.token);
  ++sequence.generated_tokens;
  ++counted_.generated_tokens;
  if (sequence.generated_tokens == 1) sequence.first_token = now;
  outbox_.AddToken(sequence, answer, now - (sequence.generated_tokens == 1 ? request.arrival : sequence.last_token));
  sequence.last_token = now;

  if (sequence.IsStopToken(answer.token)) return Conclude(sequence, {.reason = EndReason::kStopToken});
  sequence.unread_after = previous;
  // Only a stop string makes what follows depend on the text.
  const int32_t stop = request.stop_strings.empty() ? -1 : sequence.ReadToken(*tokenizer_);
  if (stop >= 0) {
    Conclude(sequence, {.reason = EndReason::kStopString, .stop_string = request.stop_strings[stop]});
  } else if (sequence.generated_tokens >= request.max_tokens) {
    Conclude(sequence, {.reason = EndReason::kLength});
  } else if (sequence.head.position == model_->max_context()) {
    Conclude(sequence, {.reason = EndReason::kContextFull});
  }
}

void Engine::Impl::Conclude(Sequence& sequence, Conclusion conclusion) {
  if (!sequence.commits_delivered()) return End(sequence, Ending::kDone, absl::OkStatus(), std::move(conclusion));
  sequence.conclusion = std::move(conclusion);
  scheduler_.Pause(sequence.slot.index, true);
}

void Engine::Impl::Tell() {
  outbox_.SendDeltas();
  if (outbox_.ended() > 0) {
    if (absl::Status status = outbox_.AwaitStates(); !status.ok()) NoteDeviceFailure(status);
    outbox_.Settle(counted_, SteadyNow());
    {
      absl::MutexLock lock(&mu_);
      stats_ = counted_;
      delivering_ = outbox_.ended();
      for (const Outbox::Ended& ended : outbox_.all_ended()) waiting_room_.Leave(ended.sequence->made_room);
    }
    outbox_.SendFinishes();
    absl::MutexLock lock(&mu_);
    delivering_ = 0;
  }
  PauseSlowReaders();
  NoteOldestWaiting();
}

void Engine::Impl::NoteDeviceFailure(const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  device_status_ = status;
}

bool Engine::Impl::device_failed() const {
  absl::MutexLock lock(&mu_);
  return !device_status_.ok();
}

void Engine::Impl::FailDevice(const absl::Status& status) {
  NoteDeviceFailure(status);
  std::vector<Sequence*> rest;
  for (const auto& [id, sequence] : sequences_) rest.push_back(sequence.get());
  std::ranges::sort(rest, {}, &Sequence::id);
  for (Sequence* sequence : rest) End(*sequence, Ending::kDeviceFailed, LostWithDevice(*sequence, status));
}

void Engine::Impl::CompletePrompt(Sequence& sequence) {
  sequence.CompletePrompt();
  counted_.prompt_tokens += sequence.prompt_tokens;
  if (!sequence.generates()) End(sequence, Ending::kDone, absl::OkStatus());
}

void Engine::Impl::EndEarly(Sequence& sequence, absl::StatusCode code, const std::string& why) {
  if (sequence.before != nullptr && sequence.undelivered() > 0) {
    sequence.TakeBack();
    ++counted_.wasted_tokens;
  }
  const int64_t position = sequence.generated_tokens > 0 ? sequence.head.position : sequence.initial_position;
  End(sequence, Ending::kEarly,
      absl::Status(code,
                   absl::StrCat(why, " after ", sequence.generated_tokens, " generated tokens",
                                sequence.request.lease ? absl::StrCat("; the session stands at position ", position)
                                                       : std::string())));
}

void Engine::Impl::End(Sequence& sequence, Ending ending, absl::Status status, Conclusion conclusion) {
  const absl::Time now = SteadyNow();
  // Begun at once, since the slot is given out again. The rest of what becomes of the state can wait.
  std::shared_ptr<State> state;
  SlotCopy copy;
  if (sequence.LeavesState(ending) && sequence.taken_back) {
    state = std::move(sequence.before);
  } else if (sequence.LeavesState(ending)) {
    stepper_.MakeWhole(sequence.slot);
    absl::StatusOr<std::shared_ptr<State>> copied =
        BeginCopyState(format_, sequence.head, slots_, sequence.slot, &copy);
    if (copied.ok()) {
      state = *std::move(copied);
    } else if (absl::IsResourceExhausted(copied.status())) {
      ending = Ending::kNoMemory;
      status = Lost(sequence, copied.status());
    } else {
      // The others are told by the next batch, which fails as well.
      NoteDeviceFailure(copied.status());
      ending = Ending::kDeviceFailed;
      status = LostWithDevice(sequence, copied.status());
    }
  }
  RequestSink::Finish finish;
  finish.status = std::move(status);
  finish.device_failed = ending == Ending::kDeviceFailed;
  finish.reason = conclusion.reason;
  finish.stop_string = std::move(conclusion.stop_string);
  finish.owner = sequence.request.owner;
  finish.taken_back = sequence.taken_back;
  finish.seed = sequence.request.sampling.seed;
  finish.prompt_tokens = sequence.prompt_tokens;
  finish.generated_tokens = sequence.generated_tokens;
  finish.cached_tokens = sequence.initial_position;
  finish.queue_time = std::min(sequence.admitted, now) - sequence.request.arrival;
  if (sequence.generated_tokens > 0) finish.time_to_first_token = sequence.first_token - sequence.request.arrival;
  finish.total_time = now - sequence.request.arrival;
  if (sequence.slot.index >= 0) {
    slots_.Release(sequence.slot);
    scheduler_.Leave(sequence.slot.index);
    by_slot_[sequence.slot.index] = nullptr;
    --counted_.running;
    --counted_.slots_used;
  } else {
    outbox_.AddQueued(finish.queue_time);
    PALIMPSEST_CHECK(sequence.made_room || scheduler_.Withdraw(sequence.id));
  }
  if (!sequence.made_room) {
    absl::MutexLock lock(&mu_);
    waiting_room_.End(sequence.request.owner, /*has_slot=*/sequence.slot.index >= 0);
  }
  const auto it = sequences_.find(sequence.id);
  outbox_.AddEnd({.sequence = std::move(it->second),
                  .ending = ending,
                  .finish = std::move(finish),
                  .state = std::move(state),
                  .copy = std::move(copy)});
  sequences_.erase(it);
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Engine::~Engine() = default;

absl::StatusOr<std::unique_ptr<Engine>> Engine::Start(std::shared_ptr<const Model> model,
                                                      std::shared_ptr<const Tokenizer> tokenizer,
                                                      const EngineOptions& options, EngineObserver observer) {
  PALIMPSEST_CHECK(model != nullptr && tokenizer != nullptr);
  PALIMPSEST_RETURN_IF_ERROR(CheckOptions(options));
  EngineOptions chosen = options;
  PALIMPSEST_ASSIGN_OR_RETURN(chosen.slots, ChooseSlots(*model, options));
  chosen.prefill_budget = PrefillBudget(*model, options);
  return OrNoMemory("the slots and batches", [&]() -> absl::StatusOr<std::unique_ptr<Engine>> {
    auto impl = std::make_unique<Impl>(std::move(model), std::move(tokenizer), chosen, std::move(observer));
    PALIMPSEST_RETURN_IF_ERROR(impl->Start());
    return std::unique_ptr<Engine>(new Engine(std::move(impl)));
  });
}

const Model& Engine::model() const { return impl_->model(); }
const Tokenizer& Engine::tokenizer() const { return impl_->tokenizer(); }
const EngineOptions& Engine::options() const { return impl_->options(); }
StateFormat Engine::state_format() const { return impl_->format(); }

absl::StatusOr<RequestId> Engine::Submit(EngineRequest& request) { return impl_->Submit(request); }
void Engine::Cancel(RequestId id) { impl_->Cancel(id); }
// Which readers have room is looked up in each iteration: all that is needed is that there is one.
void Engine::Resume(RequestId) { impl_->Wake(); }
void Engine::Drain(absl::Time deadline) { impl_->Drain(deadline); }
EngineStats Engine::stats() const { return impl_->stats(); }
bool Engine::device_failed() const { return impl_->device_failed(); }

}  // namespace palimpsest
