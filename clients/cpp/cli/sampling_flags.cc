#include "clients/cpp/cli/sampling_flags.h"

#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "clients/cpp/cli/command.h"

namespace palimpsest::cli {

absl::StatusOr<int32_t> ToInt32(absl::string_view flag, int64_t value) {
  if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
    return UsageError(absl::StrCat("--", flag, ": ", value, " is out of range"));
  }
  return static_cast<int32_t>(value);
}

void SamplingFlags::Add(FlagSet& flags) {
  flags.Group("Sampling");
  flags.Add("max_tokens", &max_tokens, "N", "generate at most N tokens; the server's default is 256");
  flags.Add("temperature", &temperature, "T", "0 takes the most probable token; 1, the default, samples as trained");
  flags.Add("top_k", &top_k, "K", "keep the K most probable tokens; 0 keeps all");
  flags.Add("top_p", &top_p, "P", "keep the smallest set of tokens whose probabilities sum to P");
  flags.Add("min_p", &min_p, "P", "drop tokens less probable than P times the most probable one");
  flags.Add("repetition_penalty", &repetition_penalty, "R", "divide the logits of recent tokens by R; 1 does nothing");
  flags.Add("presence_penalty", &presence_penalty, "X", "subtract X from the logits of recent tokens");
  flags.Add("frequency_penalty", &frequency_penalty, "X", "subtract X for each time a token occurred recently");
  flags.Add("logit_bias", &logit_bias, "ID:X", "add X to the logit of token ID; may be given often");
  flags.Add("seed", &seed, "N", "same seed, same text; without it the server draws one, which --stats shows");
  flags.Group("Stopping");
  flags.Add("stop", &stop, "TEXT", "end before this text (\\n and so on as in C); may be given often");
  flags.Add("stop_id", &stop_ids, "ID,...", "end at these token ids");
  flags.Add("ignore_end_of_text", &ignore_end_of_text, "", "go on past the model's end-of-text token");
  flags.Add("ignore_eos", &ignore_end_of_text, "", "the same, as other servers call it");
}

absl::Status SamplingFlags::Fill(v1::GenerateRequest& request) const {
  v1::SamplingParams& sampling = *request.mutable_sampling();
  for (const std::string& entry : logit_bias) {
    const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(entry, absl::MaxSplits(':', 1));
    int32_t id;
    float bias;
    if (!absl::SimpleAtoi(parts.first, &id) || !absl::SimpleAtof(parts.second, &bias)) {
      return UsageError(absl::StrCat("--logit_bias needs ID:X, for example 42:-5, not \"", entry, "\""));
    }
    (*sampling.mutable_logit_bias())[id] = bias;
  }
  if (repetition_penalty) sampling.set_repetition_penalty(static_cast<float>(*repetition_penalty));
  sampling.set_presence_penalty(static_cast<float>(presence_penalty));
  sampling.set_frequency_penalty(static_cast<float>(frequency_penalty));
  if (temperature) sampling.set_temperature(static_cast<float>(*temperature));
  ASSIGN_OR_RETURN(const int32_t k, ToInt32("top_k", top_k));
  sampling.set_top_k(k);
  if (top_p) sampling.set_top_p(static_cast<float>(*top_p));
  sampling.set_min_p(static_cast<float>(min_p));
  if (seed) sampling.set_seed(*seed);

  v1::StopCriteria& criteria = *request.mutable_stop();
  if (max_tokens) {
    ASSIGN_OR_RETURN(const int32_t tokens, ToInt32("max_tokens", *max_tokens));
    criteria.set_max_tokens(tokens);
  }
  for (const std::string& text : stop) {
    ASSIGN_OR_RETURN(*criteria.add_strings(), Unescape("stop", text));
  }
  for (const int64_t id : stop_ids) {
    ASSIGN_OR_RETURN(const int32_t token, ToInt32("stop_id", id));
    criteria.add_token_ids(token);
  }
  criteria.set_ignore_end_of_text(ignore_end_of_text);
  return absl::OkStatus();
}

}  // namespace palimpsest::cli
