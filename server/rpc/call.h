// What all services share, and what is done at the beginning and the end of every call.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/metrics/metrics.h"
#include "server/rpc/background.h"
#include "server/rpc/limits.h"
#include "server/rpc/log.h"
#include "server/rpc/methods.h"
#include "server/rpc/model_registry.h"
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
  ServerCore(const Limits& set_limits, const SessionStoreOptions& session_options,
             const ModelRegistry::Options& model_options)
      : limits(set_limits),
        sessions(session_options),
        requests(set_limits.max_request_ids),
        replies(set_limits.max_reply_bytes),
        stalls(set_limits.max_stall),
        models(model_options, &metrics, &sessions),
        workers(kWorkThreads, kMaxLongRequests) {}

  // Few, so that the engine keeps its processors however many long requests come.
  static constexpr int32_t kWorkThreads = 2;
  // Requests that may wait for one of them: each is counted in gRPC's memory as long as it does.
  static constexpr int32_t kMaxLongRequests = 1024;

  const Limits limits;
  Metrics metrics;
  SessionStore sessions;
  RequestTable requests;
  const PageTokens pages;
  ReplyBudget replies;
  Stalls stalls;
  std::atomic<int32_t> transfers{0};  // uploads and downloads that run
  Door door;
  ModelRegistry models;
  DeliveryThread delivery;
  TaskThreads tasks;
  WorkThreads workers;

  // Runs `work`, which reads a request of `bytes`: at once on this thread if that IsShort, else on a worker.
  // RESOURCE_EXHAUSTED: it is long, and too many wait; `work` will not run.
  absl::Status RunBySize(size_t bytes, std::function<void()> work);
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

  // Whether the door let it in: else the status to end it with.
  const absl::Status& admitted() const { return admitted_; }
  absl::Time arrival() const { return arrival_; }
  absl::Time deadline() const { return deadline_; }
  const std::string& id() const { return log.id; }
  MessageLimits limits() const { return limits_; }

  // The caller's id for logs, kept if it is fit for a header; the caller reads the call's in `x-request-id`. Before the
  // first message or the end leaves.
  void SetId(const std::string& id);

  // The request has been read, for the log and the metrics; for those whose reading may take long.
  void NoteRead();

  // The answer of `bytes` is the peer's to read from now on, or it is the peer's turn to send one; and it has.
  void BeginWait(int64_t bytes);
  void EndWait(int64_t bytes);

  // Counts an answer until the call is over. As ReplyBudget::Take.
  absl::Status HoldReply(int64_t bytes);

  // Writes the log line, counts, leaves the door. Call once, when gRPC is done with the call. A call that was ended
  // because its peer did nothing is told of as that, whatever `status` says.
  void End(const absl::Status& status);

  CallLog log;  // for the handler to fill in

 private:
  ServerCore& core_;
  grpc::CallbackServerContext* const context_;
  const char* const method_;
  const MessageLimits limits_;
  const absl::Time arrival_;
  absl::Time deadline_ = absl::InfiniteFuture();
  Stalls::Watch watch_;
  ReplyBudget::Hold reply_;
  absl::Status admitted_;
  bool ended_ = false;
};

}  // namespace palimpsest
