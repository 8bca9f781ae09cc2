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
#include "server/rpc/background.h"
#include "server/rpc/caller.h"
#include "server/rpc/limits.h"
#include "server/rpc/log.h"
#include "server/rpc/memory_budget.h"
#include "server/rpc/model_registry.h"
#include "server/rpc/page_token.h"
#include "server/rpc/request_table.h"
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

// The order of the members is that of what they need: each is gone before those above it.
struct ServerCore {
  ServerCore(std::unique_ptr<Authenticator> set_authenticator, const Limits& set_limits,
             const SessionStoreOptions& session_options, const ModelRegistry::Options& model_options)
      : authenticator(std::move(set_authenticator)),
        limits(set_limits),
        sessions(WithShares(session_options, authenticator.get())),
        requests(set_limits.max_request_ids, std::numeric_limits<int64_t>::max()),
        memory({.max_state_bytes = session_options.max_state_bytes,
                .max_rpc_memory_bytes = set_limits.max_rpc_memory_bytes,
                .max_request_id_bytes = set_limits.max_request_id_bytes,
                .max_transfers = set_limits.max_transfers},
               MemoryLimits(), &sessions, &requests),
        models(model_options, &metrics, &sessions, &memory) {}

  const std::unique_ptr<Authenticator> authenticator;
  const Limits limits;
  Metrics metrics;
  SessionStore sessions;
  RequestTable requests;
  MemoryBudget memory;  // sets bounds of the two before
  const PageTokens pages;
  std::atomic<int32_t> transfers{0};  // uploads and downloads that run
  Door door;
  ModelRegistry models;
  DeliveryThread delivery;
  TaskThreads tasks;
};

// One call from its beginning to its end, for the log, the metrics and the door.
class Call {
 public:
  // `method` is "palimpsest.v1.GenerationService/Generate" and must outlive the call. `id`, the caller's for logs, is
  // kept if it is fit for a header; else one is made. The caller reads it in `x-request-id`.
  Call(ServerCore& core, grpc::CallbackServerContext* context, const char* method, const std::string& id = "");
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Whether the door let it in: else the status to end it with.
  const absl::Status& admitted() const { return admitted_; }
  absl::Time arrival() const { return arrival_; }
  absl::Time deadline() const { return deadline_; }
  const std::string& id() const { return log.id; }

  // Writes the log line, counts, leaves the door. Call once.
  void End(const absl::Status& status);

  CallLog log;  // for the handler to fill in

 private:
  ServerCore& core_;
  const char* const method_;
  const absl::Time arrival_;
  absl::Time deadline_ = absl::InfiniteFuture();
  absl::Status admitted_;
  bool ended_ = false;
};

// Runs a call that is quick, on the thread that brought it.
grpc::ServerUnaryReactor* RunUnary(ServerCore& core, grpc::CallbackServerContext* context, const char* method,
                                   const std::function<absl::Status(CallLog& log)>& handle);
// Runs one that takes long, on a thread of its own. It is finished even if the caller has gone.
grpc::ServerUnaryReactor* RunSlowUnary(ServerCore& core, grpc::CallbackServerContext* context, const char* method,
                                       std::function<absl::Status(CallLog& log)> handle);

}  // namespace palimpsest
