// Structured logs: one line for each event, as JSON or as text, to standard error. What users write is never logged.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace palimpsest {

enum class LogFormat { kJson, kText };

// Call once, before the first event; without, the format is text. Thread-safe after that, like all else here.
void SetLogFormat(LogFormat format);

// Something the operator should know, with named values.
void LogEvent(absl::string_view message, const std::vector<std::pair<std::string, std::string>>& values = {});
void LogWarning(absl::string_view message, const std::vector<std::pair<std::string, std::string>>& values = {});

// What is told of a call when it has ended. Zero and empty values are left out.
struct CallLog {
  std::string id;
  std::string method;
  std::string trace_id;
  std::string span_id;
  std::string parent_span_id;
  std::string trace_state;
  std::string model;
  std::string session;
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t position = 0;      // where the context stands at the end
  absl::Duration read_time;  // until the request was read: a worker waited for, parsed, turned into tokens
  absl::Duration queue_time;
  absl::Duration time_to_first_token;
  absl::Duration total_time;
  std::string code;
  std::string error;  // the message that the caller got
  std::string peer;
};
void LogCall(const CallLog& call);

}  // namespace palimpsest
