#include "server/rpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "server/engine/available_processors.h"
#include "server/metrics/metrics.h"
#include "server/rpc/call.h"
#include "server/rpc/checks.h"
#include "server/rpc/log.h"
#include "server/rpc/services.h"

namespace palimpsest {
namespace {

// The names that health tells of, besides "", the whole server.
constexpr const char* kServiceNames[] = {"palimpsest.v1.GenerationService", "palimpsest.v1.SessionService",
                                         "palimpsest.v1.SnapshotService", "palimpsest.v1.ModelService"};

// How often sessions and snapshots that nobody asks for are looked at.
constexpr absl::Duration kSweepEvery = absl::Seconds(1);
// For the last messages to leave, after the last call has ended.
constexpr absl::Duration kFlush = absl::Milliseconds(500);
// Nobody has called for so long: the callers have gone elsewhere.
constexpr absl::Duration kQuiet = absl::Milliseconds(200);

absl::Status CheckOptions(const ServerOptions& options) {
  const auto wrong = [](absl::string_view option, auto value, absl::string_view accepted) {
    return absl::InvalidArgumentError(absl::StrCat("--", option, " is ", value, "; accepted: ", accepted));
  };
  if (options.port < 0 || options.port > 65535) return wrong("port", options.port, "0 (any free one) to 65535");
  if (options.engine.threads < 0 || options.engine.threads > 1024) {
    return wrong("threads", options.engine.threads, "0 (one per processor) to 1024");
  }
  const struct {
    const char* name;
    int64_t value;
    int64_t least;
    int64_t most;
  } numbers[] = {
      {"slots", options.engine.slots, 0, 65536},
      {"max_queue", options.engine.max_queue, 1, 1 << 20},
      {"prefill_budget", options.engine.prefill_budget, 1, 1 << 20},
      {"max_undelivered_tokens", options.engine.max_undelivered_tokens, 1, 1 << 20},
      {"max_sessions", options.sessions.max_sessions, 0, int64_t{1} << 40},
      {"max_snapshots", options.sessions.max_snapshots, 0, int64_t{1} << 40},
      {"max_message_bytes", options.limits.max_message_bytes, 4096, (int64_t{1} << 31) - 1},
      {"max_prompt_tokens", options.limits.max_prompt_tokens, 1, int64_t{1} << 31},
      {"max_prompt_bytes", options.limits.max_prompt_bytes, 1, int64_t{1} << 31},
      {"max_tokens", options.limits.max_tokens, 1, (int64_t{1} << 31) - 1},
      {"default_max_tokens", options.limits.default_max_tokens, 0, options.limits.max_tokens},
      {"max_scored_values", options.limits.max_scored_values, 1, int64_t{1} << 40},
      {"max_stop_strings", options.limits.max_stop_strings, 0, 1024},
      {"max_streams_per_connection", options.limits.max_streams_per_connection, 1, 1 << 20},
      {"max_transfers", options.limits.max_transfers, 1, 1 << 20},
      {"max_models", options.limits.max_models, 1, 1 << 20},
      {"max_rpc_memory_bytes", options.limits.max_rpc_memory_bytes, 1 << 20, int64_t{1} << 50},
      {"max_reply_bytes", options.limits.max_reply_bytes, 1 << 20, int64_t{1} << 50},
      {"max_request_ids", options.limits.max_request_ids, 1, int64_t{1} << 31},
  };
  for (const auto& number : numbers) {
    if (number.value < number.least || number.value > number.most) {
      return wrong(number.name, number.value, absl::StrCat(number.least, " to ", number.most));
    }
  }
  if (options.limits.max_stall < absl::Milliseconds(100)) {
    return wrong("max_stall", absl::FormatDuration(options.limits.max_stall), "100ms or more, or inf");
  }
  if (options.sessions.default_ttl < absl::Seconds(1)) {
    return wrong("session_ttl", absl::FormatDuration(options.sessions.default_ttl), "1s or more, or inf");
  }
  if (options.repository.poll < absl::ZeroDuration() ||
      (options.repository.poll > absl::ZeroDuration() && options.repository.poll < absl::Milliseconds(100))) {
    return wrong("model_repository_poll", absl::FormatDuration(options.repository.poll), "0, or 100ms or more");
  }
  if (options.repository.retire_after < absl::ZeroDuration()) {
    return wrong("model_repository_retire_after", absl::FormatDuration(options.repository.retire_after), "0 or more");
  }
  for (const ServerOptions::ModelSource& model : options.models) {
    if (!IsId(model.id, /*dots=*/true)) {
      return wrong("model", Quoted(absl::StrCat(model.id, "=", model.folder)),
                   "NAME=FOLDER with a name of 1 to 63 characters [a-z0-9.-], beginning with a letter");
    }
  }
  if (options.tls_certificate_file.empty() != options.tls_key_file.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(options.tls_key_file.empty()
                                                       ? "--tls_cert is given without --tls_key"
                                                       : "--tls_key is given without --tls_cert",
                                                   "; accepted: both, or neither"));
  }
  if (!options.tls_client_ca_file.empty() && options.tls_certificate_file.empty()) {
    return absl::InvalidArgumentError(
        "--tls_client_ca is given without --tls_cert and --tls_key; accepted: all three, or without it");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadFile(absl::string_view option, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file || text.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", option, " is ", path, ", which cannot be read, or is empty; accepted: a PEM file"));
  }
  return text;
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeCredentials(const ServerOptions& options) {
  if (options.tls_certificate_file.empty()) return grpc::InsecureServerCredentials();
  absl::StatusOr<std::string> certificate = ReadFile("tls_cert", options.tls_certificate_file);
  if (!certificate.ok()) return certificate.status();
  absl::StatusOr<std::string> key = ReadFile("tls_key", options.tls_key_file);
  if (!key.ok()) return key.status();
  grpc::SslServerCredentialsOptions ssl;
  ssl.pem_key_cert_pairs.push_back({*key, *certificate});
  if (!options.tls_client_ca_file.empty()) {
    absl::StatusOr<std::string> authority = ReadFile("tls_client_ca", options.tls_client_ca_file);
    if (!authority.ok()) return authority.status();
    ssl.pem_root_certs = *authority;
    ssl.client_certificate_request = GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
  }
  return grpc::SslServerCredentials(ssl);
}

EngineOptions Resolved(EngineOptions options) {
  if (options.threads == 0) options.threads = AvailableProcessors();
  return options;
}

}  // namespace

std::string ServerVersion() {
  const BuildInfo build = GetBuildInfo();
  return absl::StrCat(build.version, " (", build.commit, ")");
}

struct Server::Impl {
  explicit Impl(const ServerOptions& set)
      : options(set),
        core(set.limits, set.sessions,
             {Resolved(set.engine), set.model, set.model_root, set.limits.max_models, set.backend}),
        repository(set.repository, &core.models, &core.metrics) {
    core.metrics.SetSessions([this] { return core.sessions.counts_by_model(); }, set.sessions);
    core.metrics.SetReplyBytes([this] { return core.replies.bytes(); }, set.limits.max_reply_bytes);
    core.metrics.SetModels([this] {
      std::map<std::string, bool> ready;
      for (const ModelInfo& model : core.models.List()) ready[model.id] = model.condition == ModelCondition::kReady;
      return ready;
    });
  }
  ~Impl() {
    if (sweeper.joinable()) {
      stop_sweeping.Notify();
      sweeper.join();
    }
    // A scrape may come at any time, and what these ask is gone before the metrics are.
    core.metrics.SetModels(nullptr);
    core.metrics.SetReplyBytes(nullptr, 0);
    core.metrics.SetSessions(nullptr, {});
  }

  absl::Status Listen();
  absl::Status LoadModels();
  void SetHealth(bool serving);
  void Sweep() {
    while (!stop_sweeping.WaitForNotificationWithTimeout(kSweepEvery)) {
      core.sessions.DropExpired(absl::Now());
      core.models.DropRetired(absl::Now());
      core.metrics.CountStalls(core.stalls.Cut(absl::Now()));
      // A failed device stays so: balancers go elsewhere, and who watches over this process starts another.
      if (!device_failed && core.models.AnyDeviceFailed()) {
        device_failed = true;
        LogEvent("a device failed", {{"cure", "restart the server"}});
        SetHealth(false);
      }
    }
  }

  const ServerOptions options;
  ServerCore core;
  ModelRepository repository;
  bool device_failed = false;  // the sweeper's
  std::vector<std::unique_ptr<grpc::Service>> services;
  std::unique_ptr<grpc::Server> server;  // constant after Listen
  int32_t port = 0;
  int32_t metrics_port = 0;
  absl::Notification stop_sweeping;
  std::thread sweeper;
  absl::Mutex drain_mu;  // held for the whole of a drain
  bool drained ABSL_GUARDED_BY(drain_mu) = false;
};

absl::Status Server::Impl::Listen() {
  if (!options.metrics_address.empty()) {
    absl::StatusOr<int32_t> exposed = core.metrics.Expose(options.metrics_address);
    if (absl::IsInvalidArgument(exposed.status())) {
      return absl::InvalidArgumentError(absl::StrCat("--", exposed.status().message()));
    }
    if (!exposed.ok()) return exposed.status();
    metrics_port = *exposed;
  }
  absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> credentials = MakeCredentials(options);
  if (!credentials.ok()) return credentials.status();

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  const bool bare_v6 = absl::StrContains(options.host, ':') && !absl::StartsWith(options.host, "[");
  const std::string address =
      absl::StrCat(bare_v6 ? absl::StrCat("[", options.host, "]") : options.host, ":", options.port);
  builder.AddListeningPort(address, *credentials, &port);
  // A port in use is an error, not something to share with another server by chance.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.limits.max_message_bytes));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.limits.max_streams_per_connection);
  // Streams that wait for a slow model are silent; both ends ping so that what stands between keeps them, and so that a
  // caller that has vanished is noticed and its slot freed.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  grpc::ResourceQuota quota("palimpsest");
  quota.Resize(static_cast<size_t>(options.limits.max_rpc_memory_bytes));
  builder.SetResourceQuota(quota);

  services.push_back(MakeGenerationService(core));
  services.push_back(MakeSessionService(core));
  services.push_back(MakeSnapshotService(core));
  services.push_back(MakeModelService(core));
  for (const auto& service : services) builder.RegisterService(service.get());
  server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat(
        "port ", address, " cannot be bound: in use, or not an address of this machine",
        options.tls_certificate_file.empty() ? "" : ", or the TLS files do not hold a key and its certificate"));
  }
  SetHealth(false);
  return absl::OkStatus();
}

absl::Status Server::Impl::LoadModels() {
  for (const ServerOptions::ModelSource& source : options.models) {
    const absl::Time begin = absl::Now();
    absl::StatusOr<ModelInfo> model = core.models.Load(source.id, source.folder);
    if (!model.ok()) return model.status();
    LogModelLoaded(*model, absl::Now() - begin);
  }
  return repository.Start();
}

void Server::Impl::SetHealth(bool serving) {
  grpc::HealthCheckServiceInterface* health = server->GetHealthCheckService();
  health->SetServingStatus("", serving);
  for (const char* name : kServiceNames) health->SetServingStatus(name, serving);
  core.metrics.SetReady(serving);
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  auto impl = std::make_unique<Impl>(options);
  Impl* const self = impl.get();
  const absl::Status listening = impl->Listen();
  if (impl->server == nullptr) return listening;
  // From here on the destructor drains, whatever is still to fail.
  std::unique_ptr<Server> server(new Server(std::move(impl)));
  if (!listening.ok()) return listening;
  if (options.on_listening) options.on_listening(self->port, self->metrics_port);
  if (absl::Status status = self->LoadModels(); !status.ok()) return status;
  self->core.door.Open();
  self->SetHealth(true);
  self->sweeper = std::thread([self] { self->Sweep(); });  // last: it may take the health back
  return server;
}

Server::~Server() { Drain(absl::ZeroDuration()); }

int32_t Server::port() const { return impl_->port; }
int32_t Server::metrics_port() const { return impl_->metrics_port; }

void Server::Drain(absl::Duration grace, absl::Duration lame_duck) {
  absl::MutexLock lock(&impl_->drain_mu);
  if (std::exchange(impl_->drained, true)) return;
  impl_->SetHealth(false);
  impl_->repository.Stop();
  absl::SleepFor(lame_duck);
  const absl::Time deadline = absl::Now() + grace;
  impl_->core.door.Shut();
  impl_->core.models.Drain(deadline);
  // What is left now are last messages on their way, uploads, downloads, and readers too slow for the grace.
  const absl::Time last = std::max(deadline, absl::Now() + kFlush);
  const bool all_ended = impl_->core.door.AwaitEmpty(last);
  if (!all_ended) LogWarning("calls are left at the end of the grace period; they are cut off");
  // From Shutdown on gRPC answers a new call with CANCELLED, which no caller tries again elsewhere; so while calls
  // still come they are refused with UNAVAILABLE.
  impl_->core.door.AwaitQuiet(kQuiet, last);
  impl_->server->Shutdown(absl::ToChronoTime(absl::Now() + kFlush));
}

}  // namespace palimpsest
