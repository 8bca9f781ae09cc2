// palimpsest-server: flags to option structs, wiring, signals, exit codes.
//
// Exit codes: 0 drained and stopped. 1 failed at run time (a port in use, no memory for the slots), or a second signal
// or --hard_stop cut the drain short. 2 a flag or a model is wrong; one line on standard error says which and why.
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <initializer_list>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "base/file.h"
#include "base/host/available_processors.h"
#include "base/host/threads.h"
#include "base/log.h"
#include "server/flags/command_line.h"
#include "server/net/descriptors.h"
#include "server/rpc/log.h"
#include "server/rpc/server.h"
#ifdef PALIMPSEST_CUDA
#include "kernels/cuda/cuda_device.h"
#endif

namespace {

// A descriptor that is closed at the start would be given to the next file or connection that is opened, and what is
// meant for standard error would be written there. The first to open some are the libraries when they are loaded, so
// this comes before them, and before sanitizers are ready, which therefore are to look away.
__attribute__((no_sanitize("address", "thread", "undefined"))) void OpenStandardDescriptors() {
  for (int descriptor = STDIN_FILENO; descriptor <= STDERR_FILENO; ++descriptor) {
    if (syscall(SYS_fcntl, descriptor, F_GETFD) < 0) {
      syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR);  // takes the lowest number that is free: this one
    }
  }
}
__attribute__((section(".preinit_array"), used)) void (*const before_libraries)() = OpenStandardDescriptors;

}  // namespace

// Defaults are those of the option structs, so that they are written once.
namespace {
const palimpsest::ServerOptions& Defaults() {
  static const palimpsest::ServerOptions& defaults = *new palimpsest::ServerOptions;
  return defaults;
}
}  // namespace

ABSL_FLAG(std::vector<std::string>, model, {},
          "Checkpoint to serve: FOLDER, named after itself (delta_net-1.3B is delta-net-1.3b), or NAME=FOLDER. May be "
          "repeated, or hold several, separated by commas.");
ABSL_FLAG(std::string, model_root, "", "Folder under which LoadModel may load checkpoints. Empty: it may not.");
ABSL_FLAG(
    std::string, model_repository, "",
    "Folder whose sub-folders are the models to serve, each a checkpoint or a folder of numbered versions, of which "
    "the highest is served. New versions are loaded while the server runs. Empty: none.");
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
          "On a GPU: a sequence's state is written at every n-th step only; the updates between are deferred and kept "
          "beside it. More saves memory traffic and takes memory; replies are the same.");
ABSL_FLAG(
    std::string, state_dtype, "f32",
    "What sessions' fast weights are kept as: f32, or bf16: half the memory and traffic, less exact. Sessions and "
    "snapshots of one are of no use to the other.");
ABSL_FLAG(
    std::string, math, "auto",
    "Arithmetic of the projections: f32, bf16 (rounds activations), or auto: bf16 where weights and processor are.");

ABSL_FLAG(std::string, host, "127.0.0.1", "Address to listen on. 0.0.0.0 or ::: all of this machine's.");
ABSL_FLAG(int32_t, port, 50051, "Port to listen on. 0: any that is free. -1: none, with --unix_socket.");
ABSL_FLAG(std::string, port_file, "", "File to write the port to, once the server is ready.");
ABSL_FLAG(std::string, metrics_address, "127.0.0.1:9464", "Address of /metrics for Prometheus. Empty: none.");
ABSL_FLAG(std::string, metrics_port_file, "", "File to write the port of /metrics to, once the server is ready.");
ABSL_FLAG(std::string, tls_cert, "", "PEM file with the server's certificate. With --tls_key: TLS. Empty: plain text.");
ABSL_FLAG(std::string, tls_key, "", "PEM file with the certificate's private key.");
ABSL_FLAG(std::string, tls_client_ca, "", "PEM file. Given, clients must show a certificate signed by one in it.");
ABSL_FLAG(std::string, metrics_tls, "auto",
          "TLS of /metrics: auto: as the server's own port, certificates of clients included; on: with the server's "
          "certificate, asking for none; off: plain text.");

ABSL_FLAG(std::string, unix_socket, "",
          "Path of a unix socket to listen on as well. A socket that a process left there is replaced. Empty: none.");
ABSL_FLAG(std::string, unix_socket_mode, "0600", "Permissions of the unix socket, in octal: who may connect to it.");
ABSL_FLAG(bool, insecure_public, false,
          "Listen on addresses that others can reach although nothing says who may call: anybody may, and sees and "
          "deletes everybody's sessions.");
ABSL_FLAG(int64_t, max_connections, Defaults().connections.max_connections,
          "Connections open at once. 0: as many as the limit of descriptors leaves room for, at most 4096.");
ABSL_FLAG(int64_t, max_connections_per_peer, Defaults().connections.max_connections_per_peer,
          "Connections of one IPv4 address, one IPv6 network of 64 bits, or the unix socket. 0: half of "
          "--max_connections.");
ABSL_FLAG(absl::Duration, max_connection_idle, Defaults().connections.max_idle,
          "A connection without a call for so long ends; clients make a new one when they need it. inf: never.");
ABSL_FLAG(absl::Duration, handshake_timeout, Defaults().connections.handshake_timeout,
          "Time for a new connection to finish the handshakes of TLS and HTTP/2.");
ABSL_FLAG(double, max_calls_per_second, Defaults().connections.max_calls_per_second,
          "Calls that one connection may begin in a second, over two seconds; more are refused. 0: not bounded.");
ABSL_FLAG(
    double, max_resets_per_second, Defaults().connections.max_resets_per_second,
    "Calls that one peer may begin and give up in a second, over ten seconds; then its connection is ended. 0: not "
    "bounded, for a server behind a proxy that bounds them.");
ABSL_FLAG(std::string, auth_tokens_file, "",
          "File of the owners that may call, with hashes of their tokens, roles and shares: docs/owners.md. Read again "
          "when it changes. Empty: none, and without --tls_client_ca everybody may do everything.");
ABSL_FLAG(std::vector<std::string>, admin_identities, {},
          "Certificates whose owners are admins where there is no --auth_tokens_file, separated by commas: URI:..., "
          "DNS:... or CN:....");

ABSL_FLAG(int32_t, threads, Defaults().engine.threads,
          "Threads of the arithmetic, for each model. 0: one for each full processor that the process may use: its "
          "affinity and its control groups' quota.");
ABSL_FLAG(
    int32_t, slots, Defaults().engine.slots,
    "Sequences that run at once, for each model. Each takes the bytes of one state from the start on. More raises "
    "throughput, and every caller's time between tokens. 0: on a GPU as many as its memory holds, else 64.");
ABSL_FLAG(int32_t, max_queue, Defaults().engine.max_queue,
          "Requests that wait for a slot before new ones are refused.");
ABSL_FLAG(
    int32_t, prefill_budget, Defaults().engine.prefill_budget,
    "Prompt tokens prefilled in one batch beside the decoding sequences. More shortens the time to the first token "
    "under load and lengthens the others' time between tokens. 0: 256, on a GPU 16 for each of its multiprocessors.");
ABSL_FLAG(int32_t, max_undelivered_tokens, Defaults().engine.max_undelivered_tokens,
          "Generated tokens that may wait for a slow reader before its sequence is paused.");

ABSL_FLAG(absl::Duration, session_ttl, Defaults().sessions.default_ttl,
          "Time to live of a session that does not say, from its last use. inf: never expires.");
ABSL_FLAG(int64_t, max_sessions, Defaults().sessions.max_sessions, "Sessions kept at once. Each counts as one state.");
ABSL_FLAG(int64_t, max_snapshots, Defaults().sessions.max_snapshots,
          "Snapshots kept at once. Each counts as one state.");

ABSL_FLAG(int64_t, max_state_bytes, Defaults().sessions.max_state_bytes,
          "Memory for the states of sessions and snapshots, each of which counts in full. 0: what the machine, the "
          "container or the process's limits leave.");

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
          "Memory for messages on their way, all connections together. 0: a quarter of what is left beside the models, "
          "16 MiB to 2 GiB.");
ABSL_FLAG(
    int64_t, max_reply_bytes, Defaults().limits.max_reply_bytes,
    "Memory for prompts, and for answers that are made and not yet read, all connections together; one may have half "
    "of it. 0: an eighth of what is left beside the models, 16 to 256 MiB.");
ABSL_FLAG(absl::Duration, max_stall, Defaults().limits.max_stall,
          "How long a call's peer may do nothing while it is its turn to read or to send. What is longer ends the "
          "call. inf: for ever.");
ABSL_FLAG(int64_t, max_request_ids, Defaults().limits.max_request_ids,
          "Request ids of creating calls remembered, for ten minutes each.");
ABSL_FLAG(
    int64_t, max_request_id_bytes, Defaults().limits.max_request_id_bytes,
    "Memory for request ids of creating calls and their answers. 0: a sixteenth of what is left beside the models, 1 "
    "to 64 MiB.");

ABSL_FLAG(std::string, flagfile, "", "File with flags, one --name=value on a line; # begins a comment line.");
ABSL_FLAG(
    absl::Duration, lame_duck, absl::Milliseconds(100),
    "On SIGTERM or SIGINT: how long new calls are still accepted after health has begun to say NOT_SERVING, so that "
    "balancers notice first. Comes before --grace.");
ABSL_FLAG(absl::Duration, grace, absl::Seconds(30),
          "On SIGTERM or SIGINT: how long calls that run may go on. A second signal ends them at once.");
ABSL_FLAG(absl::Duration, hard_stop, absl::Seconds(10),
          "How long after --lame_duck and --grace the process ends, with exit code 1, whatever it still waits for.");
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
       {"host",
        "port",
        "port_file",
        "metrics_address",
        "metrics_port_file",
        "tls_cert",
        "tls_key",
        "tls_client_ca",
        "auth_tokens_file",
        "admin_identities",
        "metrics_tls",
        "unix_socket",
        "unix_socket_mode",
        "insecure_public",
        "max_connections",
        "max_connections_per_peer",
        "max_connection_idle",
        "handshake_timeout",
        "max_calls_per_second",
        "max_resets_per_second"}},
      {"Engine", {"threads", "slots", "max_queue", "prefill_budget", "max_undelivered_tokens"}},
      {"Sessions", {"session_ttl", "max_sessions", "max_snapshots", "max_state_bytes"}},
      {"Limits",
       {"max_message_bytes", "max_prompt_tokens", "max_prompt_bytes", "max_tokens", "default_max_tokens",
        "max_scored_values", "max_stop_strings", "max_streams_per_connection", "max_transfers", "max_models",
        "max_rpc_memory_bytes", "max_reply_bytes", "max_stall", "max_request_ids", "max_request_id_bytes"}},
      {"Operation", {"flagfile", "lame_duck", "grace", "hard_stop", "log_format"}}};
  return groups;
}

CommandLine& Flags() {
  static CommandLine& flags = *new CommandLine("PALIMPSEST_", Groups());
  return flags;
}

// How long the end of the process waits for whoever reads standard error.
constexpr absl::Duration kLogFlush = absl::Seconds(1);

// Why the server does not start, for the person who started it: plain whatever the log's form is, and the last line.
void PrintError(absl::string_view reason) {
  LogPlain(absl::StrCat("palimpsest-server: ", Flags().WithOrigin(reason)));
  FlushLog(kLogFlush);
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

int32_t ReadMode(absl::string_view flag, const std::string& text) {
  int32_t mode = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), mode, 8);
  if (error == std::errc() && end == text.data() + text.size() && mode >= 0 && mode <= 0777) return mode;
  Refuse(absl::StrCat("--", flag, " is \"", text, "\"; accepted: an octal number from 0 to 0777"));
}

// A model's name from its folder's: delta_net-1.3B-100B is delta-net-1.3b-100b. Empty: it does not begin with a letter.
std::string NameFrom(const std::string& folder) {
  std::string name = absl::AsciiStrToLower(folder.substr(0, 63));
  for (char& c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.') c = '-';
  }
  return name.empty() || !absl::ascii_isalpha(static_cast<unsigned char>(name[0])) ? "" : name;
}

ServerOptions::ModelSource ReadModel(const std::string& text) {
  const size_t equals = text.find('=');
  ServerOptions::ModelSource model;
  if (equals != std::string::npos) {
    model = {text.substr(0, equals), text.substr(equals + 1)};
  } else {
    std::filesystem::path folder(text);
    if (!folder.has_filename()) folder = folder.parent_path();  // a slash at the end
    model = {NameFrom(folder.filename().string()), text};
  }
  if (model.folder.empty()) Refuse(absl::StrCat("--model is \"", text, "\"; accepted: FOLDER or NAME=FOLDER"));
  if (model.id.empty()) {
    Refuse(absl::StrCat("--model is \"", text, "\", and no name begins like that folder's; accepted: NAME=", text,
                        " with a NAME of 1 to 63 characters [a-z0-9.-], beginning with a letter"));
  }
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
  options.unix_socket = absl::GetFlag(FLAGS_unix_socket);
  options.unix_socket_mode = ReadMode("unix_socket_mode", absl::GetFlag(FLAGS_unix_socket_mode));
  options.insecure_public = absl::GetFlag(FLAGS_insecure_public);
  options.connections = {absl::GetFlag(FLAGS_max_connections),       absl::GetFlag(FLAGS_max_connections_per_peer),
                         absl::GetFlag(FLAGS_max_connection_idle),   absl::GetFlag(FLAGS_handshake_timeout),
                         absl::GetFlag(FLAGS_max_resets_per_second), absl::GetFlag(FLAGS_max_calls_per_second)};
  options.metrics_address = absl::GetFlag(FLAGS_metrics_address);
  options.tls_certificate_file = absl::GetFlag(FLAGS_tls_cert);
  options.tls_key_file = absl::GetFlag(FLAGS_tls_key);
  options.tls_client_ca_file = absl::GetFlag(FLAGS_tls_client_ca);
  options.auth_tokens_file = absl::GetFlag(FLAGS_auth_tokens_file);
  options.admin_identities = absl::GetFlag(FLAGS_admin_identities);
  using MetricsTls = ServerOptions::MetricsTls;
  options.metrics_tls =
      OneOf<MetricsTls>("metrics_tls", absl::GetFlag(FLAGS_metrics_tls),
                        {{"auto", MetricsTls::kAuto}, {"on", MetricsTls::kOn}, {"off", MetricsTls::kOff}});
  options.engine.threads = absl::GetFlag(FLAGS_threads);
  options.engine.slots = absl::GetFlag(FLAGS_slots);
  options.engine.max_queue = absl::GetFlag(FLAGS_max_queue);
  options.engine.prefill_budget = absl::GetFlag(FLAGS_prefill_budget);
  options.engine.max_undelivered_tokens = absl::GetFlag(FLAGS_max_undelivered_tokens);
  options.engine.max_stall = absl::GetFlag(FLAGS_max_stall);
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
  options.limits.max_request_id_bytes = absl::GetFlag(FLAGS_max_request_id_bytes);
  options.sessions.max_state_bytes = absl::GetFlag(FLAGS_max_state_bytes);
  return options;
}

bool WritePort(const std::string& path, int32_t port) {
  if (path.empty()) return true;
  const absl::Status written = WriteFile(path, absl::StrCat(port, "\n"));
  if (!written.ok()) PrintError(absl::StrCat(written.message(), ", so the port cannot be written there"));
  return written.ok();
}

// What is thrown and not caught, in one line. While the server starts nothing is lost, and it is most likely the system
// that has no more threads or memory to give: exit code 1, as for other such failures. Later it is an error of ours.
std::atomic<bool> g_started{false};
[[noreturn]] void OnUncaught() {
  std::string reason = "terminated without an exception";
  bool of_system = false;
  if (const std::exception_ptr thrown = std::current_exception()) {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::system_error& error) {
      of_system = true;
      reason = error.what();
    } catch (const std::bad_alloc& error) {
      of_system = true;
      reason = "out of memory";
    } catch (const std::exception& error) {
      reason = error.what();
    } catch (...) {
      reason = "an exception of an unknown type";
    }
  }
  if (of_system && !g_started) {
    PrintError(absl::StrCat("cannot start: ", reason));
    _exit(1);
  }
  LogError("aborted", {{"reason", reason}});
  FlushLog(kLogFlush);
  std::abort();
}

// Ends the process at once. Standard error may be a pipe that nobody reads: then it ends without a word.
[[noreturn]] void EndNow(const std::string& reason) {
  const std::string line = absl::StrCat("palimpsest-server: ", reason, "\n");
  pollfd error{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
  FlushLog(kLogFlush);
  if (poll(&error, 1, 0) == 1 && (error.revents & POLLOUT) != 0) {
    (void)!write(STDERR_FILENO, line.data(), line.size());
  }
  _exit(1);
}

// Waits for SIGTERM and SIGINT, which all threads have blocked. While the server starts, there is nothing to lose: the
// first one ends the process. Later it notifies, and the second one ends it, and so does time: `end_after` the first.
// Its thread is there from the start on, because later there may be none to have.
class Signals {
 public:
  explicit Signals(absl::Duration end_after) : end_after_(end_after) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);  // a file at its limit is an error of a write
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  }
  absl::Status Start() {
    absl::StatusOr<std::thread> thread = StartThread([this] { Watch(); });
    if (thread.ok()) thread->detach();
    return thread.status();
  }
  void Wait() { first_.WaitForNotification(); }

 private:
  using Clock = std::chrono::steady_clock;
  // Far enough for any process.
  static constexpr absl::Duration kEver = absl::Hours(24 * 365);

  void Watch() {
    AwaitSignal(Clock::time_point::max());
    if (!g_started) {
      FlushLog(kLogFlush);
      _exit(0);
    }
    const Clock::time_point end = Clock::now() + absl::ToChronoNanoseconds(std::min(end_after_, kEver));
    first_.Notify();
    if (AwaitSignal(end)) EndNow("a second signal: the process ends at once");
    EndNow(absl::StrCat("still not stopped ", absl::FormatDuration(end_after_),
                        " after the signal (--lame_duck, --grace and --hard_stop): the process ends"));
  }
  // False: `end` came first.
  bool AwaitSignal(Clock::time_point end) {
    for (;;) {
      const auto left = absl::FromChrono(end == Clock::time_point::max() ? Clock::duration::max() : end - Clock::now());
      if (left <= absl::ZeroDuration()) return false;
      const timespec timeout = absl::ToTimespec(std::min(left, kEver));
      if (sigtimedwait(&set_, nullptr, &timeout) > 0) return true;
    }
  }

  const absl::Duration end_after_;
  sigset_t set_;
  absl::Notification first_;
};

// Each thread's arena of the allocator reserves 64 MiB of addresses. Where those are limited there is room for few.
void BoundArenas() {
  for (const auto resource : {RLIMIT_AS, RLIMIT_DATA}) {
    rlimit limit{};
    if (getrlimit(resource, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
      mallopt(M_ARENA_MAX, 2);
    }
  }
}

int CodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnimplemented:
      return 2;
    default:
      return 1;
  }
}

absl::StatusOr<std::unique_ptr<Server>> StartServer(const ServerOptions& options) {
  try {
    return Server::Start(options);
  } catch (const std::system_error& error) {
    // A thread that was there when they were counted, and has been taken by somebody else since.
    return absl::ResourceExhaustedError(
        absl::StrCat("a thread cannot be started (", error.what(), "); the limits are: ", ThreadLimits()));
  }
}

int Main(int argc, char** argv) {
  std::set_terminate(OnUncaught);
  BoundArenas();
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
  LogLibraries();
  const absl::Duration lame_duck = NotNegative("lame_duck", absl::GetFlag(FLAGS_lame_duck));
  const absl::Duration grace = NotNegative("grace", absl::GetFlag(FLAGS_grace));
  const absl::Duration hard_stop = NotNegative("hard_stop", absl::GetFlag(FLAGS_hard_stop));
  CheckFileToWrite("port_file", absl::GetFlag(FLAGS_port_file));
  CheckFileToWrite("metrics_port_file", absl::GetFlag(FLAGS_metrics_port_file));
  ServerOptions options = ReadOptions();
  static Signals& signals = *new Signals(lame_duck + grace + hard_stop);  // its thread outlives main's frame
  if (const absl::Status status = signals.Start(); !status.ok()) {
    PrintError(status.message());
    return 1;
  }
  RaiseDescriptorLimit();

  std::vector<std::pair<std::string, std::string>> configuration = Flags().Values();
  configuration.emplace(configuration.begin(), "version", ServerVersion());
  LogEvent("configuration", configuration);
  options.on_listening = [&options](int32_t port, int32_t metrics_port) {
    const std::string tcp = port < 0 ? "none" : absl::StrCat(options.host, ":", port);
    LogEvent("listening", {{"address", tcp},
                           {"unix_socket", options.unix_socket.empty() ? "none" : options.unix_socket},
                           {"metrics_port", metrics_port == 0 ? "none" : absl::StrCat(metrics_port)},
                           {"tls", options.tls_certificate_file.empty() ? "off"
                                   : options.tls_client_ca_file.empty() ? "on"
                                                                        : "mutual"}});
  };
  absl::StatusOr<std::unique_ptr<Server>> server = StartServer(options);
  if (!server.ok()) {
    PrintError(server.status().message());
    return CodeOf(server.status());
  }
  g_started = true;
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
  FlushLog(kLogFlush);
  return 0;
}

}  // namespace
}  // namespace palimpsest

int main(int argc, char** argv) { return palimpsest::Main(argc, argv); }
