// What a subcommand is, and what it is given to work with.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "clients/cpp/cli/args.h"
#include "clients/cpp/cli/interrupt.h"
#include "clients/cpp/cli/terminal.h"
#include "clients/cpp/client.h"

#define PALIMPSEST_CONCAT_INNER(a, b) a##b
#define PALIMPSEST_CONCAT(a, b) PALIMPSEST_CONCAT_INNER(a, b)
#define RETURN_IF_ERROR(expression) \
  if (absl::Status status_ = (expression); !status_.ok()) return status_
#define ASSIGN_OR_RETURN(target, expression)                                                            \
  auto PALIMPSEST_CONCAT(result_, __LINE__) = (expression);                                             \
  if (!PALIMPSEST_CONCAT(result_, __LINE__).ok()) return PALIMPSEST_CONCAT(result_, __LINE__).status(); \
  target = *std::move(PALIMPSEST_CONCAT(result_, __LINE__))

namespace palimpsest::cli {

// Flags about who the server is, and who calls.
struct CredentialFlags {
  std::string ca_file;
  std::string certificate_file;
  std::string key_file;
  std::string token_file;
  bool allow_insecure_token = false;

  void Add(FlagSet& flags);
  // That of --token_file, or else of the environment variable PALIMPSEST_TOKEN; empty: none. An error of the file, or
  // INVALID_ARGUMENT, which does not show it.
  absl::StatusOr<std::string> Token() const;
};

// Flags that every command which talks to a server has.
struct ServerFlags : CredentialFlags {
  std::string server = "localhost:50051";
  bool tls = false;
  absl::Duration connect_timeout = absl::Seconds(5);
  bool round_robin = false;
  absl::Duration timeout = absl::InfiniteDuration();
  std::string traceparent;
  std::string tracestate;

  void Add(FlagSet& flags);
};

struct Context {
  const Terminal& terminal;
  Interrupt& interrupt;
  ServerFlags server;
  std::vector<std::string> arguments;  // the positional ones

  // Connects as the flags say.
  absl::StatusOr<std::unique_ptr<client::Client>> Connect() const;
  client::CallOptions Call(client::Cancellation* cancellation = nullptr) const {
    return {.timeout = server.timeout,
            .cancellation = cancellation,
            .traceparent = server.traceparent,
            .tracestate = server.tracestate};
  }
};

class Command {
 public:
  struct Info {
    std::string name = "";         // "generate", "session create"
    std::string arguments = "";    // of the usage line: "[PROMPT]"
    std::string summary = "";      // half a line
    std::string description = "";  // paragraphs
    size_t min_arguments = 0;
    size_t max_arguments = 0;
    bool uses_server = true;     // has ServerFlags
    bool reads_metrics = false;  // without those, has CredentialFlags
  };

  explicit Command(Info info) : info_(std::move(info)) {}
  virtual ~Command() = default;

  const Info& info() const { return info_; }
  virtual void AddFlags(FlagSet&) {}
  // An error is printed by the caller, and becomes exit code 1; of UsageError, 2; while interrupted, 130.
  virtual absl::Status Run(Context& context) = 0;

 private:
  const Info info_;
};

// An error in how the command was called, not in what came of it.
absl::Status UsageError(absl::string_view message);
bool IsUsageError(const absl::Status& status);

// All commands, in the order of the help. One function for each file of this folder that has some.
using Commands = std::vector<std::unique_ptr<Command>>;
void AddGenerate(Commands& commands);
void AddChat(Commands& commands);
void AddScore(Commands& commands);
void AddTokens(Commands& commands);
void AddSessions(Commands& commands);
void AddSnapshots(Commands& commands);
void AddModels(Commands& commands);
void AddTop(Commands& commands);
void AddBench(Commands& commands);

// -- Small things that several commands need

// "sessions/x" from "x" or "sessions/x"; empty stays empty.
std::string ResourceName(absl::string_view collection, absl::string_view name);
// The whole of a file, or of stdin for "-".
absl::StatusOr<std::string> ReadAll(const std::string& path);
// The whole to a file, which appears whole or not at all, or to stdout for "-". `mode` as in WholeFile.
absl::Status WriteAll(const std::string& path, absl::string_view bytes, mode_t mode = 0666);
// The offset of the first byte that is not valid UTF-8, or npos.
size_t FindInvalidUtf8(absl::string_view text);
absl::Status CheckUtf8(absl::string_view text, absl::string_view source);
// \n, \t, \", \\, \xHH and so on, as in C.
absl::StatusOr<std::string> Unescape(absl::string_view flag, const std::string& text);
// A message as JSON with the proto's field names; on one line, or indented.
std::string ToJson(const google::protobuf::Message& message, bool indented);
void SetDuration(absl::Duration time, google::protobuf::Duration* proto);
// "2026-01-31 23:59:58" in local time; "-" if unset.
std::string FormatTime(bool set, int64_t seconds);

}  // namespace palimpsest::cli
