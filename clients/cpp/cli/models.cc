// `palimpsest models ...` and `palimpsest health`.
#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "clients/cpp/cli/command.h"
#include "clients/cpp/cli/resource_commands.h"

namespace palimpsest::cli {
namespace {

std::string ConditionText(const Terminal& terminal, v1::Model::Condition condition) {
  switch (condition) {
    case v1::Model::CONDITION_LOADING:
      return terminal.Out(Style::kYellow, "loading");
    case v1::Model::CONDITION_READY:
      return terminal.Out(Style::kGreen, "ready");
    case v1::Model::CONDITION_UNLOADING:
      return terminal.Out(Style::kYellow, "unloading");
    default:
      return "unspecified";
  }
}

void PrintOne(const Context& context, const std::vector<v1::Model>& models) {
  const v1::Model& model = models.front();
  const std::pair<const char*, std::string> lines[] = {
      {"name", model.name()},
      {"condition", ConditionText(context.terminal, model.condition())},
      {"architecture", model.architecture()},
      {"parameters", FormatCount(model.parameter_count())},
      {"weights", absl::StrCat(FormatCount(model.weight_bytes()), " bytes of ", model.weight_dtype())},
      {"vocabulary", absl::StrCat(FormatCount(model.vocabulary_size()), " (", model.tokenizer(), ")")},
      {"state", absl::StrCat(FormatCount(model.state_bytes()), " bytes")},
      {"context", model.max_context_tokens() == 0 ? "any number of tokens"
                                                  : absl::StrCat(FormatCount(model.max_context_tokens()), " tokens")},
      {"slots", FormatCount(model.slots())},
      {"fingerprint", model.fingerprint()},
      {"backend", model.backend()}};
  for (const auto& [name, value] : lines) std::printf("%-14s%s\n", name, value.c_str());
  // Layers are mostly alike: the first says what each has.
  for (const v1::StatePiece& piece : model.state_pieces()) {
    if (!absl::StartsWith(piece.name(), "layers.0.")) continue;
    std::printf("%-14s%s %s [%s]\n", "  each layer", std::string(absl::StripPrefix(piece.name(), "layers.0.")).c_str(),
                piece.dtype().c_str(), absl::StrJoin(piece.shape(), ", ").c_str());
  }
}

void PrintTable(const Context& context, const std::vector<v1::Model>& models) {
  Table table({"NAME", "CONDITION", "ARCHITECTURE", ">PARAMETERS", "WEIGHTS", ">STATE BYTES", ">SLOTS", "BACKEND"});
  for (const v1::Model& model : models) {
    table.Add({model.name(), ConditionText(context.terminal, model.condition()), model.architecture(),
               FormatCount(model.parameter_count()),
               absl::StrCat(FormatBytes(model.weight_bytes()), " ", model.weight_dtype()),
               FormatCount(model.state_bytes()), FormatCount(model.slots()), model.backend()});
  }
  std::fputs(table.Render(context.terminal).c_str(), stdout);
}

class HealthCheck : public Command {
 public:
  HealthCheck()
      : Command({.name = "health",
                 .arguments = "[SERVICE]",
                 .summary = "ask whether the server serves",
                 .description = "Prints what the server says of itself, or of one service such as "
                                "palimpsest.v1.GenerationService. The exit code is 0 only if it is SERVING.\n\n"
                                "For scripts that start a server: palimpsest health --wait 60s && ...",
                 .max_arguments = 1}) {}
  void AddFlags(FlagSet& flags) override {
    flags.Add("wait", &wait_, "TIME", "go on asking for this long, until the server is there and SERVING");
  }
  absl::Status Run(Context& context) override {
    const Interrupt::Scope scope(context.interrupt);
    const absl::Time give_up = absl::Now() + wait_;
    absl::StatusOr<client::Health> health = Ask(context);
    while (!(health.ok() && *health == client::Health::kServing) && !IsUsageError(health.status()) &&
           absl::Now() < give_up && scope.SleepFor(kAskAgainAfter)) {
      health = Ask(context);
    }
    RETURN_IF_ERROR(health.status());
    const bool serving = *health == client::Health::kServing;
    const std::string name(client::HealthName(*health));
    std::puts(context.terminal.Out(serving ? Style::kGreen : Style::kRed, name).c_str());
    if (!serving) return absl::UnavailableError(absl::StrCat(context.server.server, " is ", name));
    return absl::OkStatus();
  }

 private:
  static constexpr absl::Duration kAskAgainAfter = absl::Milliseconds(50);

  // By a connection of its own, so that no back-off of an earlier one is waited for.
  static absl::StatusOr<client::Health> Ask(const Context& context) {
    ASSIGN_OR_RETURN(const auto client, context.Connect());
    return client->CheckHealth(context.arguments.empty() ? "" : context.arguments[0], context.Call());
  }

  absl::Duration wait_ = absl::ZeroDuration();
};

}  // namespace

void AddModels(Commands& commands) {
  commands.push_back(std::make_unique<ShowCommand<v1::Model>>(
      Command::Info{.name = "models list",
                    .summary = "list the models that are loaded",
                    .description = "Lists the models that the server has loaded."},
      /*as_list=*/true,
      [](client::Client& client, const Context& context) { return client.ListModels(context.Call()); }, PrintTable));
  commands.push_back(std::make_unique<ShowCommand<v1::Model>>(
      Command::Info{.name = "models get",
                    .arguments = "MODEL",
                    .summary = "show a model",
                    .description = "Shows what the server says of a model.",
                    .min_arguments = 1,
                    .max_arguments = 1},
      [](client::Client& client, const Context& context) {
        return client.GetModel(ResourceName("models", context.arguments[0]), context.Call());
      },
      PrintOne));
  commands.push_back(std::make_unique<ShowCommand<v1::Model>>(
      Command::Info{.name = "models load",
                    .arguments = "ID PATH",
                    .summary = "load a checkpoint under a name",
                    .description = "Loads the checkpoint in folder PATH, relative to the server's --model_root, and "
                                   "waits until it is ready.",
                    .min_arguments = 2,
                    .max_arguments = 2},
      [](client::Client& client, const Context& context) {
        const std::string id(absl::StripPrefix(context.arguments[0], "models/"));
        return client.LoadModel(id, context.arguments[1], context.Call());
      },
      PrintOne));
  commands.push_back(std::make_unique<ForEachCommand>(
      Command::Info{.name = "models unload",
                    .arguments = "MODEL",
                    .summary = "unload a model",
                    .description = "Unloads a model once the calls that use it have ended. Its sessions and snapshots "
                                   "are deleted.",
                    .min_arguments = 1,
                    .max_arguments = 1},
      "models", [](client::Client& client, const Context& context, const std::string& name) {
        return client.UnloadModel(name, context.Call());
      }));
  commands.push_back(std::make_unique<HealthCheck>());
}

}  // namespace palimpsest::cli
