// One call over all its attempts: its deadline, its metadata, its way to be cancelled, and when it is made again.
#pragma once

#include <grpcpp/client_context.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "clients/cpp/client.h"

namespace palimpsest::client {

// What the calls of one client have in common.
struct Peer {
  std::string authorization = "";  // metadata; empty: none
  std::string proxy = "";          // see ProxyOnTheWay
};

// What a Cancellation needs of a call: the context of the attempt in progress, or the wait for the next. Thread-safe.
class CallInProgress {
 public:
  void Cancel() ABSL_LOCKS_EXCLUDED(mu_);
  bool cancelled() const ABSL_LOCKS_EXCLUDED(mu_);
  // The next attempt has this context.
  void Begin(std::shared_ptr<grpc::ClientContext> context) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits, but not once the call is cancelled.
  void Sleep(absl::Duration time) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  mutable absl::Mutex mu_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  std::shared_ptr<grpc::ClientContext> context_ ABSL_GUARDED_BY(mu_);
};

// One thread uses it; Cancel may come from any. `options` as for RetryPolicy.
class Attempts {
 public:
  // `session`: to route the call by; may be empty.
  Attempts(const Peer& peer, const CallOptions& options, std::string session);
  ~Attempts();
  Attempts(const Attempts&) = delete;
  Attempts& operator=(const Attempts&) = delete;

  // Begins an attempt. What used the context of the attempt before must be gone.
  grpc::ClientContext* Next();
  // Of the attempt in progress.
  grpc::ClientContext* context() { return context_.get(); }

  // How an attempt ended, as the caller is to see it: with the cure where it lies in how the client connected.
  absl::Status ToStatus(const grpc::Status& status) const;

  // After an attempt of which nothing has come but `status`: whether to make another, for which this has waited. False:
  // `status` is for the caller; it becomes CANCELLED if the call was cancelled meanwhile.
  bool WaitToRetry(absl::Status& status);

  // What is left of the call's time.
  absl::Duration TimeLeft() const { return options_.timeout - Elapsed(); }

  void Cancel() { call_->Cancel(); }

 private:
  absl::Duration Elapsed() const { return absl::FromChrono(std::chrono::steady_clock::now() - begin_); }
  // gRPC ends the process on a value with bytes that it does not allow, and such a value is the server's to refuse.
  void AddMetadata(const char* key, const std::string& value);

  const Peer& peer_;
  const CallOptions options_;
  const std::string session_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  const std::shared_ptr<CallInProgress> call_ = std::make_shared<CallInProgress>();
  std::shared_ptr<grpc::ClientContext> context_;
  int made_ = 0;
};

}  // namespace palimpsest::client
