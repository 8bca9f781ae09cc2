// The command line's own flags: each subcommand has its set, so that its --help shows what applies and nothing else.
//
// `--name value`, `--name=value`, and `--name` alone for switches (`--name=false` turns one off); dashes and
// underscores in names are the same; `--` ends the flags. Flags and positional arguments may be mixed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace palimpsest::cli {

// Where a flag's value goes. What stands there before is its default, and --help shows it unless it is empty or unset.
// A vector collects each use of the flag.
using FlagTarget = std::variant<bool*, int64_t*, double*, std::string*, absl::Duration*, std::optional<int64_t>*,
                                std::optional<uint64_t>*, std::optional<double>*, std::optional<absl::Duration>*,
                                std::vector<std::string>*, std::vector<int64_t>*>;

class FlagSet {
 public:
  // Begins a group of flags, shown under `title` by Help.
  void Group(absl::string_view title);

  // `value` is how --help calls the value, for example FILE; switches have none. Targets outlive the set.
  void Add(absl::string_view name, FlagTarget target, absl::string_view value, absl::string_view help);

  // Sets the targets; returns the positional arguments. INVALID_ARGUMENT, in words for a user: an unknown flag (with
  // the nearest known one), a value missing or of the wrong kind.
  absl::StatusOr<std::vector<std::string>> Parse(const std::vector<std::string>& arguments) const;

  // The flags, one to a paragraph, wrapped at `width` columns.
  std::string Help(int width) const;

 private:
  struct Flag {
    std::string name;
    FlagTarget target;
    std::string value;
    std::string help;
    std::string group;
    std::string default_text;
  };
  const Flag* Find(absl::string_view name) const;

  std::vector<Flag> flags_;
  std::string group_;
};

// `text` with lines of at most `width` columns; each line begins with `indent` spaces. Newlines stay, and
// so do lines that begin with a space.
std::string Wrap(absl::string_view text, int indent, int width);

}  // namespace palimpsest::cli
