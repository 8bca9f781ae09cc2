#include "clients/cpp/cli/args.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace palimpsest::cli {
namespace {

std::string Canonical(absl::string_view name) { return absl::StrReplaceAll(name, {{"-", "_"}}); }

absl::Status Wrong(absl::string_view name, absl::string_view text, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat("--", name, " needs ", expected, ", not \"", text, "\""));
}

// A duration as a person writes it: 1.5s, 250ms, 2m, 1h30m; a bare number is seconds.
bool ParseTime(absl::string_view text, absl::Duration* duration) {
  double seconds;
  if (absl::SimpleAtod(text, &seconds)) {
    *duration = absl::Seconds(seconds);
    return true;
  }
  return absl::ParseDuration(text, duration);
}

// Assigns `text` to a target of each type; returns what was expected instead if it does not fit.
struct Assign {
  absl::string_view text;

  const char* operator()(bool* target) const {
    return absl::SimpleAtob(text, target) ? nullptr : "true or false, or no value";
  }
  const char* operator()(int64_t* target) const { return absl::SimpleAtoi(text, target) ? nullptr : "a whole number"; }
  const char* operator()(double* target) const { return absl::SimpleAtod(text, target) ? nullptr : "a number"; }
  const char* operator()(std::string* target) const {
    *target = std::string(text);
    return nullptr;
  }
  const char* operator()(absl::Duration* target) const {
    return ParseTime(text, target) ? nullptr : "a time such as 30s, 5m or 1h30m";
  }
  const char* operator()(std::optional<uint64_t>* target) const {
    uint64_t value;
    if (!absl::SimpleAtoi(text, &value)) return "a whole number that is not negative";
    *target = value;
    return nullptr;
  }
  const char* operator()(std::vector<std::string>* target) const {
    target->emplace_back(text);
    return nullptr;
  }
  const char* operator()(std::vector<int64_t>* target) const {
    for (const absl::string_view part : absl::StrSplit(text, ',')) {
      int64_t value;
      if (!absl::SimpleAtoi(part, &value)) return "whole numbers with commas between them";
      target->push_back(value);
    }
    return nullptr;
  }
  template <typename T>
  const char* operator()(std::optional<T>* target) const {
    T value;
    const char* wrong = (*this)(&value);
    if (wrong == nullptr) *target = value;
    return wrong;
  }
};

struct DefaultText {
  std::string operator()(const bool* target) const { return *target ? "true" : ""; }
  std::string operator()(const int64_t* target) const { return absl::StrCat(*target); }
  std::string operator()(const double* target) const { return absl::StrCat(*target); }
  std::string operator()(const std::string* target) const {
    return target->empty() ? "" : absl::StrReplaceAll(*target, {{"\n", "\\n"}});
  }
  std::string operator()(const absl::Duration* target) const {
    return *target == absl::InfiniteDuration() ? "" : absl::FormatDuration(*target);
  }
  template <typename T>
  std::string operator()(const T*) const {
    return "";  // optionals and lists begin unset
  }
};

// Number of single-character edits from a to b.
int Distance(absl::string_view a, absl::string_view b) {
  std::vector<int> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

void FlagSet::Group(absl::string_view title) { group_ = std::string(title); }

void FlagSet::Add(absl::string_view name, FlagTarget target, absl::string_view value, absl::string_view help) {
  flags_.push_back(
      {std::string(name), target, std::string(value), std::string(help), group_, std::visit(DefaultText(), target)});
}

const FlagSet::Flag* FlagSet::Find(absl::string_view name) const {
  const auto it = std::find_if(flags_.begin(), flags_.end(), [&](const Flag& flag) { return flag.name == name; });
  return it == flags_.end() ? nullptr : &*it;
}

absl::StatusOr<std::vector<std::string>> FlagSet::Parse(const std::vector<std::string>& arguments) const {
  std::vector<std::string> positional;
  for (size_t i = 0; i < arguments.size(); ++i) {
    absl::string_view argument = arguments[i];
    if (argument == "--") {
      positional.insert(positional.end(), arguments.begin() + i + 1, arguments.end());
      break;
    }
    if (!absl::ConsumePrefix(&argument, "--")) {
      if (argument.size() > 1 && argument[0] == '-' && !absl::ascii_isdigit(argument[1])) {
        return absl::InvalidArgumentError(absl::StrCat(
            "unknown flag ", argument, "; flags have two dashes (put -- before text that begins with one)"));
      }
      positional.emplace_back(argument);
      continue;
    }
    const std::pair<absl::string_view, absl::string_view> split = absl::StrSplit(argument, absl::MaxSplits('=', 1));
    const std::string name = Canonical(split.first);
    const Flag* flag = Find(name);
    if (flag == nullptr) {
      const auto nearest = std::min_element(flags_.begin(), flags_.end(), [&](const Flag& a, const Flag& b) {
        return Distance(a.name, name) < Distance(b.name, name);
      });
      const bool close = nearest != flags_.end() && Distance(nearest->name, name) <= 1 + name.size() / 4;
      return absl::InvalidArgumentError(absl::StrCat(
          "unknown flag --", split.first, close ? absl::StrCat("; did you mean --", nearest->name, "?") : ""));
    }
    std::string text(split.second);
    if (!absl::StrContains(argument, "=")) {
      if (std::holds_alternative<bool*>(flag->target)) {
        text = "true";
      } else if (i + 1 < arguments.size()) {
        text = arguments[++i];
      } else {
        return absl::InvalidArgumentError(absl::StrCat("--", flag->name, " needs a value: ", flag->value));
      }
    }
    if (const char* expected = std::visit(Assign{text}, flag->target)) return Wrong(flag->name, text, expected);
  }
  return positional;
}

std::string FlagSet::Help(int width) const {
  std::string help;
  std::string group;
  for (const Flag& flag : flags_) {
    if (flag.group != group) {
      absl::StrAppend(&help, help.empty() ? "" : "\n", flag.group, ":\n");
      group = flag.group;
    }
    const std::string head = absl::StrCat("  --", flag.name, flag.value.empty() ? "" : " ", flag.value);
    std::string text = flag.help;
    if (!flag.default_text.empty()) absl::StrAppend(&text, " (default ", flag.default_text, ")");
    constexpr int kColumn = 28;
    std::string body = Wrap(text, kColumn, width);
    if (static_cast<int>(head.size()) < kColumn - 1) {
      body.replace(0, head.size(), head);  // the first line's indent has room for the name
      absl::StrAppend(&help, body);
    } else {
      absl::StrAppend(&help, head, "\n", body);
    }
  }
  return help;
}

std::string Wrap(absl::string_view text, int indent, int width) {
  std::string wrapped;
  for (const absl::string_view paragraph : absl::StrSplit(text, '\n')) {
    if (absl::StartsWith(paragraph, " ")) {  // an example: as it stands
      absl::StrAppend(&wrapped, std::string(indent, ' '), paragraph, "\n");
      continue;
    }
    std::string line;
    for (const absl::string_view word : absl::StrSplit(paragraph, ' ')) {
      if (!line.empty() && indent + static_cast<int>(line.size() + 1 + word.size()) > width) {
        absl::StrAppend(&wrapped, std::string(indent, ' '), line, "\n");
        line.clear();
      }
      absl::StrAppend(&line, line.empty() ? "" : " ", word);
    }
    absl::StrAppend(&wrapped, line.empty() ? "" : std::string(indent, ' '), line, "\n");
  }
  return wrapped;
}

}  // namespace palimpsest::cli
