#include "server/rpc/log.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/log.h"

namespace palimpsest {
namespace {

double Milliseconds(absl::Duration duration) {
  // Microseconds are enough, and keep the lines short.
  return static_cast<double>(absl::ToInt64Microseconds(duration)) / 1000.0;
}

struct LibraryLine {
  LogLevel level;
  std::string message;
  std::string where;
};

constexpr absl::Duration kLastWords = absl::Seconds(1);

// Null: nothing is kept back on this thread.
thread_local std::vector<LibraryLine>* t_kept = nullptr;

std::string Place(const char* file, int line) {
  absl::string_view name = file == nullptr ? "" : file;
  name.remove_prefix(name.rfind('/') + 1);  // npos + 1 is 0
  return absl::StrCat(name, ":", line);
}

void LogGrpc(gpr_log_func_args* args) {
  const LogLevel level = args->severity == GPR_LOG_SEVERITY_ERROR  ? LogLevel::kError
                         : args->severity == GPR_LOG_SEVERITY_INFO ? LogLevel::kInfo
                                                                   : LogLevel::kDebug;
  std::string place = Place(args->file, args->line);
  const bool is_last = absl::StartsWith(args->message, "assertion failed");  // the process ends when this returns
  if (t_kept != nullptr && level == LogLevel::kError && !is_last) {
    t_kept->push_back({level, args->message, std::move(place)});
  } else {
    LogLibrary(level, "grpc", args->message, place);
    if (is_last) FlushLog(kLastWords);
  }
}

void LogProtobuf(google::protobuf::LogLevel level, const char* file, int line, const std::string& message) {
  LogLibrary(level == google::protobuf::LOGLEVEL_INFO      ? LogLevel::kInfo
             : level == google::protobuf::LOGLEVEL_WARNING ? LogLevel::kWarning
                                                           : LogLevel::kError,
             "protobuf", message, Place(file, line));
  // What follows is an exception that nobody catches.
  if (level == google::protobuf::LOGLEVEL_FATAL) FlushLog(kLastWords);
}

}  // namespace

void LogCall(const CallLog& call) {
  nlohmann::ordered_json fields{{"event", "call"}, {"call_id", call.id}, {"method", call.method}};
  const auto text = [&fields](const char* key, const std::string& value) {
    if (!value.empty()) fields[key] = value;
  };
  const auto number = [&fields](const char* key, int64_t value) {
    if (value != 0) fields[key] = value;
  };
  const auto time = [&fields](const char* key, absl::Duration value) {
    if (value != absl::ZeroDuration()) fields[key] = Milliseconds(value);
  };
  text("owner", call.owner);
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
  LogLine(LogLevel::kInfo, std::move(fields));
}

void LogLibraries() {
  gpr_set_log_function(LogGrpc);
  google::protobuf::SetLogHandler(LogProtobuf);
}

QuietLibraries::QuietLibraries() { t_kept = new std::vector<LibraryLine>; }

QuietLibraries::~QuietLibraries() {
  const std::unique_ptr<std::vector<LibraryLine>> kept(std::exchange(t_kept, nullptr));
  for (const LibraryLine& line : *kept) LogLibrary(line.level, "grpc", line.message, line.where);
}

void QuietLibraries::Drop() { t_kept->clear(); }

}  // namespace palimpsest
