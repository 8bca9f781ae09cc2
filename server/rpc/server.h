// A whole server in one object: models, sessions, services, health, metrics. main.cc wires flags to it; tests start it
// in their own process on port 0.
//
// Its life: starting (listens, health NOT_SERVING, calls get UNAVAILABLE) -> ready (SERVING) -> draining (NOT_SERVING,
// new calls get UNAVAILABLE) -> stopped.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "server/model/model.h"
#include "server/models/backend.h"
#include "server/models/repository.h"
#include "server/rpc/connections.h"
#include "server/rpc/limits.h"
#include "server/session/session_store.h"

namespace palimpsest {

struct ServerOptions {
  struct ModelSource {
    std::string id;
    std::string folder;
  };
  // Loaded at start, in this order.
  std::vector<ModelSource> models;
  // Folder under which LoadModel finds checkpoints. Empty: LoadModel is refused.
  std::string model_root;
  // Watched for models; server/models/repository.h.
  ModelRepositoryOptions repository;

  std::string host = "127.0.0.1";
  int32_t port = 0;  // 0: any that is free; -1: no TCP
  // Path of a unix socket to listen on as well; empty: none.
  std::string unix_socket;
  int32_t unix_socket_mode = 0600;
  // Addresses that others can reach may be bound although nothing says who may call.
  bool insecure_public = false;
  ConnectionLimits connections;

  // Address of /metrics, "host:port"; port 0: any that is free. Empty: none.
  std::string metrics_address;
  // Whether /metrics has TLS: kAuto: as the server's own port, client certificates included; kOn: with the server's
  // certificate, asking clients for none.
  enum class MetricsTls { kAuto, kOn, kOff };
  MetricsTls metrics_tls = MetricsTls::kAuto;
  // Who may read /metrics, by the request's Authorization header. Null: whoever reaches it.
  std::function<bool(std::string_view authorization)> authorize_metrics;

  // PEM files. Certificate and key: TLS. Client authority as well: clients must show a certificate that it signed.
  std::string tls_certificate_file;
  std::string tls_key_file;
  std::string tls_client_ca_file;

  // Who may call. Whether callers show certificates follows from the client authority.
  std::string auth_tokens_file;
  std::vector<std::string> admin_identities;

  EngineOptions engine;  // of every model
  ModelOptions model;    // of every model
  BackendOptions backend;
  SessionStoreOptions sessions;
  Limits limits;

  // Called once the ports are bound, before the models are loaded.
  std::function<void(int32_t port, int32_t metrics_port)> on_listening;
};

// Thread-safe.
class Server {
 public:
  // Returns once all models are warm and the server is ready. INVALID_ARGUMENT: an option, with its name. UNAVAILABLE:
  // a port cannot be bound. RESOURCE_EXHAUSTED: too few threads or descriptors can be had. What Model::Load,
  // Tokenizer::Load or Engine::Start said, with the model's name in front.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options);
  // Drains with no grace.
  ~Server();

  // -1: no TCP.
  int32_t port() const;
  // 0 when there is none.
  int32_t metrics_port() const;

  // Health says NOT_SERVING at once. Calls are still accepted for `lame_duck`, so that those who watch health go
  // elsewhere before any is refused. Then takes no more, lets those that run end for `grace`, ends the rest with
  // UNAVAILABLE, and stops. Idempotent; a second call waits for the first.
  void Drain(absl::Duration grace, absl::Duration lame_duck = absl::ZeroDuration());

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The version and, where the build knew it, the commit: "0.1.0 (c74ac02)".
std::string ServerVersion();

}  // namespace palimpsest
