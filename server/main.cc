// palimpsest-server: flags to option structs, wiring, signals, exit codes.
//
// Exit codes: 0 drained and stopped. 1 failed at run time (a port in use, no memory for the slots), or a second signal
// cut the drain short. 2 a flag or a model is wrong; one line on standard error says which and why.
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "server/flags/command_line.h"
#include "server/rpc/log.h"
#include "server/rpc/server.h"
#ifdef PALIMPSEST_CUDA
#include "kernels/cuda/cuda_device.h"
#endif

// Defaults are those of the option structs, so that they are written once.
namespace {
const palimpsest::ServerOptions& Defaults() {
  static const palimpsest::ServerOptions& defaults = *new palimpsest::ServerOptions;
  return defaults;
}
}  // namespace

ABSL_FLAG(
    std::vector<std::string>, model, {},
    "Checkpoint to serve: FOLDER, named after itself, or NAME=FOLDER. May be repeated, or hold several, separated "
    "by commas.");
ABSL_FLAG(std::string, model_root, "", "Folder under which LoadModel may load checkpoints. Empty: it may not.");
ABSL_FLAG(
    std::string, model_repository, "",
    "Folder whose sub-folders are the models to serve, each a checkpoint or a folder of numbered versions, of which "
    "the highest is served. New versions are taken up while the server runs. Empty: none.");
ABSL_FLAG(absl::Duration, model_repository_poll, Defaults().repository.poll,
          "How often --model_repository is looked at. 0: at the start only.");
ABSL_FLAG(
    absl::Duration, model_repository_retire_after, Defaults().repository.retire_after,
    "How long a replaced version stays for the sessions that it has. inf: until they are deleted or have expired.");
ABSL_FLAG(std::string, backend, "auto",
          "Where models run: cpu, cuda, or auto: cuda where this build and the machine have it, else cpu.");
ABSL_FLAG(int32_t, device, 0, "Which GPU, as CUDA counts them.");
ABSL_FLAG(double, device_memory_fraction, Defaults().engine.device_memory_fraction,
          "Of the GPU's memory, the part that may be in use once a model is loaded: what --slots=0 fills.");
ABSL_FLAG(int32_t, state_write_interval, Defaults().model.write_interval,
          "On a GPU: a sequence's state is written at every n-th step only, and what it lacks is kept beside it. More "
          "saves memory traffic and takes memory; replies are the same.");
ABSL_FLAG(
    std::string, state_dtype, "f32",
    "What sessions' fast weights are kept as: f32, or bf16: half the memory and traffic, less exact. Sessions and "
    "snapshots of one are of no use to the other.");
ABSL_FLAG(
    std::string, math, "auto",
    "Arithmetic of the projections: f32, bf16 (rounds activations), or auto: bf16 where weights and processor are.");

ABSL_FLAG(std::string, host, "127.0.0.1", "Address to listen on. 0.0.0.0 or ::: all of this machine's.");
ABSL_FLAG(int32_t, port, 50051, "Port to listen on. 0: any that is free.");
ABSL_FLAG(std::string, port_file, "", "File to write the port to, once the server is ready.");
ABSL_FLAG(std::string, metrics_address, "127.0.0.1:9464", "Address of /metrics for Prometheus. Empty: none.");
ABSL_FLAG(std::string, metrics_port_file, "", "File to write the port of /metrics to, once the server is ready.");
ABSL_FLAG(std::string, tls_cert, "", "PEM file with the server's certificate. With --tls_key: TLS. Empty: plain text.");
ABSL_FLAG(std::string, tls_key, "", "PEM file with the certificate's private key.");
ABSL_FLAG(std::string, tls_client_ca, "", "PEM file. Given, clients must show a certificate signed by one in it.");

ABSL_FLAG(int32_t, threads, Defaults().engine.threads,
          "Threads of the arithmetic, for each model. 0: one for each whole processor that the process may use: its "
          "affinity and its control groups' quota.");
ABSL_FLAG(
    int32_t, slots, Defaults().engine.slots,
    "Sequences that run at once, for each model. Each takes the bytes of one state from the start on. More raises "
    "throughput, and every caller's time between tokens. 0: on a GPU as many as its memory holds, else 64.");
ABSL_FLAG(int32_t, max_queue, Defaults().engine.max_queue,
          "Requests that wait for a slot before new ones are refused.");
ABSL_FLAG(int32_t, prefill_budget, Defaults().engine.prefill_budget,
          "Prompt tokens taken into one batch beside the decoding sequences. More shortens the time to the first token "
          "under load and lengthens the others' time between tokens.");
ABSL_FLAG(int32_t, max_undelivered_tokens, Defaults().engine.max_undelivered_tokens,
          "Generated tokens that may wait for a slow reader before its sequence is left out of batches.");

ABSL_FLAG(absl::Duration, session_ttl, Defaults().sessions.default_ttl,
          "Time to live of a session that does not say, from its last use. inf: never expires.");
ABSL_FLAG(int64_t, max_sessions, Defaults().sessions.max_sessions, "Sessions held. Each counts as one state.");
ABSL_FLAG(int64_t, max_snapshots, Defaults().sessions.max_snapshots, "Snapshots held. Each counts as one state.");

ABSL_FLAG(int64_t, max_message_bytes, Defaults().limits.max_message_bytes,
          "Bytes of one message received. An inline state must fit.");
ABSL_FLAG(int64_t, max_prompt_tokens, Defaults().limits.max_prompt_tokens, "Tokens of one prompt.");
ABSL_FLAG(int64_t, max_prompt_bytes, Defaults().limits.max_prompt_bytes, "Bytes of one prompt's text.");
ABSL_FLAG(int64_t, max_tokens, Defaults().limits.max_tokens, "Tokens that one request may generate.");
ABSL_FLAG(int64_t, default_max_tokens, Defaults().limits.default_max_tokens,
          "Tokens that a request generates if it does not say.");
ABSL_FLAG(int64_t, max_scored_values, Defaults().limits.max_scored_values,
          "Tokens and alternatives in one answer of Score.");
ABSL_FLAG(int32_t, max_stop_strings, Defaults().limits.max_stop_strings, "Stop strings of one request.");
ABSL_FLAG(int32_t, max_streams_per_connection, Defaults().limits.max_streams_per_connection,
          "Calls at once on one connection. More wait at the client.");
ABSL_FLAG(int32_t, max_transfers, Defaults().limits.max_transfers, "Snapshots uploaded or downloaded at once.");
ABSL_FLAG(int32_t, max_models, Defaults().limits.max_models, "Models loaded at once.");
ABSL_FLAG(int64_t, max_rpc_memory_bytes, Defaults().limits.max_rpc_memory_bytes,
          "Memory for messages on their way, all connections together.");
ABSL_FLAG(int64_t, max_reply_bytes, Defaults().limits.max_reply_bytes,
          "Memory for answers that are made and not yet read, all connections together. One may have half of it.");
ABSL_FLAG(absl::Duration, max_stall, Defaults().limits.max_stall,
          "How long a call's peer may do nothing while it is its turn to read or to send. What is longer ends the "
          "call. inf: for ever.");
ABSL_FLAG(int64_t, max_request_ids, Defaults().limits.max_request_ids,
          "Request ids of creating calls remembered, for ten minutes each.");

ABSL_FLAG(std::string, flagfile, "", "File with flags, one --name=value on a line; # begins a comment line.");
ABSL_FLAG(absl::Duration, lame_duck, absl::Milliseconds(100),
          "On SIGTERM or SIGINT: how long new calls are still taken after health has begun to say NOT_SERVING, so that "
          "balancers notice first. Comes before --grace.");
ABSL_FLAG(absl::Duration, grace, absl::Seconds(30),
          "On SIGTERM or SIGINT: how long calls that run may go on. A second signal ends them at once.");
ABSL_FLAG(std::string, log_format, "json", "Form of the log on standard error: json or text.");

namespace palimpsest {
namespace {

constexpr char kAbout[] =
    "palimpsest-server: serves fast-weight language models over gRPC.\n\n"
    "  palimpsest-server --model=FOLDER\n"
    "  palimpsest-server --model=small=checkpoints/a --model=large=checkpoints/b --host=0.0.0.0\n"
    "  palimpsest-server --model_repository=/models --flagfile=/etc/palimpsest/server.flags\n\n"
    "Each flag is --name=value, and may be set in the environment too, as PALIMPSEST_NAME, and on a line of the file "
    "that\n"
    "--flagfile names. The command line wins over the environment, and that over the file.";

const std::vector<FlagGroup>& Groups() {
  static const std::vector<FlagGroup>& groups = *new std::vector<FlagGroup>{
      {"Models",
       {"model", "model_root", "backend", "device", "device_memory_fraction", "state_write_interval", "state_dtype",
        "math", "model_repository", "model_repository_poll", "model_repository_retire_after"}},
      {"Network",
       {"host", "port", "port_file", "metrics_address", "metrics_port_file", "tls_cert", "tls_key", "tls_client_ca"}},
      {"Engine", {"threads", "slots", "max_queue", "prefill_budget", "max_undelivered_tokens"}},
      {"Sessions", {"session_ttl", "max_sessions", "max_snapshots"}},
      {"Limits",
       {"max_message_bytes", "max_prompt_tokens", "max_prompt_bytes", "max_tokens", "default_max_tokens",
        "max_scored_values", "max_stop_strings", "max_streams_per_connection", "max_transfers", "max_models",
        "max_rpc_memory_bytes", "max_reply_bytes", "max_stall", "max_request_ids"}},
      {"Operation", {"flagfile", "lame_duck", "grace", "log_format"}}};
  return groups;
}

CommandLine& Flags() {
  static CommandLine& flags = *new CommandLine("PALIMPSEST_", Groups());
  return flags;
}

void PrintError(absl::string_view reason) {
  std::fprintf(stderr, "palimpsest-server: %s\n", Flags().WithOrigin(reason).c_str());
}

// An error in a flag, a model or the environment: one line, exit code 2.
[[noreturn]] void Refuse(absl::string_view reason) {
  PrintError(reason);
  std::exit(2);
}

void CheckFolder(absl::string_view flag, const std::string& path) {
  std::error_code error;
  if (path.empty() || std::filesystem::is_directory(path, error)) return;
  Refuse(absl::StrCat("--", flag, " is ", path, ", which is not a folder; accepted: a folder that is there"));
}

// Before the models are loaded: nobody wants to hear of it after that.
void CheckFileToWrite(absl::string_view flag, const std::string& path) {
  if (path.empty()) return;
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::absolute(path, error).parent_path();
  if (!error && std::filesystem::is_directory(folder, error) && !std::filesystem::is_directory(path, error) &&
      access(folder.c_str(), W_OK) == 0) {
    return;
  }
  Refuse(absl::StrCat("--", flag, " is ", path,
                      ", which cannot be written; accepted: a file in a folder that is there ",
                      "and may be written to"));
}

template <class T>
T OneOf(absl::string_view flag, const std::string& value, std::initializer_list<std::pair<const char*, T>> accepted) {
  std::vector<const char*> names;
  for (const auto& [name, meaning] : accepted) {
    if (value == name) return meaning;
    names.push_back(name);
  }
  Refuse(absl::StrCat("--", flag, " is \"", value, "\"; accepted: ", absl::StrJoin(names, ", ")));
}

absl::Duration NotNegative(absl::string_view flag, absl::Duration value) {
  if (value >= absl::ZeroDuration()) return value;
  Refuse(absl::StrCat("--", flag, " is ", absl::FormatDuration(value), "; accepted: 0 or more"));
}

ServerOptions::ModelSource ReadModel(const std::string& text) {
  const size_t equals = text.find('=');
  ServerOptions::ModelSource model;
  if (equals != std::string::npos) {
    model = {text.substr(0, equals), text.substr(equals + 1)};
  } else {
    std::filesystem::path folder(text);
    if (!folder.has_filename()) folder = folder.parent_path();  // a slash at the end
    model = {folder.filename().string(), text};
  }
  if (model.folder.empty()) Refuse(absl::StrCat("--model is \"", text, "\"; accepted: FOLDER or NAME=FOLDER"));
  return model;
}

ServerOptions ReadOptions() {
  ServerOptions options;
  for (const std::string& text : absl::GetFlag(FLAGS_model)) options.models.push_back(ReadModel(text));
  options.model_root = absl::GetFlag(FLAGS_model_root);
  options.repository.folder = absl::GetFlag(FLAGS_model_repository);
  options.repository.poll = absl::GetFlag(FLAGS_model_repository_poll);
  options.repository.retire_after = absl::GetFlag(FLAGS_model_repository_retire_after);
  if (options.models.empty() && options.model_root.empty() && options.repository.folder.empty()) {
    Refuse(
        "no model: give --model=FOLDER, or --model_repository=FOLDER with models in sub-folders, or "
        "--model_root=FOLDER to load models later");
  }
  CheckFolder("model_root", options.model_root);
  CheckFolder("model_repository", options.repository.folder);
  using Math = ModelOptions::Math;
  options.model.math = OneOf<Math>("math", absl::GetFlag(FLAGS_math),
                                   {{"auto", Math::kAuto}, {"f32", Math::kF32}, {"bf16", Math::kBF16}});
  options.model.state_dtype =
      OneOf<DType>("state_dtype", absl::GetFlag(FLAGS_state_dtype), {{"f32", DType::kF32}, {"bf16", DType::kBF16}});
  using Backend = BackendOptions::Kind;
  options.backend.kind = OneOf<Backend>("backend", absl::GetFlag(FLAGS_backend),
                                        {{"auto", Backend::kAuto}, {"cpu", Backend::kCpu}, {"cuda", Backend::kCuda}});
  options.backend.device = absl::GetFlag(FLAGS_device);
  options.model.write_interval = absl::GetFlag(FLAGS_state_write_interval);
#ifdef PALIMPSEST_CUDA
  options.backend.open = OpenCudaDevice;
#endif
  options.engine.device_memory_fraction = absl::GetFlag(FLAGS_device_memory_fraction);
  options.host = absl::GetFlag(FLAGS_host);
  options.port = absl::GetFlag(FLAGS_port);
  options.metrics_address = absl::GetFlag(FLAGS_metrics_address);
  options.tls_certificate_file = absl::GetFlag(FLAGS_tls_cert);
  options.tls_key_file = absl::GetFlag(FLAGS_tls_key);
  options.tls_client_ca_file = absl::GetFlag(FLAGS_tls_client_ca);
  options.engine.threads = absl::GetFlag(FLAGS_threads);
  options.engine.slots = absl::GetFlag(FLAGS_slots);
  options.engine.max_queue = absl::GetFlag(FLAGS_max_queue);
  options.engine.prefill_budget = absl::GetFlag(FLAGS_prefill_budget);
  options.engine.max_undelivered_tokens = absl::GetFlag(FLAGS_max_undelivered_tokens);
  options.sessions.default_ttl = absl::GetFlag(FLAGS_session_ttl);
  options.sessions.max_sessions = absl::GetFlag(FLAGS_max_sessions);
  options.sessions.max_snapshots = absl::GetFlag(FLAGS_max_snapshots);
  options.limits.max_message_bytes = absl::GetFlag(FLAGS_max_message_bytes);
  options.limits.max_prompt_tokens = absl::GetFlag(FLAGS_max_prompt_tokens);
  options.limits.max_prompt_bytes = absl::GetFlag(FLAGS_max_prompt_bytes);
  options.limits.max_tokens = absl::GetFlag(FLAGS_max_tokens);
  options.limits.default_max_tokens = absl::GetFlag(FLAGS_default_max_tokens);
  options.limits.max_scored_values = absl::GetFlag(FLAGS_max_scored_values);
  options.limits.max_stop_strings = absl::GetFlag(FLAGS_max_stop_strings);
  options.limits.max_streams_per_connection = absl::GetFlag(FLAGS_max_streams_per_connection);
  options.limits.max_transfers = absl::GetFlag(FLAGS_max_transfers);
  options.limits.max_models = absl::GetFlag(FLAGS_max_models);
  options.limits.max_rpc_memory_bytes = absl::GetFlag(FLAGS_max_rpc_memory_bytes);
  options.limits.max_reply_bytes = absl::GetFlag(FLAGS_max_reply_bytes);
  options.limits.max_stall = absl::GetFlag(FLAGS_max_stall);
  options.limits.max_request_ids = absl::GetFlag(FLAGS_max_request_ids);
  return options;
}

// Whole or not at all: who waits for the file never reads half of it.
bool WritePort(const std::string& path, int32_t port) {
  if (path.empty()) return true;
  const std::string temporary = absl::StrCat(path, ".", getpid());
  std::ofstream file(temporary);
  file << port << "\n";
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(temporary, path, error);
  if (file && !error) return true;
  PrintError(absl::StrCat(path, " cannot be written"));
  return false;
}

// Waits for SIGTERM and SIGINT, which all threads have blocked. While the server starts, there is nothing to lose: the
// first one ends the process. Later it notifies, and the second one ends it.
class Signals {
 public:
  Signals() {
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    std::thread([this] { Watch(); }).detach();
  }
  void SetReady() { ready_ = true; }
  void Wait() { first_.WaitForNotification(); }

 private:
  void Watch() {
    for (;;) {
      int number = 0;
      if (sigwait(&set_, &number) != 0) continue;
      if (!ready_) _exit(0);
      if (first_.HasBeenNotified()) _exit(1);
      first_.Notify();
    }
  }

  sigset_t set_;
  std::atomic<bool> ready_{false};
  absl::Notification first_;
};

int Main(int argc, char** argv) {
  const absl::StatusOr<CommandLine::Asked> asked = Flags().Read(argc, argv);
  if (!asked.ok()) Refuse(asked.status().message());
  if (*asked == CommandLine::Asked::kHelp) {
    std::fputs(Flags().Help(kAbout).c_str(), stdout);
    return 0;
  }
  if (*asked == CommandLine::Asked::kVersion) {
    std::printf("palimpsest-server %s\n", ServerVersion().c_str());
    return 0;
  }
  SetLogFormat(OneOf<LogFormat>("log_format", absl::GetFlag(FLAGS_log_format),
                                {{"json", LogFormat::kJson}, {"text", LogFormat::kText}}));
  const absl::Duration lame_duck = NotNegative("lame_duck", absl::GetFlag(FLAGS_lame_duck));
  const absl::Duration grace = NotNegative("grace", absl::GetFlag(FLAGS_grace));
  CheckFileToWrite("port_file", absl::GetFlag(FLAGS_port_file));
  CheckFileToWrite("metrics_port_file", absl::GetFlag(FLAGS_metrics_port_file));
  ServerOptions options = ReadOptions();
  static Signals& signals = *new Signals;  // its thread outlives main's frame

  std::vector<std::pair<std::string, std::string>> configuration = Flags().Values();
  configuration.emplace(configuration.begin(), "version", ServerVersion());
  LogEvent("configuration", configuration);
  options.on_listening = [&options](int32_t port, int32_t metrics_port) {
    LogEvent("listening", {{"address", absl::StrCat(options.host, ":", port)},
                           {"metrics_port", metrics_port == 0 ? "none" : absl::StrCat(metrics_port)},
                           {"tls", options.tls_certificate_file.empty() ? "off"
                                   : options.tls_client_ca_file.empty() ? "on"
                                                                        : "mutual"}});
  };
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options);
  if (!server.ok()) {
    PrintError(server.status().message());
    switch (server.status().code()) {
      case absl::StatusCode::kInvalidArgument:
      case absl::StatusCode::kNotFound:
      case absl::StatusCode::kDataLoss:
      case absl::StatusCode::kAlreadyExists:
      case absl::StatusCode::kFailedPrecondition:
      case absl::StatusCode::kUnimplemented:
        return 2;
      default:
        return 1;
    }
  }
  signals.SetReady();
  if (!WritePort(absl::GetFlag(FLAGS_port_file), (*server)->port()) ||
      !WritePort(absl::GetFlag(FLAGS_metrics_port_file), (*server)->metrics_port())) {
    return 1;
  }
  LogEvent("ready", {{"port", absl::StrCat((*server)->port())}});

  signals.Wait();
  LogEvent("draining", {{"lame_duck", absl::FormatDuration(lame_duck)}, {"grace", absl::FormatDuration(grace)}});
  (*server)->Drain(grace, lame_duck);
  server->reset();
  LogEvent("stopped");
  return 0;
}

}  // namespace
}  // namespace palimpsest

int main(int argc, char** argv) { return palimpsest::Main(argc, argv); }
