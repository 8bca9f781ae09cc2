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
#include "absl/time/clock.h"
#include "kernels/common/check.h"
#include "kernels/common/device.h"
#include "server/engine/admission.h"
#include "server/engine/available_processors.h"
#include "server/engine/least_work.h"
#include "server/engine/outbox.h"
#include "server/engine/scheduler.h"
#include "server/engine/sequence.h"
#include "server/engine/stepper.h"
#include "server/session/no_memory.h"
#include "server/session/slot_pool.h"
#include "server/session/steady_clock.h"

namespace palimpsest {
namespace {

// The end of a sequence whose state is lost.
absl::Status Lost(const Sequence& sequence, const absl::Status& status) {
  std::string message(status.message());
  if (sequence.request.lease) {
    absl::StrAppend(&message, "; the session stands where it was before the request, at position ",
                    sequence.initial_position);
  }
  return absl::Status(status.code(), message);
}

absl::Status LostWithDevice(const Sequence& sequence, const absl::Status& status) {
  return Lost(sequence, absl::UnavailableError(status.message()));
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
                 .vocabulary = model_->config().vocabulary}),
        least_work_(*model_),
        slots_(options.slots, model_->slot_bytes(), model_->device()),
        stepper_(*model_, options.threads == 0 ? AvailableProcessors() : options.threads, slots_,
                 MaxRows(options.slots, options)),
        scheduler_(options.slots, options.prefill_budget),
        lanes_(static_cast<size_t>(options.slots), nullptr),
        outbox_(*tokenizer_, model_->layout(), observer_) {}
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
  bool IsEmpty() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return in_flight_ == 0 && delivering_ == 0; }

  // The engine's thread, as all below.
  void Loop() ABSL_LOCKS_EXCLUDED(mu_);
  // Replaces `mail` by what has come since. With nothing to run it waits for some first, but no longer than to the next
  // deadline. False: the engine is to stop.
  bool TakeMail(Mail& mail) ABSL_LOCKS_EXCLUDED(mu_);
  void ReadMail(Mail& mail);
  void EndLate(const Mail& mail, absl::Time now);
  void AdmitWaiting(absl::Time now);
  void HoldSlowReaders();
  void NoteOldestWaiting();
  void RunBatch() ABSL_LOCKS_EXCLUDED(mu_);
  // Has the sequences of the batch go on by what came of it: all that the next batch depends on.
  void Advance(absl::Time now);
  void AdvanceToken(Sequence& sequence, SampleRow& answer, absl::Time now);
  // And the rest, which may wait until that one runs: callers and observers hear, slow readers are looked at.
  void Tell() ABSL_LOCKS_EXCLUDED(mu_);
  void CompletePrompt(Sequence& sequence);
  void EndEarly(Sequence& sequence, absl::StatusCode code, const char* why);
  void End(Sequence& sequence, Ending ending, absl::Status status, EndReason reason = EndReason::kLength,
           std::string stop_string = "");
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
  const LeastWork least_work_;

  // The engine thread's alone.
  SlotPool slots_;
  Stepper stepper_;
  Scheduler scheduler_;
  std::vector<Sequence*> lanes_;  // by lane; null: free
  absl::flat_hash_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::vector<Scheduler::Item> items_;  // the batch
  Outbox outbox_;
  EngineStats counted_;

  mutable absl::Mutex mu_;  // never held across a forward pass or a call to a sink
  std::vector<std::unique_ptr<Sequence>> submitted_ ABSL_GUARDED_BY(mu_);
  std::vector<RequestId> cancelled_ ABSL_GUARDED_BY(mu_);
  bool woken_ ABSL_GUARDED_BY(mu_) = false;  // a reader has room again, or a drain began
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time drain_deadline_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  int32_t in_flight_ ABSL_GUARDED_BY(mu_) = 0;   // taken and not yet settled: at most slots + max_queue
  int32_t delivering_ ABSL_GUARDED_BY(mu_) = 0;  // settled, OnFinish not yet called
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
  if (absl::Status status = CheckRequest(request, format_, model_->config()); !status.ok()) return status;
  RequestId id = 0;
  {
    absl::MutexLock lock(&mu_);
    if (draining_) return absl::UnavailableError("the server is draining; retry on another replica");
    if (!device_status_.ok()) {
      return absl::UnavailableError(absl::StrCat(device_status_.message(), "; retry on another replica"));
    }
    const int32_t most = options_.slots + options_.max_queue;
    if (in_flight_ >= most) {
      return absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", in_flight_, " requests are here, ",
                                                       options_.slots, " of them run at once; retry later"));
    }
    ++in_flight_;
    id = ++last_id_;
  }
  auto sequence = std::make_unique<Sequence>(id, std::move(request), model_->config().eos_tokens);
  request = EngineRequest();
  absl::MutexLock lock(&mu_);
  submitted_.push_back(std::move(sequence));
  return id;
}

void Engine::Impl::Cancel(RequestId id) {
  absl::MutexLock lock(&mu_);
  cancelled_.push_back(id);
}

void Engine::Impl::Wake() {
  absl::MutexLock lock(&mu_);
  woken_ = true;
}

void Engine::Impl::Drain(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  draining_ = true;
  drain_deadline_ = std::min(drain_deadline_, deadline);
  woken_ = true;
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
  stats.waiting = std::max(0, in_flight_ - stats.running);
  // Those that the engine's thread has not seen yet.
  for (const std::unique_ptr<Sequence>& sequence : submitted_) {
    stats.oldest_waiting = std::min(stats.oldest_waiting, sequence->request.arrival);
  }
  return stats;
}

void Engine::Impl::Loop() {
  pthread_setname_np(pthread_self(), "engine");
  absl::Status warm = OrNoMemory("batches", [this] { return stepper_.WarmUp(); });
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
    const absl::Time now = absl::Now();
    ReadMail(mail);
    EndLate(mail, now);
    AdmitWaiting(now);
    scheduler_.NextBatch(items_);
    if (!items_.empty()) RunBatch();
  }
}

bool Engine::Impl::TakeMail(Mail& mail) {
  mail.submitted.clear();
  mail.cancelled.clear();
  const bool idle = !scheduler_.HasWork();
  absl::Time wake = absl::InfiniteFuture();
  if (idle && !sequences_.empty()) wake = std::min(scheduler_.NextDeadline(), mail.drain_deadline);
  absl::MutexLock lock(&mu_);
  stats_ = counted_;
  if (idle) mu_.AwaitWithDeadline(absl::Condition(this, &Impl::HasMail), wake);
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

void Engine::Impl::AdmitWaiting(absl::Time now) {
  while (const std::optional<Scheduler::Admission> admission = scheduler_.Admit()) {
    Sequence& sequence = *sequences_.at(admission->id);
    sequence.lane = admission->lane;
    sequence.admitted = now;
    sequence.slot = slots_.Acquire(sequence.request.initial.get());
    PALIMPSEST_CHECK(sequence.slot.index >= 0);
    sequence.request.initial = nullptr;
    lanes_[sequence.lane] = &sequence;
    scheduler_.Hold(sequence.lane, IsFull(sequence));
    ++counted_.running;
    ++counted_.slots_used;
    counted_.cached_tokens += sequence.initial_position;
    outbox_.AddQueued(now - sequence.request.arrival);
    // Such a prompt has nothing to take in: it is empty, or its one token is pending at once.
    const Scheduler::Job job = sequence.MakeJob();
    if (!job.feed && job.prefill_rows == 0) CompletePrompt(sequence);
  }
}

bool Engine::Impl::IsFull(const Sequence& sequence) const {
  return sequence.request.sink->undelivered_tokens() + sequence.coming_tokens >= options_.max_undelivered_tokens;
}

void Engine::Impl::HoldSlowReaders() {
  counted_.held = 0;
  for (const Sequence* sequence : lanes_) {
    if (sequence == nullptr) continue;
    const bool full = IsFull(*sequence);
    scheduler_.Hold(sequence->lane, full);
    if (full) ++counted_.held;
  }
}

void Engine::Impl::NoteOldestWaiting() {
  const std::optional<RequestId> first = scheduler_.first_waiting();
  counted_.oldest_waiting = first ? sequences_.at(*first)->request.arrival : absl::InfiniteFuture();
}

void Engine::Impl::RunBatch() {
  const absl::Time begin = absl::Now();
  stepper_.Begin(items_, lanes_);
  const absl::Time begun = absl::Now();
  for (const Scheduler::Item& item : items_) {
    if (item.work == Scheduler::Work::kDecode) ++lanes_[item.lane]->coming_tokens;
  }
  if (OnDevice()) Tell();
  const absl::Status status = stepper_.Finish();
  const absl::Time end = absl::Now();
  if (OnDevice()) counted_.device_wait += end - begun;
  ++counted_.iterations;
  counted_.recorded_passes = stepper_.passes().recorded_passes;
  counted_.direct_passes = stepper_.passes().direct_passes;
  if (!status.ok()) return FailDevice(status);
  Advance(end);
  outbox_.AddIteration(stepper_.rows(), static_cast<int32_t>(items_.size()), end - begin);
}

void Engine::Impl::Advance(absl::Time now) {
  int64_t logit_rows = 0;
  for (size_t i = 0; i < items_.size(); ++i) {
    const Scheduler::Item& item = items_[i];
    Sequence& sequence = *lanes_[item.lane];
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
  const LeastWork::Amount least = least_work_.Of(stepper_.rows(), std::ssize(items_), logit_rows);
  counted_.least_bytes += least.bytes;
  counted_.least_flops += least.flops;
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

  if (sequence.IsStopToken(answer.token)) return End(sequence, Ending::kDone, absl::OkStatus(), EndReason::kStopToken);
  sequence.unread_after = previous;
  // Only a stop string makes what follows depend on the text.
  const int32_t stop = request.stop_strings.empty() ? -1 : sequence.ReadToken(*tokenizer_);
  if (stop >= 0) {
    End(sequence, Ending::kDone, absl::OkStatus(), EndReason::kStopString, request.stop_strings[stop]);
  } else if (sequence.generated_tokens >= request.max_tokens) {
    End(sequence, Ending::kDone, absl::OkStatus(), EndReason::kLength);
  } else if (sequence.head.position == model_->config().max_context()) {
    End(sequence, Ending::kDone, absl::OkStatus(), EndReason::kContextFull);
  }
}

void Engine::Impl::Tell() {
  outbox_.SendDeltas();
  if (outbox_.ended() > 0) {
    outbox_.Settle(counted_, SteadyNow());
    {
      absl::MutexLock lock(&mu_);
      stats_ = counted_;
      delivering_ = outbox_.ended();
      in_flight_ -= delivering_;
    }
    outbox_.SendFinishes();
    absl::MutexLock lock(&mu_);
    delivering_ = 0;
  }
  HoldSlowReaders();
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

void Engine::Impl::EndEarly(Sequence& sequence, absl::StatusCode code, const char* why) {
  const int64_t position = sequence.generated_tokens > 0 ? sequence.head.position : sequence.initial_position;
  End(sequence, Ending::kEarly,
      absl::Status(code,
                   absl::StrCat(why, " after ", sequence.generated_tokens, " generated tokens",
                                sequence.request.lease ? absl::StrCat("; the session stands at position ", position)
                                                       : std::string())));
}

void Engine::Impl::End(Sequence& sequence, Ending ending, absl::Status status, EndReason reason,
                       std::string stop_string) {
  const absl::Time now = absl::Now();
  // At once, since the slot is given out again. The rest of what becomes of the state can wait.
  std::shared_ptr<State> state;
  if (sequence.LeavesState(ending)) {
    stepper_.MakeWhole(sequence.slot);
    absl::StatusOr<std::shared_ptr<State>> copied = CopyState(format_, slots_, sequence.slot);
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
  finish.reason = reason;
  finish.stop_string = std::move(stop_string);
  finish.seed = sequence.request.sampling.seed;
  finish.prompt_tokens = sequence.prompt_tokens;
  finish.generated_tokens = sequence.generated_tokens;
  finish.cached_tokens = sequence.initial_position;
  finish.queue_time = std::min(sequence.admitted, now) - sequence.request.arrival;
  if (sequence.generated_tokens > 0) finish.time_to_first_token = sequence.first_token - sequence.request.arrival;
  finish.total_time = now - sequence.request.arrival;
  if (sequence.lane >= 0) {
    slots_.Release(sequence.slot);
    scheduler_.Leave(sequence.lane);
    lanes_[sequence.lane] = nullptr;
    --counted_.running;
    --counted_.slots_used;
  } else {
    outbox_.AddQueued(finish.queue_time);
    PALIMPSEST_CHECK(scheduler_.Withdraw(sequence.id));
  }
  const auto it = sequences_.find(sequence.id);
  outbox_.AddEnd({.sequence = std::move(it->second), .ending = ending, .finish = std::move(finish), .state = state});
  sequences_.erase(it);
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Engine::~Engine() = default;

absl::StatusOr<std::unique_ptr<Engine>> Engine::Start(std::shared_ptr<const Model> model,
                                                      std::shared_ptr<const Tokenizer> tokenizer,
                                                      const EngineOptions& options, EngineObserver observer) {
  PALIMPSEST_CHECK(model != nullptr && tokenizer != nullptr);
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  absl::StatusOr<int32_t> slots = ChooseSlots(*model, options);
  if (!slots.ok()) return slots.status();
  EngineOptions chosen = options;
  chosen.slots = *slots;
  return OrNoMemory("the slots and batches", [&]() -> absl::StatusOr<std::unique_ptr<Engine>> {
    auto impl = std::make_unique<Impl>(std::move(model), std::move(tokenizer), chosen, std::move(observer));
    if (absl::Status status = impl->Start(); !status.ok()) return status;
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
