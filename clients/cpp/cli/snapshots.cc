// `palimpsest snapshot ...`.
#include <unistd.h>

#include <cstdio>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "clients/cpp/cli/command.h"
#include "clients/cpp/cli/resource_commands.h"

namespace palimpsest::cli {
namespace {

void PrintTable(const Context& context, const std::vector<v1::Snapshot>& snapshots) {
  Table table({"NAME", "MODEL", ">POSITION", ">BYTES", "STATE DIGEST", "CREATED", "EXPIRES", "OWNER"});
  for (const v1::Snapshot& snapshot : snapshots) {
    table.Add({snapshot.name(), snapshot.model(), FormatCount(snapshot.position()), FormatCount(snapshot.size_bytes()),
               snapshot.state_digest().substr(0, 12),
               FormatTime(snapshot.has_create_time(), snapshot.create_time().seconds()),
               FormatTime(snapshot.has_expire_time(), snapshot.expire_time().seconds()), snapshot.owner()});
  }
  std::fputs(table.Render(context.terminal).c_str(), stdout);
}

class Create : public Command {
 public:
  Create()
      : Command({.name = "snapshot create",
                 .arguments = "SESSION [ID]",
                 .summary = "keep a session's state as it is now",
                 .description = "Makes a snapshot of a session. Without ID the server makes up a name.",
                 .max_arguments = 2}) {}
  void AddFlags(FlagSet& flags) override {
    flags.Add("session", &session_, "SESSION", "another way to give SESSION");
    flags.Add("id", &id_, "ID", "another way to give ID");
    flags.Add("ttl", &ttl_, "TIME", "delete it after this long; not given: never");
    flags.Add("json", &json_, "", "print JSON");
  }
  absl::Status Run(Context& context) override {
    for (const std::string& argument : context.arguments) {
      std::string& next = session_.empty() ? session_ : id_;
      if (!next.empty()) return UsageError("SESSION and ID are given twice");
      next = argument;
    }
    if (session_.empty()) return UsageError("snapshot create takes SESSION [ID]; none was given");
    v1::CreateSnapshotRequest request;
    request.set_session(ResourceName("sessions", session_));
    request.set_snapshot_id(std::string(absl::StripPrefix(id_, "snapshots/")));
    if (ttl_) SetDuration(*ttl_, request.mutable_snapshot()->mutable_ttl());
    ASSIGN_OR_RETURN(const auto client, context.Connect());
    ASSIGN_OR_RETURN(const v1::Snapshot snapshot, client->CreateSnapshot(request, context.Call()));
    PrintResources(context, {snapshot}, json_, /*as_list=*/false, PrintTable);
    return absl::OkStatus();
  }

 private:
  std::string session_, id_;
  std::optional<absl::Duration> ttl_;
  bool json_ = false;
};

class Download : public Command {
 public:
  Download()
      : Command({.name = "snapshot download",
                 .arguments = "SNAPSHOT FILE",
                 .summary = "write a snapshot to a file",
                 .description = "Writes a snapshot's bytes to FILE, or to stdout for -. Another server with the same "
                                "model takes them up with snapshot upload.",
                 .min_arguments = 2,
                 .max_arguments = 2}) {}
  absl::Status Run(Context& context) override {
    const std::string name = ResourceName("snapshots", context.arguments[0]);
    const std::string& path = context.arguments[1];
    if (path == "-" && context.terminal.out_is_terminal()) {
      return UsageError("a snapshot is binary: give a file, or redirect stdout");
    }
    ASSIGN_OR_RETURN(const auto client, context.Connect());
    Interrupt::Scope scope(context.interrupt);
    if (path == "-") {
      ASSIGN_OR_RETURN(const std::string bytes,
                       client->DownloadSnapshotBytes(name, context.Call(scope.cancellation())));
      return WriteAll(path, bytes);
    }
    ASSIGN_OR_RETURN(const v1::Snapshot snapshot,
                     client->DownloadSnapshotFile(name, path, context.Call(scope.cancellation())));
    std::fprintf(stderr, "%s: %s bytes\n", path.c_str(), FormatCount(snapshot.size_bytes()).c_str());
    return absl::OkStatus();
  }
};

class Upload : public Command {
 public:
  Upload()
      : Command({.name = "snapshot upload",
                 .arguments = "FILE [ID]",
                 .summary = "bring a snapshot's file to the server",
                 .description = "Sends a file that snapshot download, generate --state_out or chat's /save wrote. The "
                                "server checks that it is complete and belongs to a model that it has.",
                 .min_arguments = 1,
                 .max_arguments = 2}) {}
  void AddFlags(FlagSet& flags) override {
    flags.Add("model", &model_, "MODEL", "which model; not needed when the server has one");
    flags.Add("ttl", &ttl_, "TIME", "delete it after this long; not given: never");
    flags.Add("json", &json_, "", "print JSON");
  }
  absl::Status Run(Context& context) override {
    client::UploadSnapshotOptions what;
    if (context.arguments.size() > 1)
      what.snapshot_id = std::string(absl::StripPrefix(context.arguments[1], "snapshots/"));
    what.model = ResourceName("models", model_);
    what.ttl = ttl_.value_or(absl::ZeroDuration());
    ASSIGN_OR_RETURN(const auto client, context.Connect());
    Interrupt::Scope scope(context.interrupt);
    ASSIGN_OR_RETURN(const v1::Snapshot snapshot,
                     client->UploadSnapshotFile(what, context.arguments[0], context.Call(scope.cancellation())));
    PrintResources(context, {snapshot}, json_, /*as_list=*/false, PrintTable);
    return absl::OkStatus();
  }

 private:
  std::string model_;
  std::optional<absl::Duration> ttl_;
  bool json_ = false;
};

}  // namespace

void AddSnapshots(Commands& commands) {
  commands.push_back(std::make_unique<Create>());
  commands.push_back(std::make_unique<ShowCommand<v1::Snapshot>>(
      Command::Info{.name = "snapshot get",
                    .arguments = "SNAPSHOT",
                    .summary = "show a snapshot",
                    .description = "Shows what the server says of a snapshot; --json gives the whole digest.",
                    .min_arguments = 1,
                    .max_arguments = 1},
      [](client::Client& client, const Context& context) {
        return client.GetSnapshot(ResourceName("snapshots", context.arguments[0]), context.Call());
      },
      PrintTable));
  commands.push_back(std::make_unique<ListCommand<v1::Snapshot>>(
      Command::Info{
          .name = "snapshot list", .summary = "list the snapshots", .description = "Lists your snapshots by name."},
      [](client::Client& client, const Context& context, const std::string& owner) {
        return client.ListSnapshots(context.Call(), owner);
      },
      PrintTable));
  commands.push_back(std::make_unique<Download>());
  commands.push_back(std::make_unique<Upload>());
  commands.push_back(std::make_unique<ForEachCommand>(
      Command::Info{.name = "snapshot delete",
                    .arguments = "SNAPSHOT...",
                    .summary = "delete snapshots",
                    .description = "Deletes snapshots, in the order given, up to the first that cannot be. Sessions "
                                   "made from them are not affected.",
                    .min_arguments = 1,
                    .max_arguments = std::numeric_limits<size_t>::max()},
      "snapshots", [](client::Client& client, const Context& context, const std::string& name) {
        return client.DeleteSnapshot(name, context.Call());
      }));
}

}  // namespace palimpsest::cli
