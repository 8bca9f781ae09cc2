#include "server/rpc/checks.h"

#include <google/protobuf/duration.pb.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/quote.h"
#include "base/resource_id.h"

namespace palimpsest {
namespace {

// These are promises of the proto, not limits of a server.
constexpr int kMaxLogitBias = 1024;
constexpr int kMaxStopTokens = 64;
constexpr size_t kMaxStopStringBytes = 256;
constexpr int kMaxTopLogprobs = 20;
constexpr int32_t kDefaultPage = 100;
constexpr int32_t kMaxPage = 1000;
// Later times do not fit a timestamp's four-digit year.
constexpr absl::Duration kMaxTtl = absl::Hours(24 * 3650);

// `accepted` is a range in words. NaN is in none.
void CheckRange(absl::string_view field, float value, bool inside, absl::string_view accepted, Violations& violations) {
  if (!inside) violations.Add(field, absl::StrCat("is ", value, "; accepted: ", accepted));
}

}  // namespace

void CheckNewId(absl::string_view field, const std::string& id, bool dots, Violations& violations) {
  if (IsResourceId(id, dots)) return;
  violations.Add(field, absl::StrCat("is ", DoubleQuoted(id), "; accepted: 1 to 63 characters [a-z0-9", dots ? "." : "",
                                     "-], beginning with a letter"));
}

void CheckName(absl::string_view field, absl::string_view collection, const std::string& name, std::string* id,
               Violations& violations) {
  const std::string prefix = absl::StrCat(collection, "/");
  if (name.starts_with(prefix) && IsResourceId(name.substr(prefix.size()), /*dots=*/collection == "models")) {
    *id = name.substr(prefix.size());
    return;
  }
  const absl::string_view kind = collection.substr(0, collection.size() - 1);
  violations.Add(field, absl::StrCat("is ", DoubleQuoted(name), "; accepted: ", collection, "/{", kind, "}"));
}

void CheckOptionalName(absl::string_view field, absl::string_view collection, const std::string& name, std::string* id,
                       Violations& violations) {
  if (!name.empty()) CheckName(field, collection, name, id, violations);
}

void CheckTtl(absl::string_view field, const google::protobuf::Duration& ttl, absl::Duration* read,
              Violations& violations) {
  const absl::Duration value = absl::Seconds(ttl.seconds()) + absl::Nanoseconds(ttl.nanos());
  *read = value == absl::ZeroDuration() ? absl::InfiniteDuration() : value;
  if (value == absl::ZeroDuration() || (value >= absl::Seconds(1) && value <= kMaxTtl)) return;
  violations.Add(field, absl::StrCat("is ", absl::FormatDuration(value), "; accepted: 0 (never expires), or 1s to ",
                                     absl::FormatDuration(kMaxTtl)));
}

void CheckPageSize(int32_t page_size, int32_t* read, Violations& violations) {
  if (page_size < 0) violations.Add("page_size", absl::StrCat("is ", page_size, "; accepted: 0 or more"));
  *read = page_size == 0 ? kDefaultPage : std::min(page_size, kMaxPage);
}

void CheckSampling(const v1::SamplingParams& params, SamplingSettings* read, Violations& violations) {
  if (params.logit_bias_size() > kMaxLogitBias) {
    violations.Add("sampling.logit_bias",
                   absl::StrCat("has ", params.logit_bias_size(), " entries; accepted: at most ", kMaxLogitBias));
  } else {
    for (const auto& [id, bias] : params.logit_bias()) {
      if (!(bias >= -100 && bias <= 100)) {
        CheckRange(absl::StrCat("sampling.logit_bias[", id, "]"), bias, false, "-100 to 100", violations);
        break;
      }
      read->logit_bias.emplace_back(id, bias);
    }
    std::sort(read->logit_bias.begin(), read->logit_bias.end());
  }
  const float repetition = params.has_repetition_penalty() ? params.repetition_penalty() : 1.0f;
  CheckRange("sampling.repetition_penalty", repetition, repetition > 0 && repetition <= 10, "above 0, up to 10",
             violations);
  read->repetition_penalty = repetition;
  const float presence = params.presence_penalty();
  CheckRange("sampling.presence_penalty", presence, presence >= -10 && presence <= 10, "-10 to 10", violations);
  read->presence_penalty = presence;
  const float frequency = params.frequency_penalty();
  CheckRange("sampling.frequency_penalty", frequency, frequency >= -10 && frequency <= 10, "-10 to 10", violations);
  read->frequency_penalty = frequency;
  const float temperature = params.has_temperature() ? params.temperature() : 1.0f;
  CheckRange("sampling.temperature", temperature, temperature >= 0 && temperature <= 100, "0 to 100", violations);
  read->temperature = temperature;
  if (params.top_k() < 0) {
    violations.Add("sampling.top_k", absl::StrCat("is ", params.top_k(), "; accepted: 0 (all) or more"));
  }
  read->top_k = params.top_k();
  const float top_p = params.has_top_p() ? params.top_p() : 1.0f;
  CheckRange("sampling.top_p", top_p, top_p > 0 && top_p <= 1, "above 0, up to 1; leave it out to keep all",
             violations);
  read->top_p = top_p;
  const float min_p = params.min_p();
  CheckRange("sampling.min_p", min_p, min_p >= 0 && min_p < 1, "0 to below 1", violations);
  read->min_p = min_p;
  read->seed = params.seed();
}

void CheckStop(const v1::StopCriteria& stop, const Limits& limits, EngineRequest* read, Violations& violations) {
  read->max_tokens = stop.has_max_tokens() ? stop.max_tokens() : limits.default_max_tokens;
  if (read->max_tokens < 0 || read->max_tokens > limits.max_tokens) {
    violations.Add("stop.max_tokens",
                   absl::StrCat("is ", read->max_tokens, "; accepted: 0 to ", limits.max_tokens, " (--max_tokens)"));
  }
  if (stop.strings_size() > limits.max_stop_strings) {
    violations.Add("stop.strings", absl::StrCat("has ", stop.strings_size(), " entries; accepted: at most ",
                                                limits.max_stop_strings, " (--max_stop_strings)"));
  } else {
    for (int i = 0; i < stop.strings_size(); ++i) {
      const std::string& text = stop.strings(i);
      if (text.empty() || text.size() > kMaxStopStringBytes) {
        violations.Add(absl::StrCat("stop.strings[", i, "]"),
                       absl::StrCat("has ", text.size(), " bytes; accepted: 1 to ", kMaxStopStringBytes));
      }
      read->stop_strings.push_back(text);
    }
  }
  if (stop.token_ids_size() > kMaxStopTokens) {
    violations.Add("stop.token_ids",
                   absl::StrCat("has ", stop.token_ids_size(), " entries; accepted: at most ", kMaxStopTokens));
  } else {
    read->stop_tokens.assign(stop.token_ids().begin(), stop.token_ids().end());
  }
  read->ignore_end_of_text = stop.ignore_end_of_text();
}

void CheckTopLogprobs(int32_t top, Violations& violations) {
  if (top >= 0 && top <= kMaxTopLogprobs) return;
  violations.Add("top_logprobs", absl::StrCat("is ", top, "; accepted: 0 to ", kMaxTopLogprobs));
}

void CheckScoreLast(int32_t score_last, int64_t tokens, int64_t* read, Violations& violations) {
  *read = score_last;
  if (score_last >= 1 && score_last <= tokens) return;
  violations.Add("score_last",
                 absl::StrCat("is ", score_last, "; accepted: 1 to ", tokens, ", the number of the input's tokens"));
}

bool IsCallId(const std::string& id) {
  return !id.empty() && id.size() <= 64 &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c <= '~'; });
}

void CheckCallId(const std::string& id, Violations& violations) {
  if (id.empty() || IsCallId(id)) return;
  violations.Add("call_id", absl::StrCat("is ", DoubleQuoted(id), ", of ", id.size(), " bytes; accepted: at most 64 ",
                                         "printable characters of ASCII without spaces, or nothing"));
}

void AddIdViolation(absl::string_view field, int64_t index, int64_t id, int32_t vocabulary, Violations& violations) {
  violations.Add(absl::StrCat(field, "[", index, "]"),
                 absl::StrCat("is ", id, "; accepted: 0 to ", vocabulary - 1, ", the model's token ids"));
}

absl::Status CheckPromptBytes(absl::string_view field, size_t bytes, const Limits& limits) {
  if (static_cast<int64_t>(bytes) <= limits.max_prompt_bytes) return absl::OkStatus();
  return WithoutRetry(WithReason(
      absl::ResourceExhaustedError(absl::StrCat(field, " has ", bytes, " bytes; accepted: at most ",
                                                limits.max_prompt_bytes, " (--max_prompt_bytes). Send it in pieces")),
      "TEXT_TOO_LONG", {{"field", std::string(field)}}));
}

absl::Status CheckPromptTokens(absl::string_view field, size_t tokens, const Limits& limits) {
  if (static_cast<int64_t>(tokens) <= limits.max_prompt_tokens) return absl::OkStatus();
  return WithoutRetry(WithReason(
      absl::ResourceExhaustedError(absl::StrCat(field, " has more than ", limits.max_prompt_tokens,
                                                " tokens (--max_prompt_tokens). Send it in pieces through a session")),
      "PROMPT_TOO_LONG", {{"field", std::string(field)}}));
}

}  // namespace palimpsest
