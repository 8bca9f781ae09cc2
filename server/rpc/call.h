// What all services share, and what is done at the beginning and the end of every call.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/auth/authenticator.h"
#include "server/metrics/metrics.h"
#include "server/models/registry.h"
#include "server/rpc/background.h"
#include "server/rpc/call_rate.h"
#include "server/rpc/caller.h"
#include "server/rpc/limits.h"
#include "server/rpc/log.h"
#include "server/rpc/memory_budget.h"
#include "server/rpc/methods.h"
#include "server/rpc/page_token.h"
#include "server/rpc/reply_budget.h"
#include "server/rpc/request_table.h"
#include "server/rpc/stalls.h"
#include "server/session/session_store.h"

namespace palimpsest {

// Lets calls in, or not, and counts those inside. Thread-safe.
class Door {
 public:
  // closed (starting) -> open -> shut (draining).
  void Open();
  void Shut();
  // UNAVAILABLE while it is not open. After OK, Leave is due.
  absl::Status Enter();
  void Leave();
  // False: `deadline` came first.
  bool AwaitEmpty(absl::Time deadline);
  // Until nobody has come or left for `time`, or `deadline`.
  void AwaitQuiet(absl::Duration time, absl::Time deadline);

 private:
  enum class Condition { kClosed, kOpen, kShut };
  absl::Mutex mu_;
  Condition condition_ ABSL_GUARDED_BY(mu_) = Condition::kClosed;
  int64_t inside_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time last_event_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
};

// Whether reading a request of so many bytes takes some milliseconds at most, however it is tokenised.
inline bool IsShort(size_t bytes) { return bytes <= (size_t{4} << 10); }

// The order of the members is that of what they need: each is gone before those above it.
struct ServerCore {
  ServerCore(std::unique_ptr<Authenticator> set_authenticator, const Limits& set_limits,
             const SessionStoreOptions& session_options, const ModelRegistry::Options& model_options,
             double max_calls_per_second)
      : authenticator(std::move(set_authenticator)),
        limits(set_limits),
        call_rate(max_calls_per_second),
        sessions(WithShares(session_options, authenticator.get())),
        requests(set_limits.max_request_ids, std::numeric_limits<int64_t>::max()),
        replies(std::numeric_limits<int64_t>::max()),
        memory({.max_state_bytes = session_options.max_state_bytes,
                .max_rpc_memory_bytes = set_limits.max_rpc_memory_bytes,
                .max_reply_bytes = set_limits.max_reply_bytes,
                .max_request_id_bytes = set_limits.max_request_id_bytes,
                .max_transfers = set_limits.max_transfers},
               MemoryLimits(), &sessions, &requests, &replies),
        stalls(set_limits.max_stall),
        models(WithShares(model_options, authenticator.get()), &metrics, &sessions,
               [this](ModelMemory model) { return memory.Admit(std::move(model)); }),
        workers(kWorkThreads, kMaxLongRequests) {}

  // Few, so that the engine keeps its processors however many long requests come.
  static constexpr int32_t kWorkThreads = 2;
  // Requests that may wait for one of them: each is counted in gRPC's memory as long as it does.
  static constexpr int32_t kMaxLongRequests = 1024;

  const std::unique_ptr<Authenticator> authenticator;
  const Limits limits;
  CallRate call_rate;
  Metrics metrics;
  SessionStore sessions;
  RequestTable requests;
  ReplyBudget replies;
  MemoryBudget memory;  // sets bounds of the three before
  const PageTokens pages;
  Stalls stalls;
  std::atomic<int32_t> transfers{0};  // uploads and downloads that run
  Door door;
  ModelRegistry models;
  DeliveryThread delivery;
  TaskThreads tasks;
  WorkThreads workers;

  // Runs `work`, which reads a request of `bytes`: at once on this thread if that IsShort, else on a worker.
  // RESOURCE_EXHAUSTED: it is long, and too many wait; `work` will not run.
  // `connection` as for WorkThreads.
  absl::Status RunBySize(const std::string& connection, size_t bytes, std::function<void()> work);
};

// What `act` returns; RESOURCE_EXHAUSTED where memory for it cannot be had, and INTERNAL for what else is thrown by
// libraries.
absl::Status Guarded(const std::function<absl::Status()>& act);

// One call from its beginning to its end, for the log, the metrics, the door, and its peer's patience.
class Call {
 public:
  Call(ServerCore& core, grpc::CallbackServerContext* context, const Method& method);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Whether the caller is known, may call this, and the door let it in: else the status to end it with.
  const absl::Status& admitted() const { return admitted_; }
  // Who calls; of a call that is not admitted, perhaps nobody in particular.
  const Identity& identity() const { return identity_; }
  absl::Time arrival() const { return arrival_; }
  absl::Time deadline() const { return deadline_; }
  const std::string& id() const { return log.id; }
  // Whose sessions and snapshots it is about.
  const std::string& owner() const { return identity_.owner; }
  MessageLimits limits() const { return limits_; }

  // The caller's id for logs, kept if it is fit for a header; the caller reads the call's in `x-call-id`. Before the
  // first message or the end leaves.
  void SetId(const std::string& id);

  // The request has been read, for the log and the metrics; for those whose reading may take long.
  void NoteRead();

  // The answer of `bytes` is the peer's to read from now on, or it is the peer's turn to send one; and it has.
  void BeginWait(int64_t bytes);
  void EndWait(int64_t bytes);

  // Whether the call, which would end with `status`, is to be tried once more: another call holds its session, and may
  // be about to let it go. `then` is called once that has happened, or some time has passed, on a thread where it may
  // take long; or with an error to end the call with, where it may not. Once for each call: the second time it is
  // false.
  bool AwaitSession(const absl::Status& status, std::function<void(absl::Status)> then);

  // Counts an answer until the call is over. As ReplyBudget::Take.
  absl::Status HoldReply(int64_t bytes);

  // Writes the log line, counts, leaves the door. Call once, when gRPC is done with the call. A call that was ended
  // because its peer did nothing is told of as that, whatever `status` says.
  void End(const absl::Status& status);

  CallLog log;  // for the handler to fill in

 private:
  absl::Status Admit(const Method& method);

  ServerCore& core_;
  grpc::CallbackServerContext* const context_;
  const char* const method_;
  const MessageLimits limits_;
  const absl::Time arrival_;
  absl::Time deadline_ = absl::InfiniteFuture();
  Stalls::Watch watch_;
  ReplyBudget::Hold reply_;
  Identity identity_;
  absl::Status admitted_;
  bool id_set_ = false;
  bool waited_ = false;
  bool ended_ = false;
};

}  // namespace palimpsest
