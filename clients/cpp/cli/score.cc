// `palimpsest score`: a file of any length through one session, and what the model thought of it.
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numbers>
#include <string>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "clients/cpp/cli/command.h"
#include "clients/cpp/cli/sessions.h"
#include "clients/cpp/cli/text_pieces.h"

namespace palimpsest::cli {
namespace {

// What has been scored so far.
struct Totals {
  double logprob = 0;  // natural logarithm
  int64_t sent_bytes = 0;
  int64_t scored_bytes = 0;
  int64_t tokens = 0;
  int64_t scored_tokens = 0;

  double NatsPerToken() const { return -logprob / scored_tokens; }
  double BitsPerByte() const { return -logprob / std::numbers::ln2 / scored_bytes; }
};

class Score : public Command {
 public:
  Score()
      : Command({.name = "score",
                 .arguments = "FILE",
                 .summary = "measure how well the model predicts a text of any length",
                 .description =
                     "Sends FILE (- is stdin; UTF-8 text) through one session, in pieces that give the tokens of the "
                     "whole, and prints tokens, nats per token, perplexity and bits per byte. Each token is predicted "
                     "from all of the text before it; the first one, which nothing predicts, does not count. Memory "
                     "stays the same, here and on the server, whatever the file's length.\n\n"
                     "The session is deleted at the end, also after Ctrl-C, which prints what was scored so far.",
                 .min_arguments = 1,
                 .max_arguments = 1}) {}

  void AddFlags(FlagSet& flags) override {
    flags.Add("model", &model_, "MODEL", "which model; not needed when the server has one");
    flags.Add("after", &after_, "SESSION", "score the text as what follows this session, which stays as it is");
    flags.Add("tokens", &tokens_, "", "also print each token: id, log-probability, text");
    flags.Add("json", &json_, "", "print JSON");
    flags.Add("piece_bytes", &piece_bytes_, "N", "most bytes of text in one call");
  }

  absl::Status Run(Context& context) override {
    if (tokens_ && json_) return UsageError("--tokens and --json exclude each other");
    if (piece_bytes_ < 16) return UsageError("--piece_bytes is at least 16");
    const std::string& path = context.arguments[0];
    const int fd = path == "-" ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
    const absl::Cleanup close_file = [fd] {
      if (fd != STDIN_FILENO) close(fd);
    };
    struct stat info;
    const int64_t file_bytes = fstat(fd, &info) == 0 && S_ISREG(info.st_mode) ? info.st_size : 0;

    ASSIGN_OR_RETURN(const std::unique_ptr<client::Client> client, context.Connect());
    v1::CreateSessionRequest create;
    create.mutable_session()->set_model(ResourceName("models", model_));
    create.mutable_session()->mutable_ttl()->set_seconds(120);  // each piece begins it anew
    if (!after_.empty()) create.set_source_session(ResourceName("sessions", after_));
    ASSIGN_OR_RETURN(const v1::Session session, client->CreateSession(create, context.Call()));

    const absl::Time start = absl::Now();
    Totals totals;
    absl::Status status;
    {
      Interrupt::Scope scope(context.interrupt);
      status = ScoreAll(*client, context, scope, session.name(), fd, file_bytes, totals);
      // Within the scope: an impatient second Ctrl-C still ends the process, the first leaves nothing behind.
      const absl::Status deleted = DeleteWhenFree(*client, session.name());
      if (status.ok()) status = deleted;
    }
    if (totals.sent_bytes > 0 && (status.ok() || context.interrupt.exit_code() != 0)) {
      Report(context.terminal, path, session.model(), totals, absl::ToDoubleSeconds(absl::Now() - start));
    } else if (status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path == "-" ? "stdin" : path, " is empty: there is nothing to score"));
    }
    return status;
  }

 private:
  absl::Status ScoreAll(client::Client& client, const Context& context, Interrupt::Scope& scope,
                        const std::string& session, int fd, int64_t file_bytes, Totals& totals) {
    TextPieces pieces([&](char* to, size_t bytes) { return Read(fd, scope, to, bytes); }, piece_bytes_);
    ProgressLine progress(context.terminal);
    const absl::Time start = absl::Now();
    while (true) {
      v1::ScoreRequest request;
      ASSIGN_OR_RETURN(*request.mutable_text(), pieces.Next());
      if (request.text().empty()) return absl::OkStatus();
      if (const size_t at = FindInvalidUtf8(request.text()); at != std::string::npos) {
        return absl::InvalidArgumentError(
            absl::StrCat("byte ", totals.sent_bytes + at, " of the text is not part of valid UTF-8"));
      }
      request.set_session(session);
      request.set_return_tokens(tokens_);
      ASSIGN_OR_RETURN(const v1::ScoreResponse response, ScorePatiently(client, context, scope, request));
      totals.logprob += response.total_logprob();
      totals.sent_bytes += request.text().size();
      totals.scored_bytes += response.scored_bytes();
      totals.scored_tokens += response.scored_tokens();
      totals.tokens += response.usage().prompt_tokens();
      if (tokens_) {
        progress.Clear();
        PrintTokens(response);
      }
      if (progress.Due()) progress.Show(ProgressText(context.terminal, totals, file_bytes, absl::Now() - start));
    }
  }

  // Waits and tries again when the server's queue is full: then it has not taken the text.
  static absl::StatusOr<v1::ScoreResponse> ScorePatiently(client::Client& client, const Context& context,
                                                          Interrupt::Scope& scope, const v1::ScoreRequest& request) {
    while (true) {
      absl::StatusOr<v1::ScoreResponse> response = client.Score(request, context.Call(scope.cancellation()));
      const std::optional<absl::Duration> delay = client::RetryDelay(response.status());
      if (!absl::IsResourceExhausted(response.status()) || !delay) return response;
      if (!scope.SleepFor(*delay)) return absl::CancelledError("interrupted");
    }
  }

  static absl::StatusOr<size_t> Read(int fd, const Interrupt::Scope& scope, char* to, size_t bytes) {
    while (true) {
      pollfd fds[] = {{fd, POLLIN, 0}, {scope.fd(), POLLIN, 0}};
      if (poll(fds, 2, -1) < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "cannot read");
      if (fds[1].revents != 0) return absl::CancelledError("interrupted");
      const ssize_t count = read(fd, to, bytes);
      if (count >= 0) return count;
      if (errno != EINTR) return absl::ErrnoToStatus(errno, "cannot read");
    }
  }

  static void PrintTokens(const v1::ScoreResponse& response) {
    for (const v1::ScoredToken& token : response.tokens()) {
      const std::string logprob = token.has_logprob() ? absl::StrFormat("%.4f", token.logprob()) : "-";
      std::printf("%d\t%s\t\"%s\"\n", token.id(), logprob.c_str(), absl::Utf8SafeCEscape(token.token()).c_str());
    }
  }

  static std::string ProgressText(const Terminal& terminal, const Totals& totals, int64_t file_bytes,
                                  absl::Duration elapsed) {
    const double rate = totals.sent_bytes / absl::ToDoubleSeconds(elapsed);
    std::string text;
    if (file_bytes > 0) {
      const double share = std::min(1.0, static_cast<double>(totals.sent_bytes) / file_bytes);
      text = absl::StrFormat("%s %3.0f%%  ETA %s  ", terminal.Err(Style::kCyan, Bar(share, 24)), 100 * share,
                             FormatSeconds((file_bytes - totals.sent_bytes) / rate));
    } else {
      text = absl::StrCat(FormatBytes(totals.sent_bytes), "  ");
    }
    return absl::StrFormat("%s%s tokens  %s tokens/s  %.4f bits/byte", text, FormatCount(totals.tokens),
                           FormatCount(std::llround(totals.tokens / absl::ToDoubleSeconds(elapsed))),
                           totals.BitsPerByte());
  }

  void Report(const Terminal& terminal, const std::string& path, const std::string& model, const Totals& totals,
              double seconds) const {
    const bool any = totals.scored_tokens > 0 && totals.scored_bytes > 0;
    if (json_) {
      const auto number = [any](double value) { return any ? nlohmann::ordered_json(value) : nullptr; };
      const nlohmann::ordered_json json = {{"file", path},
                                           {"model", model},
                                           {"bytes", totals.sent_bytes},
                                           {"scored_bytes", totals.scored_bytes},
                                           {"tokens", totals.tokens},
                                           {"scored_tokens", totals.scored_tokens},
                                           {"total_logprob", totals.logprob},
                                           {"nats_per_token", number(totals.NatsPerToken())},
                                           {"perplexity", number(std::exp(totals.NatsPerToken()))},
                                           {"bits_per_byte", number(totals.BitsPerByte())},
                                           {"seconds", seconds},
                                           {"tokens_per_second", totals.tokens / seconds}};
      std::puts(json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
      return;
    }
    const auto line = [&](absl::string_view name, absl::string_view value) {
      std::printf("%-16s%s\n", std::string(name).c_str(), std::string(value).c_str());
    };
    line("model", model);
    line("bytes", absl::StrCat(FormatCount(totals.sent_bytes), " (", FormatCount(totals.scored_bytes), " scored)"));
    line("tokens", absl::StrCat(FormatCount(totals.tokens), " (", FormatCount(totals.scored_tokens), " scored)"));
    line("nats per token", any ? absl::StrFormat("%.4f", totals.NatsPerToken()) : "-");
    line("perplexity", any ? absl::StrFormat("%.3f", std::exp(totals.NatsPerToken())) : "-");
    line("bits per byte", terminal.Out(Style::kBold, any ? absl::StrFormat("%.4f", totals.BitsPerByte()) : "-"));
    line("time",
         absl::StrCat(FormatSeconds(seconds), " (", FormatCount(std::llround(totals.tokens / seconds)), " tokens/s)"));
  }

  std::string model_, after_;
  bool tokens_ = false, json_ = false;
  int64_t piece_bytes_ = 16384;
};

}  // namespace

void AddScore(Commands& commands) { commands.push_back(std::make_unique<Score>()); }

}  // namespace palimpsest::cli
