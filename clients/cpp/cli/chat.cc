// `palimpsest chat`: a loop on one session. Each line is appended and the model's continuation streams back.
//
// Undo works by copies: before each turn the session is forked on the server, which costs one state, whatever its
// length; /undo makes the session anew from the last fork, under the same name.
#include <unistd.h>

#include <cstdio>
#include <deque>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "clients/cpp/cli/command.h"
#include "clients/cpp/cli/sampling_flags.h"

namespace palimpsest::cli {
namespace {

constexpr char kHelp[] =
    "  a line      appends it and streams the reply; an empty line goes on\n"
    "  /undo       back to before the last turn\n"
    "  /reset      forget everything\n"
    "  /save FILE  write the state to a file\n"
    "  /load FILE  go on from a file's state\n"
    "  /info       the session's name, position and bytes\n"
    "  /quit       end\n";

class Chat : public Command {
 public:
  Chat()
      : Command({.name = "chat",
                 .summary = "talk with a model: a loop on one session",
                 .description = absl::StrCat(
                     "Reads lines from stdin; each is appended to one session and the reply streams back. The models "
                     "served continue text: --template says how a line is put before them. Ctrl-C stops a reply; at "
                     "the prompt it quits.\n\nWithout --session a session is made, and deleted at the end.\n\nCommands "
                     "inside:\n",
                     kHelp)}) {}

  void AddFlags(FlagSet& flags) override {
    flags.Add("model", &model_, "MODEL", "which model; not needed when the server has one");
    flags.Add("session", &session_, "SESSION", "talk on this session, which is made if it does not exist, and kept");
    flags.Add("template", &template_, "TEXT", "what is sent for a line; {} stands for it (\\n and so on as in C)");
    flags.Add("separator", &separator_, "TEXT", "sent before every line but the first");
    flags.Add("undo_depth", &undo_depth_, "N", "turns that /undo can go back; each keeps one state on the server");
    sampling_.Add(flags);
  }

  absl::Status Run(Context& context) override {
    context_ = &context;
    ASSIGN_OR_RETURN(template_, Unescape("template", template_));
    ASSIGN_OR_RETURN(separator_, Unescape("separator", separator_));
    if (!absl::StrContains(template_, "{}")) return UsageError("--template must contain {}, where the line goes");
    RETURN_IF_ERROR(sampling_.Fill(request_));
    if (!sampling_.max_tokens) request_.mutable_stop()->set_max_tokens(120);
    ASSIGN_OR_RETURN(client_, context.Connect());
    RETURN_IF_ERROR(Open());
    const absl::Status status = Loop();
    for (const std::string& fork : undo_) (void)client_->DeleteSession(fork);
    if (!keep_) (void)client_->DeleteSession(name_);
    return status;
  }

 private:
  static constexpr absl::Duration kTimeToLive = absl::Hours(1);  // of what is left behind if this process dies

  absl::Status Open() {
    keep_ = !session_.empty();
    if (keep_) {
      name_ = ResourceName("sessions", session_);
      const absl::StatusOr<v1::Session> found = client_->GetSession(name_, context_->Call());
      if (found.ok()) {
        begun_ = found->position() > 0;
        model_name_ = found->model();
        return absl::OkStatus();
      }
      if (!absl::IsNotFound(found.status())) return found.status();
    }
    v1::CreateSessionRequest create;
    create.mutable_session()->set_model(ResourceName("models", model_));
    return Create(create);
  }

  // Makes the session; under the name that it had, if it had one.
  absl::Status Create(v1::CreateSessionRequest& create) {
    if (!name_.empty()) create.set_session_id(name_.substr(name_.find('/') + 1));
    if (!keep_) create.mutable_session()->mutable_ttl()->set_seconds(absl::ToInt64Seconds(kTimeToLive));
    ASSIGN_OR_RETURN(const v1::Session made, client_->CreateSession(create, context_->Call()));
    name_ = made.name();
    model_name_ = made.model();
    begun_ = made.position() > 0;
    return absl::OkStatus();
  }

  // Puts another state in the session's place.
  absl::Status Replace(v1::CreateSessionRequest& create) {
    RETURN_IF_ERROR(client_->DeleteSession(name_));
    create.mutable_session()->set_model(model_name_);
    return Create(create);
  }

  absl::Status Loop() {
    const bool prompt = isatty(STDIN_FILENO) && context_->terminal.out_is_terminal();
    if (prompt) {
      std::printf("%s\n", context_->terminal
                              .Out(Style::kDim, absl::StrCat(name_, " of ", model_name_, "; /help lists the commands"))
                              .c_str());
    }
    LineReader reader;
    while (true) {
      if (prompt) std::printf("%s", context_->terminal.Out(Style::kCyan, "> ").c_str());
      std::fflush(stdout);
      std::string line;
      {
        const Interrupt::Scope scope(context_->interrupt);
        const LineReader::Result result = reader.Next(scope, &line);
        if (result == LineReader::Result::kInterrupted) return absl::CancelledError("interrupted");
        if (result == LineReader::Result::kEnd) {
          if (prompt) std::puts("");
          return absl::OkStatus();
        }
      }
      if (line == "/quit" || line == "/exit") return absl::OkStatus();
      const absl::Status status = absl::StartsWith(line, "/") ? Do(line) : Say(line);
      if (absl::IsUnavailable(status)) return status;
      if (!status.ok()) {
        std::fprintf(stderr, "%s %s\n", context_->terminal.Err(Style::kRed, "error:").c_str(),
                     std::string(status.message()).c_str());
      }
    }
  }

  absl::Status Say(const std::string& line) {
    RETURN_IF_ERROR(CheckUtf8(line, "the line"));
    if (line.empty() && !begun_) return absl::InvalidArgumentError("there is nothing to go on from yet");
    RETURN_IF_ERROR(Remember());
    request_.set_session(name_);
    request_.clear_prompt();
    if (!line.empty()) {
      request_.set_text(absl::StrCat(begun_ ? separator_ : "", absl::StrReplaceAll(template_, {{"{}", line}})));
    }
    Interrupt::Scope scope(context_->interrupt);
    const auto stream = client_->Generate(request_, context_->Call(scope.cancellation()));
    bool any = false;
    for (v1::GenerateResponse message; stream->Next(message);) {
      std::fwrite(message.text().data(), 1, message.text().size(), stdout);
      std::fflush(stdout);
      any = true;
    }
    const absl::Status status = stream->Finish().status();
    if (status.ok() || any || scope.interrupted()) {
      begun_ = true;
      std::puts("");
    } else {
      ForgetLast();  // refused: there is nothing to undo
    }
    if (scope.interrupted()) {
      context_->interrupt.Forgive();
      return absl::OkStatus();
    }
    return status;
  }

  // Copies the session as it stands before a turn.
  absl::Status Remember() {
    if (undo_depth_ <= 0) return absl::OkStatus();
    v1::ForkSessionRequest fork;
    fork.set_name(name_);
    fork.mutable_ttl()->set_seconds(absl::ToInt64Seconds(kTimeToLive));
    ASSIGN_OR_RETURN(const std::vector<v1::Session> copies, client_->ForkSession(fork, context_->Call()));
    for (const v1::Session& copy : copies) undo_.push_back(copy.name());
    while (static_cast<int64_t>(undo_.size()) > undo_depth_) {
      (void)client_->DeleteSession(undo_.front());
      undo_.pop_front();
    }
    return absl::OkStatus();
  }

  void ForgetLast() {
    if (undo_.empty()) return;
    (void)client_->DeleteSession(undo_.back());
    undo_.pop_back();
  }

  absl::Status Do(const std::string& line) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(line, absl::MaxSplits(' ', 1));
    const auto& [command, argument] = parts;
    if (command == "/help") {
      std::fputs(kHelp, stdout);
      return absl::OkStatus();
    }
    if (command == "/info") return PrintInfo();
    if (command == "/undo") return Undo();
    if (command == "/reset") {
      v1::CreateSessionRequest create;
      return Replace(create);
    }
    if (command == "/save" || command == "/load") {
      if (argument.empty()) return absl::InvalidArgumentError(absl::StrCat(command, " needs a file's name"));
      return command == "/save" ? Save(argument) : Load(argument);
    }
    return absl::InvalidArgumentError(absl::StrCat("there is no ", command, "; /help lists the commands"));
  }

  absl::Status PrintInfo() {
    ASSIGN_OR_RETURN(const v1::Session session, client_->GetSession(name_, context_->Call()));
    std::printf("%s of %s: %s tokens read, state of %s bytes, turns to undo: %zu\n", session.name().c_str(),
                session.model().c_str(), FormatCount(session.position()).c_str(),
                FormatCount(session.state_bytes()).c_str(), undo_.size());
    return absl::OkStatus();
  }

  absl::Status Undo() {
    if (undo_.empty()) return absl::FailedPreconditionError("there is no turn to undo");
    const std::string fork = undo_.back();
    RETURN_IF_ERROR(client_->GetSession(fork, context_->Call()).status());  // it may have expired: lose nothing then
    v1::CreateSessionRequest create;
    create.set_source_session(fork);
    const absl::Status status = Replace(create);
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat(status.message(), "\n  the earlier state is in ", fork));
    }
    ForgetLast();
    return absl::OkStatus();
  }

  absl::Status Save(const std::string& path) {
    v1::CreateSnapshotRequest create;
    create.set_session(name_);
    create.mutable_snapshot()->mutable_ttl()->set_seconds(600);
    ASSIGN_OR_RETURN(const v1::Snapshot snapshot, client_->CreateSnapshot(create, context_->Call()));
    const absl::Status status = client_->DownloadSnapshotFile(snapshot.name(), path, context_->Call()).status();
    (void)client_->DeleteSnapshot(snapshot.name());
    RETURN_IF_ERROR(status);
    std::printf("%s: %s bytes, %s tokens read\n", path.c_str(), FormatCount(snapshot.size_bytes()).c_str(),
                FormatCount(snapshot.position()).c_str());
    return absl::OkStatus();
  }

  absl::Status Load(const std::string& path) {
    client::UploadSnapshotOptions what;
    what.model = model_name_;
    what.ttl = absl::Minutes(10);
    ASSIGN_OR_RETURN(const v1::Snapshot snapshot, client_->UploadSnapshotFile(what, path, context_->Call()));
    RETURN_IF_ERROR(Remember());
    v1::CreateSessionRequest create;
    create.set_source_snapshot(snapshot.name());
    const absl::Status status = Replace(create);
    (void)client_->DeleteSnapshot(snapshot.name());
    RETURN_IF_ERROR(status);
    std::printf("%s: %s tokens read\n", path.c_str(), FormatCount(snapshot.position()).c_str());
    return absl::OkStatus();
  }

  std::string model_, session_;
  std::string template_ = "{}\\n";
  std::string separator_ = "\\n\\n";
  int64_t undo_depth_ = 8;
  SamplingFlags sampling_;

  Context* context_ = nullptr;
  std::unique_ptr<client::Client> client_;
  v1::GenerateRequest request_;
  std::string name_;              // of the session
  std::string model_name_;        // its model's
  bool keep_ = false;             // the user named the session: it stays
  bool begun_ = false;            // it has read something
  std::deque<std::string> undo_;  // forks, oldest first
};

}  // namespace

void AddChat(Commands& commands) { commands.push_back(std::make_unique<Chat>()); }

}  // namespace palimpsest::cli
