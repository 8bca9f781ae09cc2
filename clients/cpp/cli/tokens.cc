// `palimpsest tokenize` and `palimpsest detokenize`.
#include <unistd.h>

#include <cstdio>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "clients/cpp/cli/command.h"
#include "clients/cpp/cli/sampling_flags.h"

namespace palimpsest::cli {
namespace {

class Tokenize : public Command {
 public:
  Tokenize()
      : Command({.name = "tokenize",
                 .arguments = "[TEXT]",
                 .summary = "turn text into token ids",
                 .description = "Turns TEXT, or --file, or stdin, into the model's token ids, on one line with spaces "
                                "between.\n\n  palimpsest tokenize \"Hello there\" | palimpsest detokenize",
                 .max_arguments = 1}) {}
  void AddFlags(FlagSet& flags) override {
    flags.Add("model", &model_, "MODEL", "which model; not needed when the server has one");
    flags.Add("file", &file_, "FILE", "read the text from a file; - is stdin");
    flags.Add("pieces", &pieces_, "", "print each id with its bytes, one to a line");
    flags.Add("count", &count_, "", "print the number of tokens only");
    flags.Add("json", &json_, "", "print JSON; bytes are in base64");
  }
  absl::Status Run(Context& context) override {
    if (pieces_ + count_ + json_ > 1) return UsageError("--pieces, --count and --json exclude each other");
    if (!context.arguments.empty() && !file_.empty()) return UsageError("give TEXT or --file, not both");
    v1::TokenizeRequest request;
    request.set_model(ResourceName("models", model_));
    if (!context.arguments.empty()) {
      request.set_text(context.arguments[0]);
    } else {
      if (file_.empty() && isatty(STDIN_FILENO)) return UsageError("a text is needed: TEXT, --file or stdin");
      ASSIGN_OR_RETURN(*request.mutable_text(), ReadAll(file_.empty() ? "-" : file_));
    }
    RETURN_IF_ERROR(CheckUtf8(request.text(), "text"));
    ASSIGN_OR_RETURN(const auto client, context.Connect());
    ASSIGN_OR_RETURN(const v1::TokenizeResponse response, client->Tokenize(request, context.Call()));
    if (response.unknown_tokens() > 0) {
      std::fprintf(stderr, "palimpsest: %s times the text has something that the vocabulary does not\n",
                   FormatCount(response.unknown_tokens()).c_str());
    }
    if (json_) {
      std::puts(ToJson(response, /*indented=*/false).c_str());
    } else if (count_) {
      std::printf("%d\n", response.ids_size());
    } else if (pieces_) {
      for (int i = 0; i < response.ids_size(); ++i) {
        std::printf("%d\t\"%s\"\n", response.ids(i), absl::Utf8SafeCEscape(response.tokens(i)).c_str());
      }
    } else {
      std::puts(absl::StrJoin(response.ids(), " ").c_str());
    }
    return absl::OkStatus();
  }

 private:
  std::string model_, file_;
  bool pieces_ = false, count_ = false, json_ = false;
};

class Detokenize : public Command {
 public:
  Detokenize()
      : Command({.name = "detokenize",
                 .arguments = "[ID...]",
                 .summary = "turn token ids into text",
                 .description = "Turns token ids, from the arguments or from stdin, with spaces or commas between, "
                                "into text.",
                 .max_arguments = 1 << 20}) {}
  void AddFlags(FlagSet& flags) override {
    flags.Add("model", &model_, "MODEL", "which model; not needed when the server has one");
    flags.Add("json", &json_, "", "print JSON");
  }
  absl::Status Run(Context& context) override {
    std::string ids = absl::StrJoin(context.arguments, " ");
    if (context.arguments.empty()) {
      if (isatty(STDIN_FILENO)) return UsageError("token ids are needed, as arguments or on stdin");
      ASSIGN_OR_RETURN(ids, ReadAll("-"));
    }
    v1::DetokenizeRequest request;
    request.set_model(ResourceName("models", model_));
    for (const absl::string_view word : absl::StrSplit(ids, absl::ByAnyChar(", \t\r\n"), absl::SkipEmpty())) {
      int32_t id;
      if (!absl::SimpleAtoi(word, &id)) return UsageError(absl::StrCat("\"", word, "\" is not a token id"));
      request.add_ids(id);
    }
    ASSIGN_OR_RETURN(const auto client, context.Connect());
    ASSIGN_OR_RETURN(const v1::DetokenizeResponse response, client->Detokenize(request, context.Call()));
    if (json_) {
      std::puts(ToJson(response, /*indented=*/false).c_str());
      return absl::OkStatus();
    }
    std::fwrite(response.text().data(), 1, response.text().size(), stdout);
    if (context.terminal.out_is_terminal()) std::puts("");
    return absl::OkStatus();
  }

 private:
  std::string model_;
  bool json_ = false;
};

}  // namespace

void AddTokens(Commands& commands) {
  commands.push_back(std::make_unique<Tokenize>());
  commands.push_back(std::make_unique<Detokenize>());
}

}  // namespace palimpsest::cli
