#include "base/log.h"

#include <unistd.h>

#include <atomic>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/line_writer.h"

namespace palimpsest {
namespace {

using Json = nlohmann::ordered_json;

std::atomic<LogFormat> g_format{LogFormat::kText};

constexpr const char* kLevels[] = {"debug", "info", "warning", "error"};

const char* NameOf(LogLevel level) { return kLevels[static_cast<int>(level)]; }

std::string Dump(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

// One line, without its end.
std::string Formatted(LogLevel level, Json fields) {
  const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  if (g_format.load() == LogFormat::kJson) {
    Json line{{"time", time}, {"level", NameOf(level)}};
    line.update(fields);
    return Dump(line);
  }
  std::string line = absl::StrCat(time, level == LogLevel::kInfo ? "" : absl::StrCat(" ", NameOf(level), ":"));
  if (const auto event = fields.find("event"); event != fields.end()) {
    absl::StrAppend(&line, " ", event->get<std::string>());
    fields.erase("event");
  }
  for (const auto& [key, value] : fields.items()) {
    absl::StrAppend(&line, " ", key, "=",
                    value.is_string() && value.get<std::string>().find_first_of(" \n\"=") == std::string::npos
                        ? value.get<std::string>()
                        : Dump(value));
  }
  return line;
}

// Never destroyed: threads that still run when the process ends may log.
LineWriter& Writer() {
  static LineWriter& writer = *new LineWriter(STDERR_FILENO, {}, [](int64_t lines) {
    return Formatted(LogLevel::kWarning, {{"event", "log lines were dropped: nobody read them"}, {"lines", lines}});
  });
  return writer;
}

void Log(LogLevel level, absl::string_view message, const LogValues& values) {
  Json fields{{"event", std::string(message)}};
  for (const auto& [key, value] : values) fields[key] = value;
  LogLine(level, std::move(fields));
}

}  // namespace

void SetLogFormat(LogFormat format) { g_format = format; }

void LogEvent(absl::string_view message, const LogValues& values) { Log(LogLevel::kInfo, message, values); }
void LogWarning(absl::string_view message, const LogValues& values) { Log(LogLevel::kWarning, message, values); }
void LogError(absl::string_view message, const LogValues& values) { Log(LogLevel::kError, message, values); }

void LogLibrary(LogLevel level, absl::string_view source, absl::string_view message, absl::string_view where) {
  Json fields{{"event", "a library reports"}, {"source", std::string(source)}, {"message", std::string(message)}};
  if (!where.empty()) fields["where"] = std::string(where);
  LogLine(level, std::move(fields));
}

void LogLine(LogLevel level, nlohmann::ordered_json fields) { Writer().Write(Formatted(level, std::move(fields))); }
void LogPlain(absl::string_view line) { Writer().Write(std::string(line)); }

bool FlushLog(absl::Duration timeout) { return Writer().Flush(timeout); }
int64_t LogLinesDropped() { return Writer().dropped(); }

}  // namespace palimpsest
