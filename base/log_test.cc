#include "base/log.h"

#include <nlohmann/json.hpp>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace palimpsest {
namespace {

using ::testing::EndsWith;

// The line that `write` makes, without its end.
template <typename Write>
std::string LineOf(LogFormat format, const Write& write) {
  SetLogFormat(format);
  ::testing::internal::CaptureStderr();
  write();
  EXPECT_TRUE(FlushLog(absl::Minutes(1)));
  std::string line = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(line, EndsWith("\n"));
  line.pop_back();
  EXPECT_EQ(line.find('\n'), std::string::npos) << line;
  return line;
}

TEST(Log, LinesOfJson) {
  const auto line = nlohmann::json::parse(LineOf(LogFormat::kJson, [] {
    LogWarning("something\nodd", {{"why",
                                   "be\xff"
                                   "cause"},
                                  {"where", "x=\"y\""}});
  }));
  EXPECT_EQ(line.at("level"), "warning");
  EXPECT_EQ(line.at("event"), "something\nodd");
  EXPECT_EQ(line.at("why"),
            "be\xEF\xBF\xBD"
            "cause");
  EXPECT_EQ(line.at("where"), "x=\"y\"");
  EXPECT_EQ(line.at("time").get<std::string>().size(), 24);
}

TEST(Log, LinesOfText) {
  EXPECT_THAT(LineOf(LogFormat::kText, [] { LogEvent("ready", {{"port", "1"}}); }), EndsWith("Z ready port=1"));
  EXPECT_THAT(LineOf(LogFormat::kText,
                     [] {
                       LogError("bad", {{"why", "a b"}});
                     }),
              EndsWith("Z error: bad why=\"a b\""));
}

TEST(Log, LibrariesHaveTheSameForm) {
  const auto line = nlohmann::json::parse(
      LineOf(LogFormat::kJson, [] { LogLibrary(LogLevel::kError, "grpc", "it failed", "tcp.cc:12"); }));
  EXPECT_EQ(line.at("level"), "error");
  EXPECT_EQ(line.at("source"), "grpc");
  EXPECT_EQ(line.at("message"), "it failed");
  EXPECT_EQ(line.at("where"), "tcp.cc:12");
  EXPECT_THAT(LineOf(LogFormat::kText, [] { LogLibrary(LogLevel::kInfo, "grpc", "hello", ""); }),
              EndsWith("Z a library reports source=grpc message=hello"));
}

TEST(Log, PlainLinesStayAsTheyAre) {
  EXPECT_EQ(LineOf(LogFormat::kJson, [] { LogPlain("palimpsest-server: no"); }), "palimpsest-server: no");
}

}  // namespace
}  // namespace palimpsest
