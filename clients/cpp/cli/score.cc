// `palimpsest score`: a file of any length, and what the model thought of it.
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "clients/cpp/cli/command.h"
#include "clients/cpp/cli/in_order.h"
#include "clients/cpp/cli/scoring.h"
#include "clients/cpp/cli/text_pieces.h"

namespace palimpsest::cli {
namespace {

class Score : public Command {
 public:
  Score()
      : Command(
            {.name = "score",
             .arguments = "FILE",
             .summary = "measure how well the model predicts a text of any length",
             .description =
                 "Sends FILE (- is stdin; UTF-8 text) in pieces that give the tokens of the whole, and prints tokens, "
                 "nats per token, perplexity, bits per character and bits per byte. Bytes and characters are those of "
                 "the text that the scored tokens stand for, characters Unicode code points. Where a token is a byte "
                 "by itself, as in a model of enwik8, bits per character are bits per token, as they are published. "
                 "The first token, which nothing predicts, does not count. Words that the vocabulary does not have are "
                 "scored as its unknown token and counted.\n\n"
                 "--protocol carried: each token is predicted from all of the text before it, through one session. "
                 "Memory stays the same, here and on the server, whatever the file's length.\n\n"
                 "--protocol segments: the text is cut into segments of --window tokens, each from an empty state, and "
                 "all of them are scored.\n\n"
                 "--protocol sliding: a window of --window tokens moves over the text by --stride, each from an empty "
                 "state, and scores what is new in it. Each token costs --window / --stride steps.\n\n"
                 "The last two are how models of limited context are evaluated; they send --parallel requests at a "
                 "time.\n\n"
                 "What was made on the server is deleted at the end, also after Ctrl-C, which prints what was scored "
                 "so far.",
             .min_arguments = 1,
             .max_arguments = 1}) {}

  void AddFlags(FlagSet& flags) override {
    flags.Add("model", &model_, "MODEL", "which model; not needed when the server has one");
    flags.Add("protocol", &protocol_, "NAME", "carried, segments or sliding");
    flags.Add("window", &window_, "N", "tokens that the model processes as one segment or window");
    flags.Add("stride", &stride_, "N", "tokens that a sliding window moves by; 1 if not given");
    flags.Add("parallel", &parallel_, "N", "segments or windows in flight at a time");
    flags.Add("after", &after_, "SESSION", "score the text as what follows this session, which stays as it is");
    flags.Add("tokens", &tokens_, "", "also print each token: id, log-probability, text");
    flags.Add("tokens_out", &tokens_out_, "FILE",
              "write each token to FILE, one to a line with tabs between: id, text (escaped as in C), log-probability");
    flags.Add("json", &json_, "", "print JSON");
    flags.Add("piece_bytes", &piece_bytes_, "N", "most bytes of text in one call");
  }

  absl::Status Run(Context& context) override {
    RETURN_IF_ERROR(CheckFlags());
    const std::string& path = context.arguments[0];
    const int fd = path == "-" ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
    const absl::Cleanup close_file = [fd] {
      if (fd != STDIN_FILENO) close(fd);
    };
    struct stat info;
    const int64_t file_bytes = fstat(fd, &info) == 0 && S_ISREG(info.st_mode) ? info.st_size : 0;
    std::unique_ptr<FILE, int (*)(FILE*)> tokens_file(nullptr, &std::fclose);
    if (!tokens_out_.empty()) {
      tokens_file.reset(std::fopen(tokens_out_.c_str(), "we"));
      if (tokens_file == nullptr) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", tokens_out_));
      std::fputs("id\ttoken\tlogprob\n", tokens_file.get());
    }

    ASSIGN_OR_RETURN(const std::unique_ptr<client::Client> client, context.Connect());
    const absl::Time start = absl::Now();
    v1::Model model;
    ScoreTotals totals;
    absl::Status status;
    {
      Interrupt::Scope scope(context.interrupt);
      TextPieces pieces([&](char* to, size_t bytes) { return Read(fd, scope, to, bytes); }, piece_bytes_);
      Work work{.client = *client,
                .context = context,
                .scope = scope,
                .pieces = pieces,
                .file_bytes = file_bytes,
                .tokens_file = tokens_file.get(),
                .progress = ProgressLine(context.terminal),
                .start = start,
                .model = model,
                .totals = totals};
      status = protocol_ == "carried" ? ScoreCarried(work) : ScoreWindowed(work);
    }
    if (tokens_file != nullptr && std::fclose(tokens_file.release()) != 0 && status.ok()) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", tokens_out_));
    }
    if (totals.bytes > 0 && (status.ok() || context.interrupt.exit_code() != 0)) {
      Report(context.terminal, path, model, totals, absl::ToDoubleSeconds(absl::Now() - start));
    } else if (status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path == "-" ? "stdin" : path, " is empty: there is nothing to score"));
    }
    return status;
  }

 private:
  // A text on its way, and what has come of it.
  struct Work {
    client::Client& client;
    const Context& context;
    Interrupt::Scope& scope;
    TextPieces& pieces;
    int64_t file_bytes;  // 0: not known
    FILE* tokens_file;   // null: none
    ProgressLine progress;
    absl::Time start;
    v1::Model& model;
    ScoreTotals& totals;
  };

  absl::Status CheckFlags() const {
    const bool carried = protocol_ == "carried";
    const bool sliding = protocol_ == "sliding";
    if (!carried && !sliding && protocol_ != "segments") {
      return UsageError(absl::StrCat("--protocol is \"", protocol_, "\"; there are carried, segments and sliding"));
    }
    if (carried && window_) return UsageError("--window goes with --protocol segments or sliding");
    if (!carried && !window_) {
      return UsageError(
          absl::StrCat("--protocol ", protocol_, " needs --window, the length that the model was trained with"));
    }
    if (window_ && (*window_ < 1 || *window_ > kMaxWindow)) {
      return UsageError(absl::StrCat("--window is 1 to ", kMaxWindow));
    }
    if (stride_ && !sliding) return UsageError("--stride goes with --protocol sliding");
    if (stride_ && (*stride_ < 1 || *stride_ > *window_)) return UsageError("--stride is 1 to --window");
    if (parallel_ < 1 || parallel_ > 1024) return UsageError("--parallel is 1 to 1024");
    if (!carried && !after_.empty()) return UsageError("--after goes with --protocol carried");
    if (tokens_ && json_) return UsageError("--tokens and --json exclude each other");
    if (piece_bytes_ < 16) return UsageError("--piece_bytes is at least 16");
    return absl::OkStatus();
  }

  // -- All of the text through one session

  absl::Status ScoreCarried(Work& work) {
    v1::CreateSessionRequest create;
    create.mutable_session()->set_model(ResourceName("models", model_));
    create.mutable_session()->mutable_ttl()->set_seconds(120);  // each piece begins it anew
    if (!after_.empty()) create.set_source_session(ResourceName("sessions", after_));
    ASSIGN_OR_RETURN(const v1::Session session, work.client.CreateSession(create, work.context.Call()));
    absl::Status status = ScorePieces(work, session);
    // Within the scope: an impatient second Ctrl-C still ends the process, the first leaves nothing behind.
    const absl::Status deleted = work.client.DeleteSession(session.name());
    return status.ok() ? deleted : status;
  }

  absl::Status ScorePieces(Work& work, const v1::Session& session) {
    ASSIGN_OR_RETURN(work.model, work.client.GetModel(session.model(), work.context.Call()));
    ScoreTotals& totals = work.totals;
    while (true) {
      v1::ScoreRequest request;
      ASSIGN_OR_RETURN(*request.mutable_text(), NextPiece(work));
      if (request.text().empty()) return absl::OkStatus();
      request.set_session(session.name());
      request.set_return_tokens(WantsTokens());
      ASSIGN_OR_RETURN(const v1::ScoreResponse response, ScorePatiently(work, request));
      totals.bytes += request.text().size();
      totals.tokens += response.usage().prompt_tokens();
      totals.unknown_tokens += response.unknown_tokens();
      Take(work, response);
      ShowProgress(work, totals.bytes, work.file_bytes);
    }
  }

  // -- Windows, each by itself

  absl::Status ScoreWindowed(Work& work) {
    ASSIGN_OR_RETURN(work.model, FindModel(work));
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, TokenizeAll(work));
    const auto tokens = std::ssize(ids);
    const ScoreWindows windows = protocol_ == "segments" ? ScoreWindows::Segments(tokens, *window_)
                                                         : ScoreWindows::Sliding(tokens, *window_, stride_.value_or(1));
    work.start = absl::Now();
    const auto score = [&](int64_t index) {
      const ScoreWindow window = windows.at(index);
      v1::ScoreRequest request;
      request.set_model(work.model.name());
      request.mutable_tokens()->mutable_ids()->Add(ids.begin() + window.begin, ids.begin() + window.end);
      request.set_return_tokens(WantsTokens());
      // The text's first token is told of too, without a number, as in the other protocol.
      if (index > 0) request.set_score_last(static_cast<int32_t>(window.scored));
      return ScorePatiently(work, request);
    };
    const auto take = [&](const v1::ScoreResponse& response) {
      Take(work, response);
      ShowProgress(work, work.totals.scored_tokens, tokens - 1);
      return absl::OkStatus();
    };
    return InOrder<v1::ScoreResponse>(windows.count(), static_cast<int>(parallel_), score, take);
  }

  absl::StatusOr<v1::Model> FindModel(const Work& work) const {
    if (!model_.empty()) return work.client.GetModel(ResourceName("models", model_), work.context.Call());
    ASSIGN_OR_RETURN(const std::vector<v1::Model> models, work.client.ListModels(work.context.Call()));
    if (models.size() == 1) return models.front();
    return absl::InvalidArgumentError(absl::StrCat("the server has ", models.size(), " models: choose one by --model"));
  }

  absl::StatusOr<std::vector<int32_t>> TokenizeAll(Work& work) {
    std::vector<int32_t> ids;
    while (true) {
      v1::TokenizeRequest request;
      ASSIGN_OR_RETURN(*request.mutable_text(), NextPiece(work));
      if (request.text().empty()) return ids;
      request.set_model(work.model.name());
      request.set_continues(!ids.empty());
      ASSIGN_OR_RETURN(const v1::TokenizeResponse response,
                       work.client.Tokenize(request, work.context.Call(work.scope.cancellation())));
      ids.insert(ids.end(), response.ids().begin(), response.ids().end());
      work.totals.bytes += request.text().size();
      work.totals.tokens = std::ssize(ids);
      work.totals.unknown_tokens += response.unknown_tokens();
    }
  }

  // -- What both need

  bool WantsTokens() const { return tokens_ || !tokens_out_.empty(); }

  // The next piece, which is valid UTF-8; empty at the end.
  static absl::StatusOr<std::string> NextPiece(Work& work) {
    ASSIGN_OR_RETURN(std::string piece, work.pieces.Next());
    if (const size_t at = FindInvalidUtf8(piece); at != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("byte ", work.totals.bytes + at, " of the text is not part of valid UTF-8"));
    }
    return piece;
  }

  // Waits and tries again when the server's queue is full: then it has not taken the text. May run on any thread.
  static absl::StatusOr<v1::ScoreResponse> ScorePatiently(const Work& work, const v1::ScoreRequest& request) {
    while (true) {
      absl::StatusOr<v1::ScoreResponse> response =
          work.client.Score(request, work.context.Call(work.scope.cancellation()));
      const std::optional<absl::Duration> delay = client::RetryDelay(response.status());
      if (!absl::IsResourceExhausted(response.status()) || !delay) return response;
      if (!work.scope.SleepFor(*delay)) return absl::CancelledError("interrupted");
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

  // Adds a response to the totals and writes its tokens where they are wanted.
  void Take(Work& work, const v1::ScoreResponse& response) const {
    work.totals.Add(response);
    if (tokens_) work.progress.Clear();
    for (const v1::ScoredToken& token : response.tokens()) {
      const std::string text = absl::Utf8SafeCEscape(token.token());
      if (tokens_) {
        const std::string logprob = token.has_logprob() ? absl::StrFormat("%.4f", token.logprob()) : "-";
        std::printf("%d\t%s\t\"%s\"\n", token.id(), logprob.c_str(), text.c_str());
      }
      if (work.tokens_file != nullptr) {
        // Nine digits give the float back.
        const std::string logprob = token.has_logprob() ? absl::StrFormat("%.9g", token.logprob()) : "";
        std::fprintf(work.tokens_file, "%d\t%s\t%s\n", token.id(), text.c_str(), logprob.c_str());
      }
    }
  }

  // `done` of `all`; 0: it is not known how much there is.
  static void ShowProgress(Work& work, int64_t done, int64_t all) {
    if (!work.progress.Due()) return;
    const ScoreTotals& totals = work.totals;
    const double seconds = absl::ToDoubleSeconds(absl::Now() - work.start);
    std::string text;
    if (all > 0) {
      const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(all));
      text =
          absl::StrFormat("%s %3.0f%%  ETA %s  ", work.context.terminal.Err(Style::kCyan, Bar(share, 24)), 100 * share,
                          FormatSeconds(static_cast<double>(all - done) / (static_cast<double>(done) / seconds)));
    } else {
      text = absl::StrCat(FormatBytes(done), "  ");
    }
    work.progress.Show(absl::StrFormat("%s%s tokens  %s tokens/s  perplexity %.3f", text,
                                       FormatCount(totals.scored_tokens),
                                       FormatCount(std::llround(static_cast<double>(totals.scored_tokens) / seconds)),
                                       std::exp(totals.NatsPerToken())));
  }

  void Report(const Terminal& terminal, const std::string& path, const v1::Model& model, const ScoreTotals& totals,
              double seconds) const {
    const bool any = totals.scored_tokens > 0 && totals.scored_bytes > 0;
    const bool token_is_character = model.tokenizer() == "characters";
    const double bits_per_character = token_is_character ? totals.BitsPerToken() : totals.BitsPerCharacter();
    const double rate = static_cast<double>(totals.scored_tokens) / seconds;
    if (json_) {
      const auto number = [any](double value) { return any ? nlohmann::ordered_json(value) : nullptr; };
      nlohmann::ordered_json json = {{"file", path}, {"model", model.name()}, {"protocol", protocol_}};
      if (window_) json["window"] = *window_;
      if (protocol_ == "sliding") json["stride"] = stride_.value_or(1);
      json["requests"] = totals.requests;
      json["bytes"] = totals.bytes;
      json["scored_bytes"] = totals.scored_bytes;
      json["scored_characters"] = totals.scored_characters;
      json["tokens"] = totals.tokens;
      json["scored_tokens"] = totals.scored_tokens;
      json["unknown_tokens"] = totals.unknown_tokens;
      json["total_logprob"] = totals.logprob;
      json["nats_per_token"] = number(totals.NatsPerToken());
      json["perplexity"] = number(std::exp(totals.NatsPerToken()));
      json["bits_per_token"] = number(totals.BitsPerToken());
      json["bits_per_character"] = number(bits_per_character);
      json["bits_per_byte"] = number(totals.BitsPerByte());
      json["seconds"] = seconds;
      json["tokens_per_second"] = rate;
      std::puts(json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
      return;
    }
    const auto line = [&](absl::string_view name, absl::string_view value) {
      std::printf("%-20s%s\n", std::string(name).c_str(), std::string(value).c_str());
    };
    const auto digits = [any](int count, double value) { return any ? absl::StrFormat("%.*f", count, value) : "-"; };
    line("model", model.name());
    line("protocol", absl::StrCat(protocol_, window_ ? absl::StrCat(", window ", *window_) : "",
                                  protocol_ == "sliding" ? absl::StrCat(", stride ", stride_.value_or(1)) : ""));
    line("bytes", absl::StrCat(FormatCount(totals.bytes), " (", FormatCount(totals.scored_bytes), " scored)"));
    line("tokens", absl::StrCat(FormatCount(totals.tokens), " (", FormatCount(totals.scored_tokens), " scored)"));
    line("unknown tokens",
         totals.unknown_tokens == 0 ? "0" : terminal.Out(Style::kYellow, FormatCount(totals.unknown_tokens)));
    line("nats per token", digits(4, totals.NatsPerToken()));
    line("perplexity", digits(3, std::exp(totals.NatsPerToken())));
    line("bits per character", terminal.Out(Style::kBold, digits(4, bits_per_character)));
    if (!token_is_character) line("bits per byte", terminal.Out(Style::kBold, digits(4, totals.BitsPerByte())));
    line("time", absl::StrCat(FormatSeconds(seconds), " (", FormatCount(std::llround(rate)), " tokens/s)"));
  }

  static constexpr int64_t kMaxWindow = 1 << 20;

  std::string model_, after_, tokens_out_;
  std::string protocol_ = "carried";
  std::optional<int64_t> window_, stride_;
  int64_t parallel_ = 16;
  bool tokens_ = false, json_ = false;
  int64_t piece_bytes_ = 16384;
};

}  // namespace

void AddScore(Commands& commands) { commands.push_back(std::make_unique<Score>()); }

}  // namespace palimpsest::cli
