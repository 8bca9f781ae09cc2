#include "server/flags/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/time/time.h"
#include "base/testing/temporary_folder.h"

ABSL_FLAG(int32_t, rows, 7, "Rows.");
ABSL_FLAG(absl::Duration, patience, absl::Seconds(3), "How long.");
ABSL_FLAG(std::vector<std::string>, item, {}, "Items.");
ABSL_FLAG(std::string, flagfile, "", "A file with flags.");
ABSL_FLAG(std::string, hidden, "", "Of a library: not one of ours.");

namespace palimpsest {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Asked = CommandLine::Asked;

class CommandLineTest : public ::testing::Test {
 protected:
  ~CommandLineTest() override {
    for (const char* name : {"T_ROWS", "T_ITEM", "T_FLAGFILE", "T_PATIENCE"}) unsetenv(name);
  }
  absl::StatusOr<Asked> Read(std::vector<const char*> arguments) {
    arguments.insert(arguments.begin(), "program");
    return line_.Read(static_cast<int>(arguments.size()), arguments.data());
  }
  std::string Refusal(const std::vector<const char*>& arguments) {
    const absl::StatusOr<Asked> asked = Read(arguments);
    return asked.ok() ? "accepted" : std::string(asked.status().message());
  }
  // The value of --flagfile for a file with this text.
  std::string File(const std::string& text) {
    std::ofstream(path_) << text;
    return "--flagfile=" + path_;
  }

  absl::FlagSaver saver_;  // flags are as they were before, after each test
  const testing::TemporaryFolder folder_;
  const std::string path_ = folder_.path() + "/flags";
  CommandLine line_{"T_", {{"Sizes", {"rows", "item"}}, {"Operation", {"patience", "flagfile"}}}};
};

TEST_F(CommandLineTest, AFlagWinsOverTheEnvironmentAndThatOverTheFileAndThatOverTheDefault) {
  const std::string file = File("--rows=1\n");
  EXPECT_EQ(*Read({}), Asked::kRun);
  EXPECT_EQ(absl::GetFlag(FLAGS_rows), 7);
  ASSERT_TRUE(Read({file.c_str()}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_rows), 1);
  setenv("T_ROWS", "2", 1);
  ASSERT_TRUE(Read({file.c_str()}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_rows), 2);
  ASSERT_TRUE(Read({file.c_str(), "--rows=3"}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_rows), 3);
  ASSERT_TRUE(Read({"--rows", "4", file.c_str()}).ok()) << "the order on the command line says nothing";
  EXPECT_EQ(absl::GetFlag(FLAGS_rows), 4);
}

TEST_F(CommandLineTest, TheEnvironmentMayNameTheFileAndTheCommandLineAnother) {
  File("--rows=11\n");
  setenv("T_FLAGFILE", path_.c_str(), 1);
  ASSERT_TRUE(Read({}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_rows), 11);
  const std::string other = folder_.path() + "/other";
  std::ofstream(other) << "--rows=12";
  ASSERT_TRUE(Read({("--flagfile=" + other).c_str()}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_rows), 12);
}

TEST_F(CommandLineTest, AFileHasCommentsEmptyLinesAndSpacesAround) {
  const std::string file = File("# sizes\n\n  --rows=5  \n\t# --rows=6\n--patience=1m30s\r\n--item=a#b\n");
  ASSERT_TRUE(Read({file.c_str()}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_rows), 5);
  EXPECT_EQ(absl::GetFlag(FLAGS_patience), absl::Seconds(90));
  EXPECT_THAT(absl::GetFlag(FLAGS_item), ElementsAre("a#b"));
}

TEST_F(CommandLineTest, AListIsOfOneSource) {
  const std::string file = File("--item=a\n--item=b,c\n");
  ASSERT_TRUE(Read({file.c_str()}).ok());
  EXPECT_THAT(absl::GetFlag(FLAGS_item), ElementsAre("a", "b", "c"));
  setenv("T_ITEM", "d,e", 1);
  ASSERT_TRUE(Read({file.c_str()}).ok());
  EXPECT_THAT(absl::GetFlag(FLAGS_item), ElementsAre("d", "e"));
  ASSERT_TRUE(Read({file.c_str(), "--item=f", "--item=g"}).ok());
  EXPECT_THAT(absl::GetFlag(FLAGS_item), ElementsAre("f", "g"));
}

TEST_F(CommandLineTest, OfAFlagGivenTwiceTheLastCounts) {
  ASSERT_TRUE(Read({"--rows=1", "--rows=2"}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_rows), 2);
}

TEST_F(CommandLineTest, ARefusalSaysWhatAndWhereAndWhatIsAccepted) {
  EXPECT_EQ(Refusal({"--rows=many"}), "--rows is \"many\"; accepted: a whole number");
  EXPECT_EQ(Refusal({"--rows=99999999999"}), "--rows is \"99999999999\"; accepted: a whole number");
  EXPECT_THAT(Refusal({"--patience=soon"}), HasSubstr("--patience is \"soon\"; accepted: a duration such as 500ms"));
  EXPECT_THAT(Refusal({"--rows"}), HasSubstr("--rows has no value"));
  EXPECT_THAT(Refusal({"rows=1"}), HasSubstr("\"rows=1\" is not a flag"));
  EXPECT_THAT(Refusal({"--row=1"}), HasSubstr("there is no flag --row"));
  EXPECT_THAT(Refusal({"--hidden=1"}), HasSubstr("there is no flag --hidden"));

  setenv("T_ROWS", "many", 1);
  EXPECT_EQ(Refusal({}), "--rows is \"many\" (T_ROWS); accepted: a whole number");
  setenv("T_ROWS", "tcp://10.0.0.1:50051", 1);
  EXPECT_THAT(Refusal({}), HasSubstr("\"tcp://10.0.0.1:50051\" (T_ROWS); accepted: a whole number. Kubernetes sets"));
  unsetenv("T_ROWS");

  EXPECT_EQ(Refusal({File("\n--rows=many\n").c_str()}),
            "--rows is \"many\" (" + path_ + ":2); accepted: a whole number");
  EXPECT_EQ(Refusal({File("--rows=1\n--row=1\n").c_str()}),
            path_ + ":2: there is no flag --row; --help lists those there are");
  EXPECT_THAT(Refusal({File("rows=1\n").c_str()}), HasSubstr(":1: \"rows=1\" is not a flag"));
  EXPECT_THAT(Refusal({File("--rows 1\n").c_str()}), HasSubstr("there is no flag --rows 1"));
  EXPECT_THAT(Refusal({File("--rows\n").c_str()}), HasSubstr(":1: --rows has no value"));
}

TEST_F(CommandLineTest, AFileThatIsNotThereOrNamesAnotherIsRefused) {
  EXPECT_THAT(Refusal({"--flagfile=/nowhere/flags"}), HasSubstr("--flagfile is /nowhere/flags, which cannot be read"));
  EXPECT_THAT(Refusal({("--flagfile=" + folder_.path()).c_str()}), HasSubstr("cannot be read"));
  EXPECT_THAT(Refusal({File("--flagfile=other\n").c_str()}), HasSubstr(":1: a flag file cannot name another"));
}

TEST_F(CommandLineTest, AMessageIsGivenTheFlagsOrigin) {
  setenv("T_ROWS", "3", 1);
  ASSERT_TRUE(Read({File("--patience=1s\n").c_str()}).ok());
  EXPECT_EQ(line_.WithOrigin("--rows is 3; accepted: 4"), "--rows is 3 (T_ROWS); accepted: 4");
  EXPECT_EQ(line_.WithOrigin("--patience is 1s"), "--patience is 1s (" + path_ + ":1)");
  EXPECT_EQ(line_.WithOrigin("--item is a"), "--item is a");
  EXPECT_EQ(line_.WithOrigin("rows are many"), "rows are many");
  ASSERT_TRUE(Read({"--rows=3"}).ok());
  EXPECT_EQ(line_.WithOrigin("--rows is 3"), "--rows is 3");
}

TEST_F(CommandLineTest, HelpHasTheGroupsWithTheirFlags) {
  EXPECT_EQ(*Read({"--rows=1", "--help", "--nonsense"}), Asked::kHelp);
  EXPECT_EQ(*Read({"-h"}), Asked::kHelp);
  EXPECT_EQ(*Read({"--version"}), Asked::kVersion);
  EXPECT_THAT(line_.Help("About."), AllOf(HasSubstr("About.\n\nSizes\n  --rows (7)\n      Rows.\n  --item\n"),
                                          HasSubstr("\nOperation\n  --patience (3s)\n"), Not(HasSubstr("hidden"))));
}

}  // namespace
}  // namespace palimpsest
