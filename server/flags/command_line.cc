#include "server/flags/command_line.h"

#include <cstdint>
#include <cstdlib>

#include "absl/flags/reflection.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "base/file.h"

namespace palimpsest {
namespace {

constexpr char kFlagFile[] = "flagfile";
constexpr int64_t kMaxFlagFileBytes = 1 << 20;

constexpr char kServiceLink[] =
    ". Kubernetes sets such a variable for a Service of that name; enableServiceLinks: false in the pod keeps it away";

bool IsList(const absl::CommandLineFlag& flag) { return flag.IsOfType<std::vector<std::string>>(); }

absl::string_view AcceptedBy(const absl::CommandLineFlag& flag) {
  if (flag.IsOfType<int32_t>() || flag.IsOfType<int64_t>()) return "a whole number";
  if (flag.IsOfType<double>() || flag.IsOfType<float>()) return "a number";
  if (flag.IsOfType<bool>()) return "true or false";
  if (flag.IsOfType<absl::Duration>()) return "a duration such as 500ms, 30s, 1h30m or inf";
  return "text";
}

}  // namespace

CommandLine::CommandLine(std::string environment_prefix, std::vector<FlagGroup> groups)
    : prefix_(std::move(environment_prefix)), groups_(std::move(groups)) {}

absl::CommandLineFlag* CommandLine::Find(absl::string_view name) const {
  for (const FlagGroup& group : groups_) {
    for (const char* flag : group.flags) {
      if (name == flag) return absl::FindCommandLineFlag(name);
    }
  }
  return nullptr;
}

absl::Status CommandLine::Take(absl::string_view text, const char* next, absl::string_view where, Source& source,
                               bool& used_next) {
  const auto refuse = [&where](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(where, where.empty() ? "" : ": ", what));
  };
  used_next = false;
  const absl::string_view whole = text;
  if (!absl::ConsumePrefix(&text, "--")) {
    return refuse(absl::StrCat("\"", whole, "\" is not a flag; flags are --name=value, and --help lists them"));
  }
  const size_t equals = text.find('=');
  const std::string name(text.substr(0, equals));
  const absl::CommandLineFlag* flag = Find(name);
  if (flag == nullptr) return refuse(absl::StrCat("there is no flag --", name, "; --help lists those there are"));
  std::string value;
  if (equals != absl::string_view::npos) {
    value = std::string(text.substr(equals + 1));
  } else if (next != nullptr) {
    value = next;
    used_next = true;
  } else {
    return refuse(absl::StrCat("--", name, " has no value; accepted: --", name, "=VALUE"));
  }
  Said& said = source[name];
  if (!IsList(*flag)) said.values.clear();  // the last one counts
  said.values.push_back(std::move(value));
  said.where = std::string(where);
  return absl::OkStatus();
}

absl::StatusOr<CommandLine::Source> CommandLine::ReadEnvironment() const {
  Source source;
  for (const FlagGroup& group : groups_) {
    for (const char* name : group.flags) {
      const std::string variable = absl::StrCat(prefix_, absl::AsciiStrToUpper(name));
      if (const char* value = std::getenv(variable.c_str())) source[name] = {{value}, variable};
    }
  }
  return source;
}

absl::StatusOr<CommandLine::Source> CommandLine::ReadFile(const std::string& path) {
  const absl::StatusOr<std::string> text = palimpsest::ReadFile(path, kMaxFlagFileBytes);
  if (!text.ok()) {
    absl::string_view problem = text.status().message();
    absl::ConsumePrefix(&problem, absl::StrCat(path, ": "));
    return absl::InvalidArgumentError(absl::StrCat("--flagfile is ", path, ", which cannot be read: ", problem,
                                                   "; accepted: a file with a --name=value on a line"));
  }
  Source source;
  int number = 0;
  for (const absl::string_view whole : absl::StrSplit(*text, '\n')) {
    ++number;
    const absl::string_view line = absl::StripAsciiWhitespace(whole);
    if (line.empty() || line[0] == '#') continue;
    const std::string where = absl::StrCat(path, ":", number);
    bool used_next = false;
    if (absl::Status status = Take(line, nullptr, where, source, used_next); !status.ok()) return status;
    if (source.count(kFlagFile) > 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": a flag file cannot name another; put the flags into one file"));
    }
  }
  return source;
}

absl::Status CommandLine::Apply(const Source& source) {
  for (const auto& [name, said] : source) {
    absl::CommandLineFlag* flag = Find(name);
    const std::string value = absl::StrJoin(said.values, ",");
    origins_[name] = said.where;
    if (std::string error; !flag->ParseFrom(value, &error)) {
      return absl::InvalidArgumentError(absl::StrCat(WithOrigin(absl::StrCat("--", name, " is \"", value, "\"")),
                                                     "; accepted: ", AcceptedBy(*flag),
                                                     absl::StartsWith(value, "tcp://") ? kServiceLink : ""));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<CommandLine::Asked> CommandLine::Read(int argc, const char* const* argv) {
  Source flags;
  for (int i = 1; i < argc; ++i) {
    const absl::string_view text = argv[i];
    if (text == "--help" || text == "-h") return Asked::kHelp;
    if (text == "--version") return Asked::kVersion;
    bool used_next = false;
    if (absl::Status status = Take(text, i + 1 < argc ? argv[i + 1] : nullptr, "", flags, used_next); !status.ok()) {
      return status;
    }
    if (used_next) ++i;
  }
  absl::StatusOr<Source> environment = ReadEnvironment();
  if (!environment.ok()) return environment.status();
  std::string path;
  for (const Source* source : {&flags, &*environment}) {
    if (const auto found = source->find(kFlagFile); found != source->end() && path.empty()) {
      path = found->second.values.back();
    }
  }
  if (!path.empty()) {
    absl::StatusOr<Source> file = ReadFile(path);
    if (!file.ok()) return file.status();
    if (absl::Status status = Apply(*file); !status.ok()) return status;
  }
  if (absl::Status status = Apply(*environment); !status.ok()) return status;
  if (absl::Status status = Apply(flags); !status.ok()) return status;
  return Asked::kRun;
}

std::string CommandLine::Help(absl::string_view about) const {
  std::string text = absl::StrCat(about, "\n");
  for (const FlagGroup& group : groups_) {
    absl::StrAppend(&text, "\n", group.title, "\n");
    for (const char* name : group.flags) {
      const absl::CommandLineFlag* flag = absl::FindCommandLineFlag(name);
      const std::string value = flag->DefaultValue();
      absl::StrAppend(&text, "  --", name, value.empty() ? "" : absl::StrCat(" (", value, ")"), "\n");
      std::string line = "     ";
      for (const absl::string_view word : absl::StrSplit(flag->Help(), ' ')) {
        if (line.size() + 1 + word.size() > 100) {
          absl::StrAppend(&text, line, "\n");
          line = "     ";
        }
        absl::StrAppend(&line, " ", word);
      }
      absl::StrAppend(&text, line, "\n");
    }
  }
  absl::StrAppend(&text, "\n  --version, --help\n");
  return text;
}

std::vector<std::pair<std::string, std::string>> CommandLine::Values() const {
  std::vector<std::pair<std::string, std::string>> values;
  for (const FlagGroup& group : groups_) {
    for (const char* name : group.flags) values.emplace_back(name, absl::FindCommandLineFlag(name)->CurrentValue());
  }
  return values;
}

std::string CommandLine::WithOrigin(absl::string_view message) const {
  absl::string_view name = message;
  if (!absl::ConsumePrefix(&name, "--")) return std::string(message);
  name = name.substr(0, name.find_first_of(" =:;,"));
  const auto origin = origins_.find(std::string(name));
  if (origin == origins_.end() || origin->second.empty()) return std::string(message);
  // Behind the value, where the message says what is accepted instead.
  const size_t end = std::min(message.find("; accepted"), message.size());
  return absl::StrCat(message.substr(0, end), " (", origin->second, ")", message.substr(end));
}

}  // namespace palimpsest
