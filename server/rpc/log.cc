#include "server/rpc/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace palimpsest {
namespace {

using Json = nlohmann::ordered_json;

std::atomic<LogFormat> g_format{LogFormat::kText};

spdlog::logger& Logger() {
  static spdlog::logger& logger = *[] {
    auto* made = new spdlog::logger("palimpsest", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    return made;
  }();
  return logger;
}

double Milliseconds(absl::Duration duration) {
  // Microseconds are enough, and keep the lines short.
  return static_cast<double>(absl::ToInt64Microseconds(duration)) / 1000.0;
}

void Write(spdlog::level::level_enum level, Json fields) {
  const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  const char* const name = level == spdlog::level::warn ? "warning" : "info";
  if (g_format.load() == LogFormat::kJson) {
    Json line{{"time", time}, {"level", name}};
    line.update(fields);
    Logger().log(level, line.dump(-1, ' ', false, Json::error_handler_t::replace));
    return;
  }
  std::string line = absl::StrCat(time, level == spdlog::level::warn ? " warning: " : " ");
  if (const auto event = fields.find("event"); event != fields.end()) {
    absl::StrAppend(&line, event->get<std::string>());
    fields.erase("event");
  }
  for (const auto& [key, value] : fields.items()) {
    absl::StrAppend(&line, " ", key, "=",
                    value.is_string() && value.get<std::string>().find_first_of(" \n\"=") == std::string::npos
                        ? value.get<std::string>()
                        : value.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  Logger().log(level, line);
}

void WriteEvent(spdlog::level::level_enum level, absl::string_view message,
                const std::vector<std::pair<std::string, std::string>>& values) {
  Json fields{{"event", std::string(message)}};
  for (const auto& [key, value] : values) fields[key] = value;
  Write(level, std::move(fields));
}

}  // namespace

void SetLogFormat(LogFormat format) { g_format = format; }

void LogEvent(absl::string_view message, const std::vector<std::pair<std::string, std::string>>& values) {
  WriteEvent(spdlog::level::info, message, values);
}

void LogWarning(absl::string_view message, const std::vector<std::pair<std::string, std::string>>& values) {
  WriteEvent(spdlog::level::warn, message, values);
}

void LogCall(const CallLog& call) {
  Json fields{{"event", "call"}, {"id", call.id}, {"method", call.method}};
  const auto text = [&fields](const char* key, const std::string& value) {
    if (!value.empty()) fields[key] = value;
  };
  const auto number = [&fields](const char* key, int64_t value) {
    if (value != 0) fields[key] = value;
  };
  const auto time = [&fields](const char* key, absl::Duration value) {
    if (value != absl::ZeroDuration()) fields[key] = Milliseconds(value);
  };
  text("trace_id", call.trace_id);
  text("span_id", call.span_id);
  text("parent_span_id", call.parent_span_id);
  text("trace_state", call.trace_state);
  text("model", call.model);
  text("session", call.session);
  number("prompt_tokens", call.prompt_tokens);
  number("generated_tokens", call.generated_tokens);
  number("cached_tokens", call.cached_tokens);
  number("position", call.position);
  time("read_ms", call.read_time);
  time("queue_ms", call.queue_time);
  time("ttft_ms", call.time_to_first_token);
  fields["total_ms"] = Milliseconds(call.total_time);
  fields["code"] = call.code;
  text("error", call.error);
  text("peer", call.peer);
  Write(spdlog::level::info, std::move(fields));
}

}  // namespace palimpsest
