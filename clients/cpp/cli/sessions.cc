// `palimpsest session ...`.
#include <cstdio>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "clients/cpp/cli/command.h"
#include "clients/cpp/cli/resource_commands.h"
#include "clients/cpp/cli/sampling_flags.h"

namespace palimpsest::cli {

namespace {

std::string ConditionText(const Terminal& terminal, v1::Session::Condition condition) {
  switch (condition) {
    case v1::Session::CONDITION_IDLE:
      return "idle";
    case v1::Session::CONDITION_ACTIVE:
      return terminal.Out(Style::kGreen, "active");
    case v1::Session::CONDITION_QUARANTINED:
      return terminal.Out(Style::kRed, "quarantined");
    default:
      return "unspecified";
  }
}

std::string TtlText(const v1::Session& session) {
  if (!session.has_ttl() || (session.ttl().seconds() == 0 && session.ttl().nanos() == 0)) return "-";
  return absl::FormatDuration(absl::Seconds(session.ttl().seconds()) + absl::Nanoseconds(session.ttl().nanos()));
}

void PrintTable(const Context& context, const std::vector<v1::Session>& sessions) {
  Table table({"NAME", "MODEL", "CONDITION", ">POSITION", ">STATE BYTES", "TTL", "EXPIRES", "OWNER"});
  for (const v1::Session& session : sessions) {
    table.Add({session.name(), session.model(), ConditionText(context.terminal, session.condition()),
               FormatCount(session.position()), FormatCount(session.state_bytes()), TtlText(session),
               FormatTime(session.has_expire_time(), session.expire_time().seconds()), session.owner()});
  }
  std::fputs(table.Render(context.terminal).c_str(), stdout);
}

class Create : public Command {
 public:
  Create()
      : Command({.name = "session create",
                 .arguments = "[ID]",
                 .summary = "make a session, empty or from a session or snapshot",
                 .description = "Makes a session: a named sequence that outlives a request. Without ID the server "
                                "makes up a name.",
                 .max_arguments = 1}) {}
  void AddFlags(FlagSet& flags) override {
    flags.Add("id", &id_, "ID", "another way to give ID");
    flags.Add("model", &model_, "MODEL", "which model; not needed when the server has one, or with a source");
    flags.Add("from_session", &from_session_, "SESSION", "begin as a copy of this session");
    flags.Add("from_snapshot", &from_snapshot_, "SNAPSHOT", "begin from this snapshot");
    flags.Add("ttl", &ttl_, "TIME", "delete it when unused for so long; 0: never. The server has a default");
    flags.Add("json", &json_, "", "print JSON");
  }
  absl::Status Run(Context& context) override {
    if (!from_session_.empty() && !from_snapshot_.empty()) {
      return UsageError("--from_session and --from_snapshot exclude each other");
    }
    v1::CreateSessionRequest request;
    if (!context.arguments.empty()) {
      if (!id_.empty()) return UsageError("give ID or --id, not both");
      id_ = context.arguments[0];
    }
    request.set_session_id(std::string(absl::StripPrefix(id_, "sessions/")));
    request.mutable_session()->set_model(ResourceName("models", model_));
    if (ttl_) SetDuration(*ttl_, request.mutable_session()->mutable_ttl());
    if (!from_session_.empty()) request.set_source_session(ResourceName("sessions", from_session_));
    if (!from_snapshot_.empty()) request.set_source_snapshot(ResourceName("snapshots", from_snapshot_));
    ASSIGN_OR_RETURN(const auto client, context.Connect());
    ASSIGN_OR_RETURN(const v1::Session session, client->CreateSession(request, context.Call()));
    PrintResources(context, {session}, json_, /*as_list=*/false, PrintTable);
    return absl::OkStatus();
  }

 private:
  std::string id_, model_, from_session_, from_snapshot_;
  std::optional<absl::Duration> ttl_;
  bool json_ = false;
};

class Fork : public Command {
 public:
  Fork()
      : Command({.name = "session fork",
                 .arguments = "SESSION [ID...]",
                 .summary = "copy a session, as often as wanted",
                 .description =
                     "Makes copies of a session: one for each ID, or --count with names that the server "
                     "makes up. All or none are made. A copy costs one state, whatever the session has read.",
                 .min_arguments = 1,
                 .max_arguments = 1025}) {}
  void AddFlags(FlagSet& flags) override {
    flags.Add("count", &count_, "N", "number of copies; the number of IDs, or 1, if not given");
    flags.Add("ttl", &ttl_, "TIME", "of the copies; the parent's if not given");
    flags.Add("json", &json_, "", "print JSON, one session to a line");
  }
  absl::Status Run(Context& context) override {
    v1::ForkSessionRequest request;
    request.set_name(ResourceName("sessions", context.arguments[0]));
    for (size_t i = 1; i < context.arguments.size(); ++i) {
      request.add_session_ids(std::string(absl::StripPrefix(context.arguments[i], "sessions/")));
    }
    ASSIGN_OR_RETURN(const int32_t count, ToInt32("count", count_.value_or(0)));
    request.set_count(count);
    if (ttl_) SetDuration(*ttl_, request.mutable_ttl());
    ASSIGN_OR_RETURN(const auto client, context.Connect());
    ASSIGN_OR_RETURN(const std::vector<v1::Session> copies, client->ForkSession(request, context.Call()));
    PrintResources(context, copies, json_, /*as_list=*/true, PrintTable);
    return absl::OkStatus();
  }

 private:
  std::optional<int64_t> count_;
  std::optional<absl::Duration> ttl_;
  bool json_ = false;
};

class Update : public Command {
 public:
  Update()
      : Command({.name = "session update",
                 .arguments = "SESSION",
                 .summary = "change a session's time to live",
                 .description = "Changes how long a session lives after its last use.",
                 .min_arguments = 1,
                 .max_arguments = 1}) {}
  void AddFlags(FlagSet& flags) override {
    flags.Add("ttl", &ttl_, "TIME", "delete it when unused for so long; 0: never");
    flags.Add("etag", &etag_, "ETAG", "only if the session still has this etag (session get --json shows it)");
    flags.Add("json", &json_, "", "print JSON");
  }
  absl::Status Run(Context& context) override {
    if (!ttl_) return UsageError("--ttl is needed");
    v1::UpdateSessionRequest request;
    request.mutable_session()->set_name(ResourceName("sessions", context.arguments[0]));
    request.mutable_session()->set_etag(etag_);
    SetDuration(*ttl_, request.mutable_session()->mutable_ttl());
    request.mutable_update_mask()->add_paths("ttl");
    ASSIGN_OR_RETURN(const auto client, context.Connect());
    ASSIGN_OR_RETURN(const v1::Session session, client->UpdateSession(request, context.Call()));
    PrintResources(context, {session}, json_, /*as_list=*/false, PrintTable);
    return absl::OkStatus();
  }

 private:
  std::optional<absl::Duration> ttl_;
  std::string etag_;
  bool json_ = false;
};

class Delete : public Command {
 public:
  Delete()
      : Command({.name = "session delete",
                 .arguments = "SESSION...",
                 .summary = "delete sessions",
                 .description = "Deletes sessions, in the order given, up to the first that cannot be. One that a call "
                                "holds can be with --force only.",
                 .min_arguments = 1,
                 .max_arguments = std::numeric_limits<size_t>::max()}) {}
  void AddFlags(FlagSet& flags) override {
    flags.Add("etag", &etag_, "ETAG", "only if the session still has this etag");
    flags.Add("force", &force_, "", "also if a call holds the session, which is ended");
  }
  absl::Status Run(Context& context) override {
    if (!etag_.empty() && context.arguments.size() > 1) return UsageError("--etag goes with one session");
    ASSIGN_OR_RETURN(const auto client, context.Connect());
    for (const std::string& name : context.arguments) {
      RETURN_IF_ERROR(client->DeleteSession(ResourceName("sessions", name), etag_, context.Call(), force_));
    }
    return absl::OkStatus();
  }

 private:
  std::string etag_;
  bool force_ = false;
};

}  // namespace

void AddSessions(Commands& commands) {
  commands.push_back(std::make_unique<Create>());
  commands.push_back(std::make_unique<ShowCommand<v1::Session>>(
      Command::Info{.name = "session get",
                    .arguments = "SESSION",
                    .summary = "show a session",
                    .description = "Shows what the server says of a session.",
                    .min_arguments = 1,
                    .max_arguments = 1},
      [](client::Client& client, const Context& context) {
        return client.GetSession(ResourceName("sessions", context.arguments[0]), context.Call());
      },
      PrintTable));
  commands.push_back(std::make_unique<ListCommand<v1::Session>>(
      Command::Info{
          .name = "session list", .summary = "list the sessions", .description = "Lists your sessions by name."},
      [](client::Client& client, const Context& context, const std::string& owner) {
        return client.ListSessions(context.Call(), owner);
      },
      PrintTable));
  commands.push_back(std::make_unique<Fork>());
  commands.push_back(std::make_unique<Update>());
  commands.push_back(std::make_unique<ForEachCommand>(
      Command::Info{
          .name = "session interrupt",
          .arguments = "SESSION...",
          .summary = "end the calls that hold sessions",
          .description =
              "Ends the call that holds a session, as if its caller had cancelled it: for a reply that nobody "
              "reads any more. The session is free then, at the last token sampled. Of sessions that no call "
              "holds nothing changes.",
          .min_arguments = 1,
          .max_arguments = std::numeric_limits<size_t>::max()},
      "sessions", [](client::Client& client, const Context& context, const std::string& name) {
        return client.InterruptSession(name, context.Call()).status();
      }));
  commands.push_back(std::make_unique<Delete>());
}

}  // namespace palimpsest::cli
