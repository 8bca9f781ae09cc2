// Structured logs: one line for each event, as JSON or as text, to standard error. What users write is never logged.
//
// Nobody who logs ever waits for whoever reads: lines go through a bounded queue, and those that find it full are
// dropped and counted (line_writer.h). Thread-safe.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace palimpsest {

enum class LogFormat { kJson, kText };
enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Call once, before the first event; without, the format is text.
void SetLogFormat(LogFormat format);

// Something the operator should know, with named values.
using LogValues = std::vector<std::pair<std::string, std::string>>;
void LogEvent(absl::string_view message, const LogValues& values = {});
void LogWarning(absl::string_view message, const LogValues& values = {});
void LogError(absl::string_view message, const LogValues& values = {});
// What a library says of itself: `source` is its name, `where` the place in its code, which may be empty.
void LogLibrary(LogLevel level, absl::string_view source, absl::string_view message, absl::string_view where);

// A line of these fields, in this order, after its time and level. "event" is what it is about.
void LogLine(LogLevel level, nlohmann::ordered_json fields);
// A line as it is, for a person at a terminal, in turn with the others.
void LogPlain(absl::string_view line);

// Before the process ends: waits, at most for so long, until the lines are written. False: some are not.
bool FlushLog(absl::Duration timeout);
// Lines that were lost since the process began.
int64_t LogLinesDropped();

}  // namespace palimpsest
