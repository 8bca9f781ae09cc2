// The command line `palimpsest`: finds the subcommand, parses its flags, runs it, turns its status into an exit code.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "clients/cpp/cli/command.h"

namespace palimpsest::cli {
namespace {

constexpr char kVersion[] = PALIMPSEST_VERSION;
constexpr int kUsage = 2;

constexpr char kEpilogue[] = R"(
Flags of a command: palimpsest COMMAND --help. Names may be given with or without their collection: sessions/a or a.

The server is --server ADDRESS, or the environment variable PALIMPSEST_SERVER, or localhost:50051.
Who calls is said by --token_file FILE, or the environment variable PALIMPSEST_TOKEN.
Exit codes: 0 done, 1 an error (of the server or of a file), 2 wrong usage, 130 interrupted.

A first tour:
  palimpsest generate "Once upon a time" --max_tokens 200 --stats
  palimpsest session create story
  palimpsest generate "It was a dark night." --session story
  palimpsest session fork story --count 3
  palimpsest score book.txt
  palimpsest top
)";

Commands AllCommands() {
  Commands commands;
  AddGenerate(commands);
  AddChat(commands);
  AddScore(commands);
  AddTokens(commands);
  AddSessions(commands);
  AddSnapshots(commands);
  AddModels(commands);
  AddTop(commands);
  AddBench(commands);
  return commands;
}

// The commands whose names begin with the word `group`, or all.
std::string ListCommands(const Commands& commands, absl::string_view group) {
  std::string text;
  for (const auto& command : commands) {
    const Command::Info& info = command->info();
    if (!group.empty() && !absl::StartsWith(info.name, absl::StrCat(group, " "))) continue;
    absl::StrAppend(&text, "  ", info.name, std::string(std::max<int>(2, 22 - info.name.size()), ' '), info.summary,
                    "\n");
  }
  return text;
}

std::string Overview(const Commands& commands) {
  return absl::StrCat("palimpsest: the command line of the Palimpsest inference server\n\nUsage: palimpsest COMMAND ",
                      "[ARGUMENTS] [--FLAGS]\n\nCommands:\n", ListCommands(commands, ""), kEpilogue);
}

std::string CommandHelp(const Command& command, const FlagSet& flags, int width) {
  const Command::Info& info = command.info();
  return absl::StrCat("Usage: palimpsest ", info.name, info.arguments.empty() ? "" : " ", info.arguments,
                      " [--FLAGS]\n\n", Wrap(info.description, 0, width), "\n", flags.Help(width));
}

void PrintError(const Terminal& terminal, absl::string_view message) {
  std::fprintf(stderr, "%s %s\n", terminal.Err(Style::kRed, "palimpsest:").c_str(), std::string(message).c_str());
}

// Puts flags that stand before the command behind it.
std::vector<std::string> CommandFirst(const std::vector<std::string>& arguments) {
  size_t at = 0;
  while (at < arguments.size() && absl::StartsWith(arguments[at], "--")) {
    const bool value_follows = !absl::StrContains(arguments[at], "=") && arguments[at] != "--help" &&
                               arguments[at] != "--version" && arguments[at] != "--tls" &&
                               arguments[at] != "--round_robin" && arguments[at] != "--allow_insecure_token";
    at += value_follows ? 2 : 1;
  }
  std::vector<std::string> rotated = arguments;
  if (at < arguments.size()) std::rotate(rotated.begin(), rotated.begin() + at, rotated.end());
  return rotated;
}

int Main(std::vector<std::string> arguments) {
  Interrupt interrupt;  // before gRPC starts its threads
  const Commands commands = AllCommands();
  arguments = CommandFirst(arguments);
  if (arguments.empty()) {
    std::fputs(Overview(commands).c_str(), stderr);
    return kUsage;
  }
  bool help = false;
  if (arguments[0] == "help" || arguments[0] == "--help" || arguments[0] == "-h") {
    help = true;
    arguments.erase(arguments.begin());
    if (arguments.empty()) {
      std::fputs(Overview(commands).c_str(), stdout);
      return 0;
    }
  }
  if (arguments[0] == "--version" || arguments[0] == "version") {
    std::printf("palimpsest %s\n", kVersion);
    return 0;
  }

  // `palimpsest models` alone lists them.
  if (arguments[0] == "models" && !help &&
      (arguments.size() == 1 || (absl::StartsWith(arguments[1], "--") && arguments[1] != "--help"))) {
    arguments.insert(arguments.begin() + 1, "list");
  }

  // The longest name that the arguments begin with.
  Command* command = nullptr;
  size_t words = 0;
  for (const auto& candidate : commands) {
    const std::vector<std::string> name = absl::StrSplit(candidate->info().name, ' ');
    if (name.size() > words && name.size() <= arguments.size() &&
        std::equal(name.begin(), name.end(), arguments.begin())) {
      command = candidate.get();
      words = name.size();
    }
  }
  if (command == nullptr) {
    const std::string group = ListCommands(commands, arguments[0]);
    const bool asked = help || (arguments.size() > 1 && (arguments[1] == "--help" || arguments[1] == "-h"));
    if (group.empty()) {
      PrintError(Terminal(), absl::StrCat("there is no command ", arguments[0], "; palimpsest --help lists them"));
      return kUsage;
    }
    std::fprintf(asked ? stdout : stderr, "Commands of palimpsest %s:\n%s", arguments[0].c_str(), group.c_str());
    return asked ? 0 : kUsage;
  }
  arguments.erase(arguments.begin(), arguments.begin() + words);

  FlagSet flags;
  ServerFlags server;
  if (const char* address = std::getenv("PALIMPSEST_SERVER"); address != nullptr && *address != '\0') {
    server.server = address;
  }
  // As OpenTelemetry has it: a program hands its trace to those that it starts in these two.
  if (const char* parent = std::getenv("TRACEPARENT"); parent != nullptr) server.traceparent = parent;
  if (const char* state = std::getenv("TRACESTATE"); state != nullptr) server.tracestate = state;
  std::string color = "auto";
  flags.Group("Flags");
  command->AddFlags(flags);
  if (command->info().uses_server) server.Add(flags);
  if (command->info().reads_metrics) server.CredentialFlags::Add(flags);
  flags.Group("General");
  flags.Add("color", &color, "WHEN", "auto (on a terminal), always or never; NO_COLOR is heeded");
  flags.Add("help", &help, "", "show this text");

  std::replace(arguments.begin(), arguments.end(), std::string("-h"), std::string("--help"));
  const absl::StatusOr<std::vector<std::string>> positional = flags.Parse(arguments);
  const Terminal terminal(color);
  if (help) {
    std::fputs(CommandHelp(*command, flags, std::min(terminal.width(), 100)).c_str(), stdout);
    return 0;
  }
  absl::Status status = positional.ok() ? absl::OkStatus() : UsageError(positional.status().message());
  if (status.ok() && color != "auto" && color != "always" && color != "never") {
    status = UsageError(absl::StrCat("--color is auto, always or never, not \"", color, "\""));
  }
  if (status.ok() &&
      (positional->size() < command->info().min_arguments || positional->size() > command->info().max_arguments)) {
    status =
        UsageError(command->info().arguments.empty()
                       ? absl::StrCat(command->info().name, " takes no arguments")
                       : absl::StrCat(command->info().name, " takes ", command->info().arguments, "; ",
                                      positional->empty() ? "none was given"
                                                          : absl::StrCat("given: ", absl::StrJoin(*positional, " "))));
  }
  if (status.ok()) {
    Context context{terminal, interrupt, server, *positional};
    status = command->Run(context);
  }
  std::fflush(stdout);
  if (interrupt.exit_code() != 0) {
    PrintError(terminal, "interrupted");
    return interrupt.exit_code();
  }
  if (status.ok()) return 0;
  if (IsUsageError(status)) {
    PrintError(terminal, status.message());
    std::fprintf(stderr, "See palimpsest %s --help.\n", command->info().name.c_str());
    return kUsage;
  }
  PrintError(terminal, absl::StrCat(absl::StatusCodeToString(status.code()), ": ", status.message()));
  if (absl::IsUnauthenticated(status)) {
    std::fputs("  --token_file or the environment variable PALIMPSEST_TOKEN say who calls\n", stderr);
  }
  return 1;
}

}  // namespace
}  // namespace palimpsest::cli

int main(int argc, char** argv) {
  // gRPC's own words about connections are for its developers; ours come with the status.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  return palimpsest::cli::Main(std::vector<std::string>(argv + 1, argv + argc));
}
