// How the server is configured: flags, each of which may also be set in the environment or in a file.
//
//   --name=value, --name value           on the command line
//   PREFIX_NAME=value                    in the environment
//   --name=value, one on a line          in the file that --flagfile names; # begins a comment line
//
// The command line wins over the environment, which wins over the file, which wins over the defaults. A flag that holds
// a list may be repeated on the command line and in the file; the values of one source replace those of a weaker one.
//
// Not absl's own parser: that one ends the process with exit code 1, knows the flags of every library, and its flag
// files have no place for the environment.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/commandlineflag.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace palimpsest {

struct FlagGroup {
  const char* title;
  std::vector<const char*> flags;  // defined by ABSL_FLAG
};

class CommandLine {
 public:
  // `flagfile` must be one of the flags, a string.
  CommandLine(std::string environment_prefix, std::vector<FlagGroup> groups);

  enum class Asked { kRun, kHelp, kVersion };
  // Sets the flags. INVALID_ARGUMENT, in words for the person at the command line: a flag that is not there, a value of
  // the wrong kind with its place and what is accepted, a file that cannot be read or that names another.
  absl::StatusOr<Asked> Read(int argc, const char* const* argv);

  // The flags by group, each with its default and its help, after `about`.
  std::string Help(absl::string_view about) const;

  // All flags with their present values, in the order of the groups.
  std::vector<std::pair<std::string, std::string>> Values() const;

  // Adds where the flag was set to a message that begins with it: "--slots is 0" -> "--slots is 0 (PALIMPSEST_SLOTS)".
  std::string WithOrigin(absl::string_view message) const;

 private:
  // A source of values: what it says of each flag, and where.
  struct Said {
    std::vector<std::string> values;
    std::string where;
  };
  using Source = std::map<std::string, Said>;

  absl::CommandLineFlag* Find(absl::string_view name) const;
  // Takes in "name=value", or "name" with its value in `next`; `used_next` says which.
  absl::Status Take(absl::string_view text, const char* next, absl::string_view where, Source& source, bool& used_next);
  absl::StatusOr<Source> ReadEnvironment() const;
  absl::StatusOr<Source> ReadFile(const std::string& path);
  absl::Status Apply(const Source& source);

  const std::string prefix_;
  const std::vector<FlagGroup> groups_;
  std::map<std::string, std::string> origins_;  // of the flags that were set elsewhere than on the command line
};

}  // namespace palimpsest
