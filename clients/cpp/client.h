// The client library of Palimpsest: typed calls over gRPC, with what a careful client needs filled in.
//
//   absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect("localhost:50051");
//   v1::GenerateRequest request;
//   request.set_text("Once upon a time");
//   std::unique_ptr<GenerateStream> stream = (*client)->Generate(request);
//   for (v1::GenerateResponse message; stream->Next(message);) std::cout << message.text() << std::flush;
//   absl::StatusOr<v1::GenerateFinish> finish = stream->Finish();
//
// Requests and answers are the messages of palimpsest.v1; their comments are the manual of each field and error. What
// this library adds to the bare stubs:
// * one connection for all services: keepalive that idle token streams survive behind a balancer, messages up to
//   64 MiB (an inline state is larger than gRPC's 4 MiB), TLS;
// * retries, see RetryPolicy: of any call that the server refused for the moment; and, of the calls that may be
//   repeated, where the server was not reached: reads, and the calls that carry a request id, which is filled in where
//   the caller left it empty;
// * a bearer token with every call, never over plain text to another machine, and this machine (loopback addresses,
//   localhost, unix sockets) reached without the environment's proxies;
// * the session's name in the metadata key `x-goog-request-params`, so that a balancer can route by it, and the W3C
//   trace context of the caller, if there is one;
// * snapshots as files or strings, sent in pieces of 1 MiB;
// * errors as absl::Status, the details of google.rpc rendered into the message, one `field: cure` a line.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "palimpsest/v1/generation.pb.h"
#include "palimpsest/v1/model.pb.h"
#include "palimpsest/v1/session.pb.h"
#include "palimpsest/v1/snapshot.pb.h"

namespace palimpsest::client {

class CallInProgress;

struct ConnectOptions {
  // Encrypts, and checks the server's certificate against `ca_file`, or the system's authorities if that is empty.
  bool tls = false;
  std::string ca_file = "";
  // The client's own certificate and key, for servers that ask for one. Both or neither; they imply `tls`.
  std::string certificate_file = "";
  std::string key_file = "";

  // Says who calls: sent as `authorization: Bearer TOKEN`. Empty: none. ReadTokenFile of token.h reads one.
  std::string token = "";
  // Sends it to another machine even without encryption, where anybody on the way can read it.
  bool allow_insecure_token = false;

  // Largest message sent or received. An inline state must fit: raise it together with the server's limit.
  int max_message_bytes = 64 << 20;

  // Spreads calls over all addresses that the target resolves to, instead of staying with one. Not for calls on a
  // session, which one server has.
  bool round_robin = false;

  // A ping after this long without data. Shorter notices a dead server sooner; the server must permit it, or it ends
  // the connection.
  absl::Duration keepalive_time = absl::Seconds(30);
  absl::Duration keepalive_timeout = absl::Seconds(10);

  // How long Connect waits for the connection to stand. Zero: does not wait; the first call connects.
  absl::Duration connect_timeout = absl::Seconds(5);
};

// Cancels calls from another thread. Thread-safe; must outlive the calls it was given to.
class Cancellation {
 public:
  // Ends with CANCELLED all calls that carry this now, and at once those that will.
  void Cancel() ABSL_LOCKS_EXCLUDED(mu_);
  bool cancelled() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  friend class Attempts;
  void Add(const std::shared_ptr<CallInProgress>& call) ABSL_LOCKS_EXCLUDED(mu_);
  void Remove(const std::shared_ptr<CallInProgress>& call) ABSL_LOCKS_EXCLUDED(mu_);

  mutable absl::Mutex mu_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::shared_ptr<CallInProgress>> calls_ ABSL_GUARDED_BY(mu_);
};

// How often, and for how long, a call is made again that the server refused for the moment. A refusal is ABORTED
// (another call holds the session), RESOURCE_EXHAUSTED (a queue or a limit is full) or UNAVAILABLE (the server is
// draining) that says when to come back (google.rpc.RetryInfo): the server has then done nothing yet, so that any call
// may be repeated. The client waits as long as the server asks, twice as long at each further refusal, and up to a
// quarter more at random, so that many clients do not come back as one. It gives up, with the last refusal, at the
// bounds below or where the wait would pass the call's own timeout. A call of whose answer anything has come is never
// made again; nor are GenerateAsync, whose caller must not be kept waiting, and an upload from a ByteSource, which
// cannot be read twice.
struct RetryPolicy {
  int max_attempts = 6;                        // the most times that a call is made; 1: refusals come back at once
  absl::Duration max_time = absl::Seconds(5);  // no attempt begins later than this after the first
};

struct CallOptions {
  // DEADLINE_EXCEEDED after this long, all attempts together.
  absl::Duration timeout = absl::InfiniteDuration();
  // May be null.
  Cancellation* cancellation = nullptr;
  // W3C Trace Context: the caller's span, and what its tracing system adds. The server logs the call as a child of that
  // span. What a header cannot carry is left out.
  std::string traceparent = "";
  std::string tracestate = "";
  RetryPolicy retry = {};
};

// The stream of one Generate call. One thread reads; Cancel may come from any. Destroying it early cancels the call.
class GenerateStream {
 public:
  virtual ~GenerateStream() = default;

  // Waits for the next message. False: the stream has ended, see Finish.
  virtual bool Next(v1::GenerateResponse& message) = 0;

  // Ends the call from this side; Next soon returns false and Finish CANCELLED.
  virtual void Cancel() = 0;

  // Reads what is left, and says how the call ended: the server's last word, or its error. INTERNAL: the stream ended
  // without one. Calling it again gives the same.
  virtual absl::StatusOr<v1::GenerateFinish> Finish() = 0;

  // The id under which the server logs this call; empty until the first message has come.
  virtual std::string call_id() const = 0;
};

// What grpc.health.v1 says of a service.
enum class Health { kUnknown = 0, kServing = 1, kNotServing = 2, kServiceUnknown = 3 };
std::string_view HealthName(Health health);

// A snapshot's bytes on their way. A sink takes the next bytes, an error ends the download with it. A source gives the
// next bytes (any number at a time; none: the end), an error ends the upload with it.
using ByteSink = std::function<absl::Status(std::string_view)>;
using ByteSource = std::function<absl::StatusOr<std::string>()>;

// What ListSessions and ListSnapshots take for the sessions and snapshots of all owners. PERMISSION_DENIED: the caller
// is no admin.
inline constexpr char kAllOwners[] = "-";

struct UploadSnapshotOptions {
  std::string snapshot_id = "";               // empty: the server makes one
  std::string model = "";                     // `models/{model}`; may be empty when the server has one model
  absl::Duration ttl = absl::ZeroDuration();  // zero: never expires
};

// A connection to a server. Thread-safe. Streams and calls in progress must end before it is destroyed.
class Client {
 public:
  // Connects to `host:port`, `unix:/path` or any gRPC target.
  // INVALID_ARGUMENT: a certificate and no key, or the other way; a malformed token, or one that would cross a network
  // in plain text.  NOT_FOUND: a file of `options` cannot be read.
  // UNAVAILABLE: nobody answered there within `connect_timeout`.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& target, const ConnectOptions& options = {});

  virtual ~Client() = default;

  // -- Generation
  virtual std::unique_ptr<GenerateStream> Generate(const v1::GenerateRequest& request,
                                                   const CallOptions& options = {}) = 0;
  // The same by callback, for many streams at once: `on_message` for each message, one at a time, then `on_done` once.
  // They run on gRPC's threads and must not wait.
  virtual void GenerateAsync(const v1::GenerateRequest& request,
                             std::function<void(const v1::GenerateResponse&)> on_message,
                             std::function<void(absl::Status)> on_done, const CallOptions& options = {}) = 0;
  virtual absl::StatusOr<v1::ScoreResponse> Score(const v1::ScoreRequest& request, const CallOptions& options = {}) = 0;
  virtual absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                                        const CallOptions& options = {}) = 0;
  virtual absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                            const CallOptions& options = {}) = 0;

  // -- Sessions
  virtual absl::StatusOr<v1::Session> CreateSession(const v1::CreateSessionRequest& request,
                                                    const CallOptions& options = {}) = 0;
  virtual absl::StatusOr<v1::Session> GetSession(const std::string& name, const CallOptions& options = {}) = 0;
  // All pages: the caller's, or for an `owner` of kAllOwners those of all.
  virtual absl::StatusOr<std::vector<v1::Session>> ListSessions(const CallOptions& options = {},
                                                                const std::string& owner = "") = 0;
  virtual absl::StatusOr<v1::Session> UpdateSession(const v1::UpdateSessionRequest& request,
                                                    const CallOptions& options = {}) = 0;
  virtual absl::StatusOr<std::vector<v1::Session>> ForkSession(const v1::ForkSessionRequest& request,
                                                               const CallOptions& options = {}) = 0;
  // Ends the call that holds the session, if there is one, as if its caller had cancelled it, whoever of its owner that
  // is. The session is free then, at the last token sampled.  ABORTED: the call has not ended yet.
  virtual absl::StatusOr<v1::Session> InterruptSession(const std::string& name, const CallOptions& options = {}) = 0;
  // ABORTED: `etag` is given and stale; or a call holds the session, which `force` ends as InterruptSession does.
  virtual absl::Status DeleteSession(const std::string& name, const std::string& etag = "",
                                     const CallOptions& options = {}, bool force = false) = 0;

  // -- Snapshots
  virtual absl::StatusOr<v1::Snapshot> CreateSnapshot(const v1::CreateSnapshotRequest& request,
                                                      const CallOptions& options = {}) = 0;
  virtual absl::StatusOr<v1::Snapshot> GetSnapshot(const std::string& name, const CallOptions& options = {}) = 0;
  // All pages: the caller's, or for an `owner` of kAllOwners those of all.
  virtual absl::StatusOr<std::vector<v1::Snapshot>> ListSnapshots(const CallOptions& options = {},
                                                                  const std::string& owner = "") = 0;
  virtual absl::Status DeleteSnapshot(const std::string& name, const CallOptions& options = {}) = 0;
  // DATA_LOSS: fewer or more bytes came than the snapshot has.
  virtual absl::StatusOr<v1::Snapshot> DownloadSnapshot(const std::string& name, const ByteSink& sink,
                                                        const CallOptions& options = {}) = 0;
  virtual absl::StatusOr<v1::Snapshot> UploadSnapshot(const UploadSnapshotOptions& what, const ByteSource& source,
                                                      const CallOptions& options = {}) = 0;

  // -- Models
  virtual absl::StatusOr<std::vector<v1::Model>> ListModels(const CallOptions& options = {}) = 0;
  virtual absl::StatusOr<v1::Model> GetModel(const std::string& name, const CallOptions& options = {}) = 0;
  virtual absl::StatusOr<v1::Model> LoadModel(const std::string& model_id, const std::string& path,
                                              const CallOptions& options = {}) = 0;
  virtual absl::Status UnloadModel(const std::string& name, const CallOptions& options = {}) = 0;

  // -- Health of the server, or of one service
  virtual absl::StatusOr<Health> CheckHealth(const std::string& service = "", const CallOptions& options = {}) = 0;

  // -- Conveniences over the calls above
  absl::StatusOr<std::string> DownloadSnapshotBytes(const std::string& name, const CallOptions& options = {});
  // The file appears under its name once it is whole and on the disk; only its owner may read it.
  absl::StatusOr<v1::Snapshot> DownloadSnapshotFile(const std::string& name, const std::string& path,
                                                    const CallOptions& options = {});
  absl::StatusOr<v1::Snapshot> UploadSnapshotBytes(const UploadSnapshotOptions& what, std::string_view bytes,
                                                   const CallOptions& options = {});
  absl::StatusOr<v1::Snapshot> UploadSnapshotFile(const UploadSnapshotOptions& what, const std::string& path,
                                                  const CallOptions& options = {});
};

// The machine-readable reason (google.rpc.ErrorInfo) of a status that this library returned; empty: none.
std::string ErrorReason(const absl::Status& status);
// How long the server asks to wait before trying again (google.rpc.RetryInfo), if it does.
std::optional<absl::Duration> RetryDelay(const absl::Status& status);

}  // namespace palimpsest::client
