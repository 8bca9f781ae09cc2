#include "clients/cpp/client.h"

#include <google/protobuf/wrappers.pb.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "clients/cpp/attempts.h"
#include "clients/cpp/target.h"
#include "clients/cpp/token.h"
#include "palimpsest/v1/generation.grpc.pb.h"
#include "palimpsest/v1/model.grpc.pb.h"
#include "palimpsest/v1/session.grpc.pb.h"
#include "palimpsest/v1/snapshot.grpc.pb.h"

namespace palimpsest::client {

namespace {

constexpr size_t kPieceBytes = 1 << 20;  // the most that DownloadSnapshot and UploadSnapshot carry in one message

// Retries of calls that may be repeated: those that change nothing, and those with a request id. Generate and Score
// append to their session, UpdateSession begins its time to live anew, and a second Delete or Unload is NOT_FOUND.
constexpr char kServiceConfig[] = R"({"methodConfig": [{
  "name": [
    {"service": "palimpsest.v1.GenerationService", "method": "Tokenize"},
    {"service": "palimpsest.v1.GenerationService", "method": "Detokenize"},
    {"service": "palimpsest.v1.SessionService", "method": "CreateSession"},
    {"service": "palimpsest.v1.SessionService", "method": "GetSession"},
    {"service": "palimpsest.v1.SessionService", "method": "ListSessions"},
    {"service": "palimpsest.v1.SessionService", "method": "ForkSession"},
    {"service": "palimpsest.v1.SessionService", "method": "InterruptSession"},
    {"service": "palimpsest.v1.SnapshotService", "method": "CreateSnapshot"},
    {"service": "palimpsest.v1.SnapshotService", "method": "GetSnapshot"},
    {"service": "palimpsest.v1.SnapshotService", "method": "ListSnapshots"},
    {"service": "palimpsest.v1.ModelService", "method": "ListModels"},
    {"service": "palimpsest.v1.ModelService", "method": "GetModel"}
  ],
  "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
                  "retryableStatusCodes": ["UNAVAILABLE"]}
}]})";

// A random UUID, version 4.
std::string NewRequestId() {
  absl::BitGen gen;
  const uint64_t high = absl::Uniform<uint64_t>(gen);
  const uint64_t low = absl::Uniform<uint64_t>(gen);
  return absl::StrFormat("%08x-%04x-4%03x-%04x-%012x", high >> 32, (high >> 16) & 0xffff, high & 0xfff,
                         0x8000 | (low >> 50), low & 0xffffffffffff);
}

template <typename Request>
Request WithRequestId(Request request) {
  if (request.request_id().empty()) request.set_request_id(NewRequestId());
  return request;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  return bytes;
}

bool Encrypts(const ConnectOptions& options) {
  return options.tls || !options.ca_file.empty() || !options.key_file.empty();
}

absl::Status CheckTokenOf(const std::string& target, const ConnectOptions& options) {
  if (options.token.empty()) return absl::OkStatus();
  if (!Encrypts(options) && !IsLocalTarget(target) && !options.allow_insecure_token) {
    return absl::InvalidArgumentError(
        absl::StrCat(target, " is another machine and the connection is not encrypted: anybody on the way could read ",
                     "the token. Connect with TLS, or allow it with allow_insecure_token"));
  }
  return CheckToken(options.token, "the token");
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> Credentials(const ConnectOptions& options) {
  if (options.certificate_file.empty() != options.key_file.empty()) {
    return absl::InvalidArgumentError("a client certificate and its key go together: give both files or neither");
  }
  if (!Encrypts(options)) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions ssl;
  const std::pair<const std::string*, std::string*> files[] = {{&options.ca_file, &ssl.pem_root_certs},
                                                               {&options.certificate_file, &ssl.pem_cert_chain},
                                                               {&options.key_file, &ssl.pem_private_key}};
  for (const auto& [path, bytes] : files) {
    if (path->empty()) continue;
    PALIMPSEST_ASSIGN_OR_RETURN(*bytes, ReadFile(*path));
  }
  return grpc::SslCredentials(ssl);
}

grpc::ChannelArguments Arguments(const std::string& target, const ConnectOptions& options) {
  grpc::ChannelArguments arguments;
  // A proxy is of no use on the way to this machine, and seldom lets anybody through to it.
  if (IsLocalTarget(target)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(options.max_message_bytes);
  arguments.SetMaxSendMessageSize(options.max_message_bytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, absl::ToInt64Milliseconds(options.keepalive_time));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, absl::ToInt64Milliseconds(options.keepalive_timeout));
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // a stream may wait in the queue for long
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  // A connection of its own for each Client, so that opening several spreads load over several.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (options.round_robin) arguments.SetLoadBalancingPolicyName("round_robin");
  arguments.SetServiceConfigJSON(kServiceConfig);
  return arguments;
}

template <typename Request>
std::string SessionOf(const Request& request) {
  return request.has_session() ? request.session() : "";
}

std::string SessionOf(const v1::CreateSessionRequest& request) {
  if (request.has_source_session()) return request.source_session();
  return request.session_id().empty() ? "" : absl::StrCat("sessions/", request.session_id());
}

class Stream final : public GenerateStream {
 public:
  Stream(const Peer& peer, v1::GenerationService::Stub& stub, const v1::GenerateRequest& request,
         const CallOptions& options)
      : stub_(stub), request_(request), attempts_(peer, options, SessionOf(request)) {
    reader_ = stub_.Generate(attempts_.Next(), request_);
  }

  ~Stream() override {
    if (status_) return;
    Cancel();
    (void)Finish();  // a grpc reader must be read to its end
  }

  bool Next(v1::GenerateResponse& message) override {
    if (status_) return false;
    while (!reader_->Read(&message)) {
      if (begun_) return false;
      absl::Status status = attempts_.ToStatus(reader_->Finish());
      if (!attempts_.WaitToRetry(status)) {
        status_ = status;
        return false;
      }
      reader_.reset();  // before its context
      reader_ = stub_.Generate(attempts_.Next(), request_);
    }
    begun_ = true;
    if (call_id_.empty()) {
      const auto& metadata = attempts_.context()->GetServerInitialMetadata();
      const auto it = metadata.find("x-call-id");
      if (it != metadata.end()) call_id_ = std::string(it->second.data(), it->second.size());
    }
    if (message.has_finish()) finish_ = message.finish();
    return true;
  }

  void Cancel() override { attempts_.Cancel(); }

  absl::StatusOr<v1::GenerateFinish> Finish() override {
    for (v1::GenerateResponse message; Next(message);) continue;
    if (!status_) status_ = attempts_.ToStatus(reader_->Finish());
    if (!status_->ok()) return *status_;
    if (!finish_) return absl::InternalError("the stream ended without saying why");
    return *finish_;
  }

  std::string call_id() const override { return call_id_; }

 private:
  v1::GenerationService::Stub& stub_;
  const v1::GenerateRequest request_;
  Attempts attempts_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
  bool begun_ = false;  // a message has come
  std::string call_id_;
  std::optional<v1::GenerateFinish> finish_;
  std::optional<absl::Status> status_;  // set once the call has ended
};

// One GenerateAsync call; owns itself until gRPC says that it is done.
class AsyncStream final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  static void Start(const Peer& peer, v1::GenerationService::Stub& stub, const v1::GenerateRequest& request,
                    const CallOptions& options, std::function<void(const v1::GenerateResponse&)> on_message,
                    std::function<void(absl::Status)> on_done) {
    auto* stream = new AsyncStream(peer, request, options, std::move(on_message), std::move(on_done));
    stub.async()->Generate(stream->attempts_.Next(), &stream->request_, stream);
    stream->StartRead(&stream->message_);
    stream->StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    on_message_(message_);
    StartRead(&message_);
  }

  void OnDone(const grpc::Status& grpc_status) override {
    // This ends first: once the caller knows, it may destroy its Cancellation.
    const auto on_done = std::move(on_done_);
    const absl::Status status = attempts_.ToStatus(grpc_status);
    delete this;
    on_done(status);
  }

 private:
  AsyncStream(const Peer& peer, const v1::GenerateRequest& request, const CallOptions& options,
              std::function<void(const v1::GenerateResponse&)> on_message, std::function<void(absl::Status)> on_done)
      : attempts_(peer, options, SessionOf(request)),
        request_(request),
        on_message_(std::move(on_message)),
        on_done_(std::move(on_done)) {}

  Attempts attempts_;
  const v1::GenerateRequest request_;
  v1::GenerateResponse message_;
  const std::function<void(const v1::GenerateResponse&)> on_message_;
  std::function<void(absl::Status)> on_done_;
};

class GrpcClient final : public Client {
 public:
  GrpcClient(const std::shared_ptr<grpc::Channel>& channel, Peer peer)
      : peer_(std::move(peer)),
        generation_(v1::GenerationService::NewStub(channel)),
        sessions_(v1::SessionService::NewStub(channel)),
        snapshots_(v1::SnapshotService::NewStub(channel)),
        models_(v1::ModelService::NewStub(channel)),
        health_(channel) {}

  std::unique_ptr<GenerateStream> Generate(const v1::GenerateRequest& request, const CallOptions& options) override {
    return std::make_unique<Stream>(peer_, *generation_, request, options);
  }

  void GenerateAsync(const v1::GenerateRequest& request, std::function<void(const v1::GenerateResponse&)> on_message,
                     std::function<void(absl::Status)> on_done, const CallOptions& options) override {
    AsyncStream::Start(peer_, *generation_, request, options, std::move(on_message), std::move(on_done));
  }

  absl::StatusOr<v1::ScoreResponse> Score(const v1::ScoreRequest& request, const CallOptions& options) override {
    return Call<v1::ScoreResponse>(*generation_, &v1::GenerationService::Stub::Score, request, options,
                                   SessionOf(request));
  }

  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                                const CallOptions& options) override {
    return Call<v1::TokenizeResponse>(*generation_, &v1::GenerationService::Stub::Tokenize, request, options);
  }

  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                    const CallOptions& options) override {
    return Call<v1::DetokenizeResponse>(*generation_, &v1::GenerationService::Stub::Detokenize, request, options);
  }

  absl::StatusOr<v1::Session> CreateSession(const v1::CreateSessionRequest& request,
                                            const CallOptions& options) override {
    return Call<v1::Session>(*sessions_, &v1::SessionService::Stub::CreateSession, WithRequestId(request), options,
                             SessionOf(request));
  }

  absl::StatusOr<v1::Session> GetSession(const std::string& name, const CallOptions& options) override {
    v1::GetSessionRequest request;
    request.set_name(name);
    return Call<v1::Session>(*sessions_, &v1::SessionService::Stub::GetSession, request, options, name);
  }

  absl::StatusOr<std::vector<v1::Session>> ListSessions(const CallOptions& options, const std::string& owner) override {
    return AllPages<v1::Session, v1::ListSessionsRequest, v1::ListSessionsResponse>(
        *sessions_, &v1::SessionService::Stub::ListSessions, &v1::ListSessionsResponse::sessions, options, owner);
  }

  absl::StatusOr<v1::Session> UpdateSession(const v1::UpdateSessionRequest& request,
                                            const CallOptions& options) override {
    return Call<v1::Session>(*sessions_, &v1::SessionService::Stub::UpdateSession, request, options,
                             request.session().name());
  }

  absl::StatusOr<std::vector<v1::Session>> ForkSession(const v1::ForkSessionRequest& request,
                                                       const CallOptions& options) override {
    PALIMPSEST_ASSIGN_OR_RETURN(const v1::ForkSessionResponse response,
                                Call<v1::ForkSessionResponse>(*sessions_, &v1::SessionService::Stub::ForkSession,
                                                              WithRequestId(request), options, request.name()));
    return std::vector<v1::Session>(response.sessions().begin(), response.sessions().end());
  }

  absl::StatusOr<v1::Session> InterruptSession(const std::string& name, const CallOptions& options) override {
    v1::InterruptSessionRequest request;
    request.set_name(name);
    return Call<v1::Session>(*sessions_, &v1::SessionService::Stub::InterruptSession, request, options, name);
  }

  absl::Status DeleteSession(const std::string& name, const std::string& etag, const CallOptions& options,
                             bool force) override {
    v1::DeleteSessionRequest request;
    request.set_name(name);
    request.set_etag(etag);
    request.set_force(force);
    return Call<google::protobuf::Empty>(*sessions_, &v1::SessionService::Stub::DeleteSession, request, options, name)
        .status();
  }

  absl::StatusOr<v1::Snapshot> CreateSnapshot(const v1::CreateSnapshotRequest& request,
                                              const CallOptions& options) override {
    return Call<v1::Snapshot>(*snapshots_, &v1::SnapshotService::Stub::CreateSnapshot, WithRequestId(request), options,
                              request.session());
  }

  absl::StatusOr<v1::Snapshot> GetSnapshot(const std::string& name, const CallOptions& options) override {
    v1::GetSnapshotRequest request;
    request.set_name(name);
    return Call<v1::Snapshot>(*snapshots_, &v1::SnapshotService::Stub::GetSnapshot, request, options);
  }

  absl::StatusOr<std::vector<v1::Snapshot>> ListSnapshots(const CallOptions& options,
                                                          const std::string& owner) override {
    return AllPages<v1::Snapshot, v1::ListSnapshotsRequest, v1::ListSnapshotsResponse>(
        *snapshots_, &v1::SnapshotService::Stub::ListSnapshots, &v1::ListSnapshotsResponse::snapshots, options, owner);
  }

  absl::Status DeleteSnapshot(const std::string& name, const CallOptions& options) override {
    v1::DeleteSnapshotRequest request;
    request.set_name(name);
    return Call<google::protobuf::Empty>(*snapshots_, &v1::SnapshotService::Stub::DeleteSnapshot, request, options)
        .status();
  }

  absl::StatusOr<v1::Snapshot> DownloadSnapshot(const std::string& name, const ByteSink& sink,
                                                const CallOptions& options) override {
    Attempts attempts(peer_, options, "");
    v1::DownloadSnapshotRequest request;
    request.set_name(name);
    while (true) {
      const auto reader = snapshots_->DownloadSnapshot(attempts.Next(), request);
      v1::Snapshot snapshot;
      int64_t received = 0;
      bool begun = false;
      absl::Status sunk;
      for (v1::DownloadSnapshotResponse piece; reader->Read(&piece);) {
        begun = true;
        if (piece.has_snapshot()) snapshot = piece.snapshot();
        received += piece.data().size();
        if (sunk.ok()) sunk = sink(piece.data());
        if (!sunk.ok()) attempts.Cancel();
      }
      absl::Status status = attempts.ToStatus(reader->Finish());
      if (!sunk.ok()) return sunk;
      if (!status.ok() && !begun && attempts.WaitToRetry(status)) continue;
      if (!status.ok()) return status;
      if (received != snapshot.size_bytes()) {
        return absl::DataLossError(absl::StrCat(name, ": ", received, " bytes came, it has ", snapshot.size_bytes()));
      }
      return snapshot;
    }
  }

  absl::StatusOr<v1::Snapshot> UploadSnapshot(const UploadSnapshotOptions& what, const ByteSource& source,
                                              const CallOptions& options) override {
    Attempts attempts(peer_, options, "");
    v1::Snapshot snapshot;
    const auto writer = snapshots_->UploadSnapshot(attempts.Next(), &snapshot);
    v1::UploadSnapshotRequest piece;
    piece.set_snapshot_id(what.snapshot_id);
    piece.set_model(what.model);
    if (what.ttl > absl::ZeroDuration()) {
      piece.mutable_snapshot()->mutable_ttl()->set_seconds(absl::ToInt64Seconds(what.ttl));
      piece.mutable_snapshot()->mutable_ttl()->set_nanos(absl::ToInt64Nanoseconds(what.ttl % absl::Seconds(1)));
    }
    // The first message goes out even when there are no bytes, so that the server gets to say what is wrong with that.
    bool open = true;
    bool first = true;
    absl::Status sourced;
    while (open) {
      absl::StatusOr<std::string> bytes = source();
      if (!bytes.ok()) {
        sourced = bytes.status();
        attempts.Cancel();
        break;
      }
      if (bytes->empty() && !first) break;
      const bool last = bytes->empty();
      for (size_t begin = 0; open && (begin < bytes->size() || first); begin += kPieceBytes) {
        piece.set_data(bytes->substr(begin, kPieceBytes));
        open = writer->Write(piece);  // false: the server has answered already, and Finish tells what
        piece.Clear();
        first = false;
      }
      if (last) break;
    }
    if (open && sourced.ok()) writer->WritesDone();
    const absl::Status status = attempts.ToStatus(writer->Finish());
    if (!sourced.ok()) return sourced;
    if (!status.ok()) return status;
    return snapshot;
  }

  absl::StatusOr<std::vector<v1::Model>> ListModels(const CallOptions& options) override {
    PALIMPSEST_ASSIGN_OR_RETURN(
        const v1::ListModelsResponse response,
        Call<v1::ListModelsResponse>(*models_, &v1::ModelService::Stub::ListModels, v1::ListModelsRequest(), options));
    return std::vector<v1::Model>(response.models().begin(), response.models().end());
  }

  absl::StatusOr<v1::Model> GetModel(const std::string& name, const CallOptions& options) override {
    v1::GetModelRequest request;
    request.set_name(name);
    return Call<v1::Model>(*models_, &v1::ModelService::Stub::GetModel, request, options);
  }

  absl::StatusOr<v1::Model> LoadModel(const std::string& model_id, const std::string& path,
                                      const CallOptions& options) override {
    v1::LoadModelRequest request;
    request.set_model_id(model_id);
    request.set_path(path);
    return Call<v1::Model>(*models_, &v1::ModelService::Stub::LoadModel, request, options);
  }

  absl::Status UnloadModel(const std::string& name, const CallOptions& options) override {
    v1::UnloadModelRequest request;
    request.set_name(name);
    return Call<google::protobuf::Empty>(*models_, &v1::ModelService::Stub::UnloadModel, request, options).status();
  }

  absl::StatusOr<Health> CheckHealth(const std::string& service, const CallOptions& options) override {
    Attempts attempts(peer_, options, "");
    google::protobuf::StringValue request;
    google::protobuf::Int32Value response;
    request.set_value(service);
    // By a queue of its own, not by callback: gRPC 1.51 now and then takes ten seconds to put away its callback
    // threads, and a program that makes no GenerateAsync call should not wait for that when it ends.
    grpc::CompletionQueue queue;
    grpc::Status status;
    const auto call = health_.PrepareUnaryCall(attempts.Next(), "/grpc.health.v1.Health/Check", request, &queue);
    call->StartCall();
    call->Finish(&response, &status, /*tag=*/nullptr);
    void* tag;
    bool ok;
    queue.Next(&tag, &ok);
    queue.Shutdown();
    while (queue.Next(&tag, &ok)) continue;
    if (status.error_code() == grpc::StatusCode::NOT_FOUND) return Health::kServiceUnknown;
    if (!status.ok()) return attempts.ToStatus(status);
    return static_cast<Health>(response.value());
  }

 private:
  template <typename Response, typename Stub, typename Request>
  absl::StatusOr<Response> Call(Stub& stub,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                const std::type_identity_t<Request>& request, const CallOptions& options,
                                const std::string& session = "") const {
    Attempts attempts(peer_, options, session);
    while (true) {
      Response response;
      absl::Status status = attempts.ToStatus((stub.*method)(attempts.Next(), request, &response));
      if (status.ok()) return response;
      if (!attempts.WaitToRetry(status)) return status;
    }
  }

  template <typename Item, typename Request, typename Response, typename Stub>
  absl::StatusOr<std::vector<Item>> AllPages(Stub& stub,
                                             grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                                          Response*),
                                             const google::protobuf::RepeatedPtrField<Item>& (Response::*items)() const,
                                             const CallOptions& options, const std::string& owner) const {
    std::vector<Item> all;
    Request request;
    request.set_page_size(1000);
    request.set_owner(owner);
    do {
      PALIMPSEST_ASSIGN_OR_RETURN(const Response response, Call<Response>(stub, method, request, options));
      all.insert(all.end(), (response.*items)().begin(), (response.*items)().end());
      request.set_page_token(response.next_page_token());
    } while (!request.page_token().empty());
    return all;
  }

  const Peer peer_;
  const std::unique_ptr<v1::GenerationService::Stub> generation_;
  const std::unique_ptr<v1::SessionService::Stub> sessions_;
  const std::unique_ptr<v1::SnapshotService::Stub> snapshots_;
  const std::unique_ptr<v1::ModelService::Stub> models_;
  // The messages of grpc.health.v1 have the bytes of these wrappers (one string field, one enum field, both number 1);
  // a copy of its proto here would clash with any other in the same binary.
  grpc::TemplatedGenericStub<google::protobuf::StringValue, google::protobuf::Int32Value> health_;
};

}  // namespace

std::string_view HealthName(Health health) {
  switch (health) {
    case Health::kServing:
      return "SERVING";
    case Health::kNotServing:
      return "NOT_SERVING";
    case Health::kServiceUnknown:
      return "SERVICE_UNKNOWN";
    case Health::kUnknown:
      break;
  }
  return "UNKNOWN";
}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const std::string& target, const ConnectOptions& options) {
  PALIMPSEST_ASSIGN_OR_RETURN(std::shared_ptr<grpc::ChannelCredentials> credentials, Credentials(options));
  PALIMPSEST_RETURN_IF_ERROR(CheckTokenOf(target, options));
  const Peer peer = {.authorization = options.token.empty() ? "" : absl::StrCat("Bearer ", options.token),
                     .proxy = ProxyOnTheWay(target)};
  auto client =
      std::make_unique<GrpcClient>(grpc::CreateCustomChannel(target, credentials, Arguments(target, options)), peer);
  if (options.connect_timeout > absl::ZeroDuration()) {
    // Any answer will do, also "no such method": it proves the connection, and a failure names its cause.
    const absl::Status answer = client->CheckHealth("", {.timeout = options.connect_timeout}).status();
    if (absl::IsUnavailable(answer) || absl::IsDeadlineExceeded(answer)) {
      const bool names_proxy = absl::IsUnavailable(answer) || peer.proxy.empty();
      return absl::UnavailableError(absl::StrCat("cannot reach ", target, ": ", answer.message(),
                                                 names_proxy ? "" : absl::StrCat("\n  ", peer.proxy)));
    }
  }
  return client;
}

}  // namespace palimpsest::client
