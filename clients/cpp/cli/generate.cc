// `palimpsest generate`: a prompt in, text out as it streams.
#include <unistd.h>

#include <cstdio>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "clients/cpp/cli/command.h"
#include "clients/cpp/cli/sampling_flags.h"

namespace palimpsest::cli {
namespace {

const char* ReasonText(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_LENGTH:
      return "max_tokens reached";
    case v1::FINISH_REASON_STOP_TOKEN:
      return "stop token";
    case v1::FINISH_REASON_STOP_STRING:
      return "stop text";
    case v1::FINISH_REASON_CONTEXT_FULL:
      return "the model's positions are used up";
    default:
      return "unspecified";
  }
}

// What the client sees of a reply's speed.
struct Timing {
  absl::Time start = absl::Now();
  absl::Time first;
  absl::Time last;
  int64_t tokens = 0;

  void Count(int64_t more) {
    if (more == 0) return;
    last = absl::Now();
    if (tokens == 0) first = last;
    tokens += more;
  }
};

class Generate : public Command {
 public:
  Generate()
      : Command({.name = "generate",
                 .arguments = "[PROMPT]",
                 .summary = "continue a prompt, streaming the text",
                 .description =
                     "Sends a prompt and prints what the model says next, as it comes.\n\n"
                     "The prompt is PROMPT, or --prompt_file, or --tokens, or stdin if that is not a terminal. With "
                     "--session it is appended to what the session has read, and the session keeps prompt and reply; "
                     "without any prompt the session is continued from where it stands. Ctrl-C stops the reply; a "
                     "session then stands at the last token sampled.\n\n"
                     "  palimpsest generate \"Once upon a time\" --max_tokens 200 --temperature 0.8 --stats\n"
                     "  palimpsest generate --session story --json | jq -r .text",
                 .max_arguments = 1}) {}

  void AddFlags(FlagSet& flags) override {
    flags.Add("model", &model_, "MODEL", "which model; not needed when the server has one, or with --session");
    flags.Add("session", &session_, "SESSION", "append to this session");
    flags.Add("state_in", &state_in_, "FILE", "begin from this snapshot file instead of a session");
    flags.Add("state_out", &state_out_, "FILE", "write the state at the end to this file");
    flags.Add("prompt_file", &prompt_file_, "FILE", "read the prompt from a file; - is stdin");
    flags.Add("tokens", &tokens_, "ID,...", "give the prompt as token ids");
    flags.Group("Output");
    flags.Add("echo", &echo_, "", "print the prompt before the reply");
    flags.Add("stats", &stats_, "", "print time to first token, tokens per second and state bytes to stderr");
    flags.Add("logprobs", &logprobs_, "", "print id, log-probability and text of each token, one to a line");
    flags.Add("top_logprobs", &top_logprobs_, "N", "with --logprobs or --json: also the N most probable alternatives");
    flags.Add("digest", &digest_, "", "print the SHA-256 of the state at the end to stderr");
    flags.Add("json", &json_, "", "print each message of the stream as JSON, one to a line");
    flags.Add("call_id", &call_id_, "ID", "an id to find this call by in the server's log");
    sampling_.Add(flags);
  }

  absl::Status Run(Context& context) override {
    v1::GenerateRequest request;
    ASSIGN_OR_RETURN(request, Request(context));
    ASSIGN_OR_RETURN(const std::unique_ptr<client::Client> client, context.Connect());

    if (echo_ && !json_) std::fputs(request.text().c_str(), stdout);
    Interrupt::Scope scope(context.interrupt);
    Timing timing;
    const std::unique_ptr<client::GenerateStream> stream =
        client->Generate(request, context.Call(scope.cancellation()));
    std::string printed = echo_ ? request.text() : "";
    for (v1::GenerateResponse message; stream->Next(message);) {
      timing.Count(message.tokens_size());
      Print(message, context.terminal);
      if (!message.text().empty()) printed = message.text();
      if (std::fflush(stdout) != 0) {
        stream->Cancel();
        return absl::UnknownError("cannot write to stdout");
      }
    }
    const bool ends_line = json_ || logprobs_ || absl::EndsWith(printed, "\n");
    if (!ends_line && context.terminal.out_is_terminal()) std::puts("");
    ASSIGN_OR_RETURN(const v1::GenerateFinish finish, stream->Finish());
    if (!state_out_.empty()) RETURN_IF_ERROR(WriteAll(state_out_, finish.state(), 0600));
    if (digest_) std::fprintf(stderr, "%s\n", finish.state_digest().c_str());
    if (stats_) PrintStats(*client, context, finish, timing);
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<v1::GenerateRequest> Request(const Context& context) const {
    v1::GenerateRequest request;
    if (!session_.empty() && !state_in_.empty()) return UsageError("--session and --state_in exclude each other");
    request.set_model(ResourceName("models", model_));
    if (!session_.empty()) request.set_session(ResourceName("sessions", session_));
    if (!state_in_.empty()) {
      ASSIGN_OR_RETURN(*request.mutable_state(), ReadAll(state_in_));
    }
    const int prompts = !context.arguments.empty() + !prompt_file_.empty() + !tokens_.empty();
    if (prompts > 1) return UsageError("give one of PROMPT, --prompt_file and --tokens");
    const bool has_context = !session_.empty() || !state_in_.empty();
    if (!context.arguments.empty()) request.set_text(context.arguments[0]);
    for (const int64_t id : tokens_) {
      ASSIGN_OR_RETURN(const int32_t token, ToInt32("tokens", id));
      request.mutable_tokens()->add_ids(token);
    }
    if (!prompt_file_.empty()) {
      ASSIGN_OR_RETURN(*request.mutable_text(), ReadAll(prompt_file_));
    } else if (prompts == 0 && !has_context) {
      if (isatty(STDIN_FILENO)) return UsageError("a prompt is needed: PROMPT, --prompt_file, --tokens or stdin");
      ASSIGN_OR_RETURN(*request.mutable_text(), ReadAll("-"));
    }
    RETURN_IF_ERROR(CheckUtf8(request.text(), "prompt"));
    RETURN_IF_ERROR(sampling_.Fill(request));
    ASSIGN_OR_RETURN(const int32_t top, ToInt32("top_logprobs", top_logprobs_));
    request.set_top_logprobs(top);
    request.set_logprobs(logprobs_);
    request.set_return_state(!state_out_.empty());
    request.set_return_state_digest(digest_);
    request.set_call_id(call_id_);
    return request;
  }

  void Print(v1::GenerateResponse& message, const Terminal& terminal) const {
    if (json_) {
      const bool to_file = !state_out_.empty();
      std::string state;
      if (to_file && message.has_finish()) state.swap(*message.mutable_finish()->mutable_state());
      std::printf("%s\n", ToJson(message, /*indented=*/false).c_str());
      return;
    }
    if (!logprobs_) {
      std::fwrite(message.text().data(), 1, message.text().size(), stdout);
      return;
    }
    // The text may lag the tokens; it stands beside the token that completed it.
    for (const v1::GeneratedToken& token : message.tokens()) {
      const bool last = &token == &message.tokens(message.tokens_size() - 1);
      std::printf("%d\t%.4f\t\"%s\"", token.id(), token.logprob(),
                  last ? absl::Utf8SafeCEscape(message.text()).c_str() : "");
      for (const v1::TokenLogprob& other : token.top()) {
        std::printf("\t%s", terminal.Out(Style::kDim, absl::StrFormat("%d:%.4f", other.id(), other.logprob())).c_str());
      }
      std::printf("\n");
    }
  }

  void PrintStats(client::Client& client, const Context& context, const v1::GenerateFinish& finish,
                  const Timing& timing) const {
    const v1::Usage& usage = finish.usage();
    const double first = absl::ToDoubleSeconds(timing.first - timing.start);
    const double rest = absl::ToDoubleSeconds(timing.last - timing.first);
    std::string text = absl::StrCat("prompt ", FormatCount(usage.prompt_tokens()), " tokens");
    if (usage.cached_tokens() > 0)
      absl::StrAppend(&text, " after ", FormatCount(usage.cached_tokens()), " in the state");
    absl::StrAppend(&text, " | generated ", FormatCount(usage.generated_tokens()), " (", ReasonText(finish.reason()),
                    ")");
    if (timing.tokens > 0) absl::StrAppend(&text, " | first token ", FormatSeconds(first));
    if (timing.tokens > 1 && rest > 0) {
      absl::StrAppend(&text, " | then ", FormatSignificant((timing.tokens - 1) / rest, 3), " tokens/s");
    }
    absl::StrAppend(&text, " | queued ", FormatSeconds(usage.queue_seconds()));
    if (const int64_t bytes = StateBytes(client, context); bytes > 0) {
      absl::StrAppend(&text, " | state ", FormatCount(bytes), " bytes");
    }
    absl::StrAppend(&text, " | seed ", finish.seed());
    std::fprintf(stderr, "%s\n", context.terminal.Err(Style::kDim, text).c_str());
  }

  // Of the model that answered; 0 if the server does not say.
  int64_t StateBytes(client::Client& client, const Context& context) const {
    if (!session_.empty()) {
      const auto session = client.GetSession(ResourceName("sessions", session_), context.Call());
      return session.ok() ? session->state_bytes() : 0;
    }
    if (!model_.empty()) {
      const auto model = client.GetModel(ResourceName("models", model_), context.Call());
      return model.ok() ? model->state_bytes() : 0;
    }
    const auto models = client.ListModels(context.Call());
    return models.ok() && models->size() == 1 ? models->front().state_bytes() : 0;
  }

  std::string model_, session_, state_in_, state_out_, prompt_file_, call_id_;
  std::vector<int64_t> tokens_;
  bool echo_ = false, stats_ = false, logprobs_ = false, digest_ = false, json_ = false;
  int64_t top_logprobs_ = 0;
  SamplingFlags sampling_;
};

}  // namespace

void AddGenerate(Commands& commands) { commands.push_back(std::make_unique<Generate>()); }

}  // namespace palimpsest::cli
