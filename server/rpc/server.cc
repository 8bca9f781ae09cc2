#include "server/rpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/host/available_processors.h"
#include "base/host/threads.h"
#include "base/log.h"
#include "base/quote.h"
#include "base/resource_id.h"
#include "base/status_macros.h"
#include "base/steady_clock.h"
#include "grpc/health/v1/health.pb.h"
#include "server/auth/authenticator.h"
#include "server/errors/errors.h"
#include "server/metrics/metrics.h"
#include "server/metrics/page_server.h"
#include "server/metrics/tls.h"
#include "server/rpc/call.h"
#include "server/rpc/checks.h"
#include "server/rpc/log.h"
#include "server/rpc/services.h"

namespace palimpsest {
namespace {

// The names that health tells of besides kModelServiceName; "" is the whole server.
constexpr const char* kServiceNames[] = {"", "palimpsest.v1.GenerationService", "palimpsest.v1.SessionService",
                                         "palimpsest.v1.SnapshotService"};
constexpr char kModelServiceName[] = "palimpsest.v1.ModelService";

// How often sessions and snapshots that nobody asks for are looked at.
constexpr absl::Duration kSweepEvery = absl::Seconds(1);
constexpr int64_t kMaxPemBytes = 1 << 20;
// For the last messages to leave, after the last call has ended.
constexpr absl::Duration kFlush = absl::Milliseconds(500);
// Nobody has called for so long: the callers have gone elsewhere.
constexpr absl::Duration kQuiet = absl::Milliseconds(200);
// Threads beside those of the models: on two processors 22 were seen under load. gRPC's pools grow with the processors.
constexpr int32_t kOwnThreads = 16;
constexpr int32_t kThreadsPerProcessor = 3;

absl::Status CheckOptions(const ServerOptions& options) {
  const auto wrong = [](absl::string_view option, auto value, absl::string_view accepted) {
    return absl::InvalidArgumentError(absl::StrCat("--", option, " is ", value, "; accepted: ", accepted));
  };
  if (options.port < -1 || options.port > 65535) {
    return wrong("port", options.port, "0 (any free one) to 65535, or -1: no TCP");
  }
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
      {"prefill_budget", options.engine.prefill_budget, 0, 1 << 20},
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
      {"max_rpc_memory_bytes", options.limits.max_rpc_memory_bytes, 0, int64_t{1} << 50},
      {"max_reply_bytes", options.limits.max_reply_bytes, 0, int64_t{1} << 50},
      {"max_request_ids", options.limits.max_request_ids, 1, int64_t{1} << 31},
      {"max_request_id_bytes", options.limits.max_request_id_bytes, 0, int64_t{1} << 50},
      {"max_state_bytes", options.sessions.max_state_bytes, 0, int64_t{1} << 50},
      {"max_connections", options.connections.max_connections, 0, 1 << 20},
      {"max_connections_per_peer", options.connections.max_connections_per_peer, 0, 1 << 20},
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
  const struct {
    const char* name;
    double value;
  } rates[] = {{"max_resets_per_second", options.connections.max_resets_per_second},
               {"max_calls_per_second", options.connections.max_calls_per_second}};
  for (const auto& rate : rates) {
    if (!(rate.value >= 0 && rate.value <= 1e9)) return wrong(rate.name, rate.value, "0 (not bounded) to 1e9");
  }
  if (options.connections.max_idle < absl::Seconds(1)) {
    return wrong("max_connection_idle", absl::FormatDuration(options.connections.max_idle), "1s or more, or inf");
  }
  if (options.connections.handshake_timeout < absl::Milliseconds(100)) {
    return wrong("handshake_timeout", absl::FormatDuration(options.connections.handshake_timeout), "100ms or more");
  }
  for (const ServerOptions::ModelSource& model : options.models) {
    if (!IsResourceId(model.id, /*dots=*/true)) {
      return wrong("model", DoubleQuoted(absl::StrCat(model.id, "=", model.folder)),
                   "NAME=FOLDER with a name of 1 to 63 characters [a-z0-9.-], beginning with a letter");
    }
  }
  if (options.tls_certificate_file.empty() != options.tls_key_file.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(options.tls_key_file.empty()
                                                       ? "--tls_cert is given without --tls_key"
                                                       : "--tls_key is given without --tls_cert",
                                                   "; accepted: both, or neither"));
  }
  if (options.metrics_tls == ServerOptions::MetricsTls::kOn && options.tls_certificate_file.empty()) {
    return absl::InvalidArgumentError(
        "--metrics_tls is on without --tls_cert and --tls_key; accepted: all three, or --metrics_tls=auto");
  }
  if (!options.tls_client_ca_file.empty() && options.tls_certificate_file.empty()) {
    return absl::InvalidArgumentError(
        "--tls_client_ca is given without --tls_cert and --tls_key; accepted: all three, or without it");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadPem(absl::string_view option, const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path, kMaxPemBytes);
  absl::string_view problem = text.status().message();
  absl::ConsumePrefix(&problem, absl::StrCat(path, ": "));
  if (text.ok() && text->empty()) problem = "it is empty";
  if (problem.empty()) return text;
  return absl::InvalidArgumentError(
      absl::StrCat("--", option, " is ", path, ", which cannot be read: ", problem, "; accepted: a PEM file"));
}

// The texts of the files that the options name; those that they do not name are empty.
struct Tls {
  std::string certificate, key, client_authority;
};

absl::StatusOr<Tls> ReadTls(const ServerOptions& options) {
  Tls tls;
  const struct {
    const char* option;
    const std::string& path;
    std::string& text;
  } files[] = {{"tls_cert", options.tls_certificate_file, tls.certificate},
               {"tls_key", options.tls_key_file, tls.key},
               {"tls_client_ca", options.tls_client_ca_file, tls.client_authority}};
  for (const auto& file : files) {
    if (file.path.empty()) continue;
    PALIMPSEST_ASSIGN_OR_RETURN(file.text, ReadPem(file.option, file.path));
  }
  if (!tls.certificate.empty()) {
    PALIMPSEST_RETURN_IF_ERROR(MakeTlsContext(tls.certificate, tls.key, tls.client_authority).status());
  }
  return tls;
}

std::shared_ptr<grpc::ServerCredentials> MakeCredentials(const Tls& tls) {
  if (tls.certificate.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions ssl;
  ssl.pem_key_cert_pairs.push_back({tls.key, tls.certificate});
  if (!tls.client_authority.empty()) {
    ssl.pem_root_certs = tls.client_authority;
    ssl.client_certificate_request = GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
  }
  return grpc::SslServerCredentials(ssl);
}

PageServerOptions MetricsPage(const ServerOptions& options, const Tls& tls) {
  PageServerOptions page;
  page.address = options.metrics_address;
  page.authorize = options.authorize_metrics;
  if (options.metrics_tls == ServerOptions::MetricsTls::kOff) return page;
  page.certificate = tls.certificate;
  page.key = tls.key;
  if (options.metrics_tls == ServerOptions::MetricsTls::kAuto) page.client_authority = tls.client_authority;
  return page;
}

// Empty where something says who may call, or that anybody may.
std::string WhyLoopbackOnly(const ServerOptions& options) {
  if (options.insecure_public || !options.tls_client_ca_file.empty() || !options.auth_tokens_file.empty()) return "";
  return "nothing says who may call; accepted: a loopback address, or --auth_tokens_file (callers have tokens), or "
         "--tls_client_ca (they show certificates), or --insecure_public (anybody may call)";
}

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host == "[::1]" || absl::StartsWith(host, "127.") ||
         absl::StartsWith(host, "unix:");
}

EngineOptions Resolved(EngineOptions options) {
  if (options.threads == 0) options.threads = AvailableProcessors();
  return options;
}

// Those of gRPC, of the metrics page and of this room, measured, and those of the models' arithmetic.
int32_t ThreadsNeeded(const ServerOptions& options) {
  const int32_t processors = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
  const int32_t models = std::max<int32_t>(1, static_cast<int32_t>(options.models.size()));
  return kOwnThreads + ServerCore::kWorkThreads + kThreadsPerProcessor * processors +
         models * (Resolved(options.engine).threads + 1);
}

}  // namespace

std::string ServerVersion() {
  const BuildInfo build = GetBuildInfo();
  return absl::StrCat(build.version, " (", build.commit, ")");
}

struct Server::Impl {
  Impl(const ServerOptions& set, std::unique_ptr<Authenticator> authenticator)
      : options(set),
        core(std::move(authenticator), set.limits, set.sessions,
             {Resolved(set.engine), set.model, set.model_root, set.limits.max_models, set.backend},
             set.connections.max_calls_per_second),
        repository(set.repository, &core.models, &core.metrics) {
    core.metrics.SetSessions([this] { return core.sessions.counts_by_model(); }, [this] { return UseByLabel(); });
    core.metrics.SetRequestIds([this] { return core.requests.counts(); });
    core.metrics.SetReplyBytes([this] {
      const ReplyBudget::Counts counts = core.replies.counts();
      return std::pair(counts.bytes, counts.max_bytes);
    });
    core.models.SetListener([this] {
      absl::MutexLock lock(&health_mu);
      UpdateHealth();
    });
    core.metrics.SetModels([this] {
      std::map<std::string, bool> ready;
      for (const ModelInfo& model : core.models.List()) ready[model.id] = model.condition == ModelCondition::kReady;
      return ready;
    });
  }
  ~Impl() {
    if (sweeper.joinable()) {
      {
        std::lock_guard<std::mutex> lock(sweep_mu);
        stop_sweeping = true;
      }
      sweep_stopped.notify_one();
      sweeper.join();
    }
    {
      absl::MutexLock lock(&health_mu);
      health = nullptr;
    }
    // A scrape may come at any time, and what these ask is gone before the metrics are.
    core.metrics.SetModels(nullptr);
    core.metrics.SetReplyBytes(nullptr);
    core.metrics.SetSessions(nullptr, nullptr);
    core.metrics.SetRequestIds(nullptr);
  }

  absl::Status Listen();
  absl::Status LoadModels();
  // What is parked, with the owners as metrics name them.
  SessionStore::Use UseByLabel() const {
    SessionStore::Use use = core.sessions.use();
    std::map<std::string, ParkedUse> by_label;
    for (const auto& [owner, parked] : use.by_owner) {
      ParkedUse& sum = by_label[core.authenticator->LabelOf(owner)];
      sum.sessions += parked.sessions;
      sum.snapshots += parked.snapshots;
      sum.state_bytes += parked.state_bytes;
    }
    use.by_owner = std::move(by_label);
    return use;
  }
  // What health depends on, besides the models. SERVING: all of it is so, and there is a model to answer with; that of
  // ModelService, which can load one, needs none.
  struct Conditions {
    bool open = false;
    bool devices_work = true;
    bool accepting = true;
  };
  void Set(bool Conditions::*condition, bool value) ABSL_LOCKS_EXCLUDED(health_mu) {
    absl::MutexLock lock(&health_mu);
    conditions.*condition = value;
    UpdateHealth();
  }
  bool Is(bool Conditions::*condition) ABSL_LOCKS_EXCLUDED(health_mu) {
    absl::MutexLock lock(&health_mu);
    return conditions.*condition;
  }
  void WatchListener();
  // A file of owners that has changed counts from now on, if it is right.
  void RereadOwners() {
    const std::optional<absl::Status> read = core.authenticator->Reread();
    if (!read.has_value()) return;
    core.metrics.CountOwnersFileLoad(CodeName(read->code()));
    if (read->ok()) return LogEvent("owners read again", {{"file", options.auth_tokens_file}});
    LogWarning("the file of owners is wrong; what it said before goes on", {{"error", std::string(read->message())}});
  }
  void UpdateHealth() ABSL_EXCLUSIVE_LOCKS_REQUIRED(health_mu);
  void Sweep() {
    std::unique_lock<std::mutex> lock(sweep_mu);
    while (!sweep_stopped.wait_for(lock, absl::ToChronoMilliseconds(kSweepEvery), [this] { return stop_sweeping; })) {
      RereadOwners();
      core.sessions.DropExpired(SteadyNow());
      core.models.DropRetired(SteadyNow());
      core.metrics.CountStalls(core.stalls.Cut(SteadyNow()));
      // A failed device stays so: balancers go elsewhere, and who watches over this process starts another.
      if (Is(&Conditions::devices_work) && core.models.AnyDeviceFailed()) {
        LogEvent("a device failed", {{"cure", "restart the server"}});
        Set(&Conditions::devices_work, false);
      }
      WatchListener();
    }
  }

  const ServerOptions options;
  // Before the core: a model that is still being loaded reports while the core goes.
  absl::Mutex health_mu;  // so that what is said last is what is so
  Conditions conditions ABSL_GUARDED_BY(health_mu);
  grpc::HealthCheckServiceInterface* health ABSL_GUARDED_BY(health_mu) = nullptr;  // while the server is there
  ServerCore core;
  ModelRepository repository;
  std::vector<std::unique_ptr<grpc::Service>> services;
  std::unique_ptr<Connections> connections;  // constant after Listen, and so is the server
  std::unique_ptr<grpc::Server> server;
  int32_t metrics_port = 0;
  // The standard library's waits are on the steady clock; absl's would last for as long as the wall clock is set back.
  std::mutex sweep_mu;
  std::condition_variable sweep_stopped;
  bool stop_sweeping = false;
  std::thread sweeper;
  absl::Mutex drain_mu;  // held for the whole of a drain
  bool drained ABSL_GUARDED_BY(drain_mu) = false;
};

absl::Status Server::Impl::Listen() {
  PALIMPSEST_ASSIGN_OR_RETURN(const Tls tls, ReadTls(options));
  if (!options.metrics_address.empty()) {
    PageServerOptions page = MetricsPage(options, tls);
    if (page.authorize == nullptr && !options.auth_tokens_file.empty()) {
      page.authorize = [this](std::string_view authorization) {
        return core.authenticator->MayReadMetrics(authorization);
      };
    }
    PALIMPSEST_ASSIGN_OR_RETURN(metrics_port, core.metrics.Expose(page));
  }

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  // gRPC lists its health service without knowing its messages; with this they are linked, and reflection finds them.
  (void)grpc::health::v1::HealthCheckRequest::descriptor();
  grpc::ServerBuilder builder;
  ListenerOptions where;
  where.host = options.host;
  where.port = options.port;
  where.why_loopback_only = WhyLoopbackOnly(options);
  where.unix_socket = options.unix_socket;
  where.unix_socket_mode = options.unix_socket_mode;
  PALIMPSEST_ASSIGN_OR_RETURN(connections,
                              Connections::Bind(where, options.connections, options.limits.max_message_bytes,
                                                options.limits.max_streams_per_connection, &core.metrics));
  connections->AddTo(builder, MakeCredentials(tls));
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.limits.max_message_bytes));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.limits.max_streams_per_connection);
  // Streams that wait for a slow model are silent; both ends ping so that what stands between keeps them, and so that a
  // caller that has vanished is noticed and its slot freed.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.SetResourceQuota(core.memory.quota());

  services.push_back(MakeGenerationService(core));
  services.push_back(MakeSessionService(core));
  services.push_back(MakeSnapshotService(core));
  services.push_back(MakeModelService(core));
  for (const auto& service : services) builder.RegisterService(service.get());
  QuietLibraries quiet;
  server = builder.BuildAndStart();
  if (server == nullptr) {
    quiet.Drop();
    return absl::UnavailableError(options.tls_certificate_file.empty()
                                      ? "the gRPC server cannot be started"
                                      : "the gRPC server cannot be started: the TLS files do not hold a key and its "
                                        "certificate");
  }
  {
    absl::MutexLock lock(&health_mu);
    health = server->GetHealthCheckService();
    UpdateHealth();
  }
  return connections->Start();
}

absl::Status Server::Impl::LoadModels() {
  for (const ServerOptions::ModelSource& source : options.models) {
    const absl::Time begin = SteadyNow();
    PALIMPSEST_ASSIGN_OR_RETURN(ModelInfo model, core.models.Load(source.id, source.folder, ModelOrigin::kFlag));
    LogModelLoaded(model, SteadyNow() - begin);
  }
  return repository.Start();
}

void Server::Impl::UpdateHealth() {
  if (health == nullptr) return;
  const bool up = conditions.open && conditions.devices_work && conditions.accepting;
  const bool serving = up && core.models.AnyReady();
  for (const char* name : kServiceNames) health->SetServingStatus(name, serving);
  health->SetServingStatus(kModelServiceName, conditions.open);
  core.metrics.SetReady(serving);
}

void Server::Impl::WatchListener() {
  const bool now = connections->accepting();
  if (now == Is(&Conditions::accepting)) return;
  if (now) {
    LogEvent("connections are accepted again");
  } else {
    LogWarning("connections are not accepted", {{"cure", "raise the limit of descriptors, or restart the server"}});
  }
  core.metrics.SetAccepting(now);
  Set(&Conditions::accepting, now);
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  PALIMPSEST_RETURN_IF_ERROR(CheckOptions(options));
  PALIMPSEST_RETURN_IF_ERROR(CheckThreads(ThreadsNeeded(options)));
  PALIMPSEST_ASSIGN_OR_RETURN(std::unique_ptr<Authenticator> authenticator,
                              Authenticator::Make({.tokens_file = options.auth_tokens_file,
                                                   .certificates = !options.tls_client_ca_file.empty(),
                                                   .admin_identities = options.admin_identities}));
  auto impl = std::make_unique<Impl>(options, std::move(authenticator));
  Impl* const self = impl.get();
  PALIMPSEST_RETURN_IF_ERROR(self->core.memory.Begin());
  const absl::Status listening = impl->Listen();
  if (impl->server == nullptr) return listening;
  // From here on the destructor drains, whatever is still to fail.
  std::unique_ptr<Server> server(new Server(std::move(impl)));
  if (!listening.ok()) return listening;
  if (options.on_listening) options.on_listening(self->connections->port(), self->metrics_port);
  if (!options.auth_tokens_file.empty() && options.tls_certificate_file.empty() && !IsLoopback(options.host)) {
    LogWarning("tokens come over plain text; anybody on the way can read them", {{"cure", "--tls_cert and --tls_key"}});
  }
  PALIMPSEST_RETURN_IF_ERROR(self->LoadModels());
  self->core.door.Open();
  self->Set(&Impl::Conditions::open, true);
  absl::StatusOr<std::thread> sweeper = StartThread([self] { self->Sweep(); });  // last: it may take the health back
  if (!sweeper.ok()) return sweeper.status();
  self->sweeper = *std::move(sweeper);
  return server;
}

Server::~Server() { Drain(absl::ZeroDuration()); }

int32_t Server::port() const { return impl_->connections->port(); }
int32_t Server::metrics_port() const { return impl_->metrics_port; }

void Server::Drain(absl::Duration grace, absl::Duration lame_duck) {
  absl::MutexLock lock(&impl_->drain_mu);
  if (std::exchange(impl_->drained, true)) return;
  impl_->Set(&Impl::Conditions::open, false);
  impl_->repository.Stop();
  absl::SleepFor(lame_duck);
  const absl::Time deadline = SteadyNow() + grace;
  impl_->core.door.Shut();
  impl_->core.models.Drain(deadline);
  // What is left now are last messages on their way, uploads, downloads, and readers too slow for the grace.
  const absl::Time last = std::max(deadline, SteadyNow() + kFlush);
  const bool all_ended = impl_->core.door.AwaitEmpty(last);
  if (!all_ended) LogWarning("calls are left at the end of the grace period; they are cut off");
  // From Shutdown on gRPC answers a new call with CANCELLED, which no caller tries again elsewhere; so while calls
  // still come they are refused with UNAVAILABLE.
  impl_->core.door.AwaitQuiet(kQuiet, last);
  impl_->connections->Stop();
  impl_->server->Shutdown(absl::ToChronoTime(absl::Now() + kFlush));
}

}  // namespace palimpsest
