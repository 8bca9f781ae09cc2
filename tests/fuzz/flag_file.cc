// The file that --flagfile names, with flags of every type.
#include <memory>

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/check.h"
#include "base/testing/temporary_folder.h"
#include "server/flags/command_line.h"
#include "server/model/testing/safetensors_writer.h"
#include "tests/fuzz/fuzz.h"

ABSL_FLAG(int32_t, rows, 7, "Rows.");
ABSL_FLAG(int64_t, bytes, 7, "Bytes.");
ABSL_FLAG(double, share, 0.5, "Share.");
ABSL_FLAG(bool, watch, false, "Whether.");
ABSL_FLAG(absl::Duration, patience, absl::Seconds(3), "How long.");
ABSL_FLAG(std::string, name, "", "Name.");
ABSL_FLAG(std::vector<std::string>, item, {}, "Items.");
ABSL_FLAG(std::string, flagfile, "", "A file with flags.");

namespace palimpsest::fuzz {

void Run(std::string_view input) {
  static const auto folder = std::make_unique<testing::TemporaryFolder>();
  const absl::FlagSaver saver;
  testing::WriteFile(folder->path() + "/flags", input);
  const std::string argument = absl::StrCat("--flagfile=", folder->path(), "/flags");
  const char* const arguments[] = {"program", argument.c_str(), "--rows=11"};
  CommandLine line("FUZZED_", {{"All", {"rows", "bytes", "share", "watch", "patience", "name", "item", "flagfile"}}});
  const absl::StatusOr<CommandLine::Asked> asked = line.Read(3, arguments);
  if (!asked.ok()) {
    PALIMPSEST_CHECK(absl::IsInvalidArgument(asked.status()) && !asked.status().message().empty());
    return;
  }
  PALIMPSEST_CHECK(*asked == CommandLine::Asked::kRun);
  PALIMPSEST_CHECK(absl::GetFlag(FLAGS_rows) == 11);  // the command line wins
  // What flags say of themselves is what they take.
  for (const auto& [name, value] : line.Values()) {
    std::string error;
    PALIMPSEST_CHECK(absl::FindCommandLineFlag(name)->ParseFrom(value, &error));
    PALIMPSEST_CHECK(!line.WithOrigin(absl::StrCat("--", name, " is ", value, "; accepted: less")).empty());
  }
}

}  // namespace palimpsest::fuzz
