// The parts of the command line that need no server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "clients/cpp/cli/args.h"
#include "clients/cpp/cli/bench_report.h"
#include "clients/cpp/cli/command.h"
#include "clients/cpp/cli/in_order.h"
#include "clients/cpp/cli/load.h"
#include "clients/cpp/cli/prometheus.h"
#include "clients/cpp/cli/scoring.h"
#include "clients/cpp/cli/text_pieces.h"

namespace palimpsest::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// -- Flags

class FlagsTest : public ::testing::Test {
 protected:
  FlagsTest() {
    flags_.Group("Flags");
    flags_.Add("dry_run", &dry_run_, "", "does nothing");
    flags_.Add("count", &count_, "N", "how many");
    flags_.Add("share", &share_, "X", "how much");
    flags_.Add("name", &name_, "NAME", "what it is called");
    flags_.Add("time", &time_, "TIME", "how long");
    flags_.Add("seed", &seed_, "N", "where it starts");
    flags_.Add("stop", &stop_, "TEXT", "where it ends");
    flags_.Add("ids", &ids_, "ID,...", "which");
  }

  FlagSet flags_;
  bool dry_run_ = false;
  int64_t count_ = 7;
  double share_ = 0.5;
  std::string name_;
  absl::Duration time_ = absl::Seconds(5);
  std::optional<uint64_t> seed_;
  std::vector<std::string> stop_;
  std::vector<int64_t> ids_;
};

TEST_F(FlagsTest, ValuesFollowOrAreJoinedAndPositionalArgumentsMayStandBetween) {
  const auto rest = flags_.Parse({"first", "--count", "-3", "--share=0.25", "second", "--name=", "--dry-run", "--time",
                                  "1m30s", "--seed", "18446744073709551615", "--stop=a=b", "--stop", "--c", "--ids",
                                  "1,2", "--ids=3", "--", "--count"});
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_THAT(*rest, ElementsAre("first", "second", "--count"));
  EXPECT_TRUE(dry_run_);
  EXPECT_EQ(count_, -3);
  EXPECT_EQ(share_, 0.25);
  EXPECT_EQ(time_, absl::Seconds(90));
  EXPECT_EQ(seed_, ~uint64_t{0});
  EXPECT_THAT(stop_, ElementsAre("a=b", "--c"));
  EXPECT_THAT(ids_, ElementsAre(1, 2, 3));
}

TEST_F(FlagsTest, ASwitchCanBeTurnedOffAndTakesNoFollowingValue) {
  dry_run_ = true;
  ASSERT_TRUE(flags_.Parse({"--dry_run=false"}).ok());
  EXPECT_FALSE(dry_run_);
  EXPECT_THAT(*flags_.Parse({"--dry_run", "false"}), ElementsAre("false"));
  EXPECT_TRUE(dry_run_);
}

TEST_F(FlagsTest, WhatDoesNotFitIsExplained) {
  const std::pair<std::vector<std::string>, const char*> rows[] = {
      {{"--cuont", "1"}, "unknown flag --cuont; did you mean --count?"},
      {{"--nothing_like_it"}, "unknown flag --nothing_like_it"},
      {{"-n", "1"}, "unknown flag -n; flags have two dashes (put -- before text that begins with one)"},
      {{"--count", "many"}, "--count needs a whole number, not \"many\""},
      {{"--count", "1.5"}, "--count needs a whole number, not \"1.5\""},
      {{"--share="}, "--share needs a number, not \"\""},
      {{"--seed", "-1"}, "--seed needs a whole number that is not negative, not \"-1\""},
      {{"--time", "soon"}, "--time needs a time such as 30s, 5m or 1h30m, not \"soon\""},
      {{"--ids", "1,x"}, "--ids needs whole numbers with commas between them, not \"1,x\""},
      {{"--dry_run=maybe"}, "--dry_run needs true or false, or no value, not \"maybe\""},
      {{"--name"}, "--name needs a value: NAME"}};
  for (const auto& [arguments, message] : rows) {
    EXPECT_EQ(flags_.Parse(arguments).status().message(), message) << absl::StrJoin(arguments, " ");
  }
}

TEST_F(FlagsTest, HelpShowsDefaultsAndKeepsToItsWidth) {
  flags_.Add("a_flag_of_a_very_long_name", &name_, "VALUE",
             std::string(20, 'w') + " and more words than fit in a line");
  const std::string help = flags_.Help(60);
  EXPECT_THAT(help, HasSubstr("  --count N                 how many (default 7)\n"));
  EXPECT_THAT(help, HasSubstr("  --time TIME               how long (default 5s)\n"));
  EXPECT_THAT(help, HasSubstr("  --dry_run                 does nothing\n"));
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(help, '\n'))) EXPECT_LE(line.size(), 60u);
}

// -- Windows of a text that is scored

std::vector<ScoreWindow> All(const ScoreWindows& windows) {
  std::vector<ScoreWindow> all;
  for (int64_t i = 0; i < windows.count(); ++i) all.push_back(windows.at(i));
  return all;
}

TEST(ScoreWindowsTest, TokensButTheFirstAreScoredOnceAndWindowsAreAsLongAsTheyShould) {
  for (const int64_t tokens : {0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 20, 65}) {
    for (const int64_t length : {1, 2, 3, 6, 7, 64, 100}) {
      for (int64_t stride = 0; stride <= length; ++stride) {
        SCOPED_TRACE(absl::StrCat(tokens, " tokens, windows of ", length, " by ", stride));
        const bool segments = stride == 0;
        const std::vector<ScoreWindow> windows =
            All(segments ? ScoreWindows::Segments(tokens, length) : ScoreWindows::Sliding(tokens, length, stride));
        int64_t next = 1;  // to be scored
        for (const ScoreWindow& window : windows) {
          EXPECT_EQ(window.end - window.scored, next);
          EXPECT_GE(window.scored, 1);
          EXPECT_GE(window.begin, 0);
          EXPECT_LT(window.begin, next) << "something predicts what is scored";
          const bool first = &window == &windows.front();
          const bool last = &window == &windows.back();
          if (segments) {
            EXPECT_EQ(window.begin, next - 1) << "nothing from the segment before";
            if (!last) {
              EXPECT_EQ(window.scored, length);
            }
          } else {
            if (windows.size() > 1) {
              EXPECT_EQ(window.end - window.begin, length + 1);
            }
            if (!first && !last) {
              EXPECT_EQ(window.scored, stride);
            }
          }
          next = window.end;
        }
        EXPECT_EQ(next, std::max<int64_t>(tokens, 1));
      }
    }
  }
}

// The counts of the toolkit's iterators.
TEST(ScoreWindowsTest, AreAsManyAsTheToolkitHas) {
  EXPECT_EQ(ScoreWindows::Sliding(20, 6, 1).count(), 14);
  EXPECT_EQ(ScoreWindows::Segments(20, 6).count(), 4);
  EXPECT_EQ(ScoreWindows::Segments(19, 6).count(), 3);
}

// -- Work in order

TEST(InOrderTest, ResultsComeInOrderFromSeveralThreads) {
  std::atomic<int> running = 0;
  std::atomic<int> most = 0;
  std::vector<int> used;
  const absl::Status status = InOrder<int>(
      200, 8,
      [&](int64_t i) -> absl::StatusOr<int> {
        const int now = ++running;
        for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
        }
        absl::SleepFor(absl::Microseconds(i * 7919 % 1000));
        --running;
        return static_cast<int>(i);
      },
      [&](int i) {
        used.push_back(i);
        return absl::OkStatus();
      });
  EXPECT_TRUE(status.ok()) << status;
  ASSERT_EQ(used.size(), 200u);
  for (int i = 0; i < 200; ++i) EXPECT_EQ(used[i], i);
  EXPECT_LE(most, 8);
  EXPECT_GT(most, 1);
}

TEST(InOrderTest, TheFirstErrorEndsItAndNothingIsUsedAfterIt) {
  for (const bool while_making : {true, false}) {
    std::atomic<int> made = 0;
    int used = 0;
    const absl::Status status = InOrder<int>(
        100000, 4,
        [&](int64_t i) -> absl::StatusOr<int> {
          ++made;
          if (while_making && i >= 50) return absl::DataLossError(absl::StrCat(i));
          return static_cast<int>(i);
        },
        [&](int i) {
          if (!while_making && i == 50) return absl::DataLossError("50");
          ++used;
          return absl::OkStatus();
        });
    EXPECT_EQ(status, absl::DataLossError("50"));
    EXPECT_EQ(used, 50);
    EXPECT_LE(made, 51 + 16) << "not far ahead of what is used";
  }
  EXPECT_TRUE(InOrder<int>(
                  0, 4, [](int64_t) -> absl::StatusOr<int> { return 0; }, [](int) { return absl::OkStatus(); })
                  .ok());
}

// -- Cutting text into pieces

// The pieces of `text`, when reading gives `read_bytes` at a time.
std::vector<std::string> Pieces(const std::string& text, size_t piece_bytes, size_t read_bytes = 1 << 20) {
  size_t taken = 0;
  TextPieces pieces(
      [&](char* to, size_t bytes) -> absl::StatusOr<size_t> {
        const size_t count = text.copy(to, std::min(bytes, read_bytes), taken);
        taken += count;
        return count;
      },
      piece_bytes);
  std::vector<std::string> all;
  while (true) {
    std::string piece = *pieces.Next();
    if (piece.empty()) return all;
    all.push_back(piece);
  }
}

TEST(TextPiecesTest, ACutIsBeforeTheLastLineThenBeforeTheLastWord) {
  EXPECT_EQ(FindCut("one two three\nfo ur"), 13u) << "before the newline";
  EXPECT_EQ(FindCut("one two three"), 7u);
  EXPECT_EQ(FindCut("one two  \n\n  three"), 7u) << "a run of white space is not split";
  EXPECT_EQ(FindCut("one two three   "), 13u) << "nor at the end, where it may go on";
  EXPECT_EQ(FindCut("ab\ncd efghijklmnop"), 2u) << "a line in the first half, when the second has no white space";
  EXPECT_EQ(FindCut("a\nb cdefg hijklmno"), 9u) << "but rather a word in the second half";
}

TEST(TextPiecesTest, TextWithoutWhiteSpaceIsCutBetweenCharacters) {
  EXPECT_EQ(FindCut("abcdef"), 5u);
  EXPECT_EQ(FindCut("ab\xc3\xa9"), 2u);
  EXPECT_EQ(FindCut("ab\xe2\x82"), 2u) << "the last character may be incomplete";
  EXPECT_EQ(FindCut("   abcdef"), 8u) << "white space at the very beginning is no place to cut";
  EXPECT_EQ(FindCut("a"), 1u);
  EXPECT_EQ(FindCut("\x80\x80\x80\x80\x80\x80"), 6u) << "not UTF-8: it still moves on";
}

TEST(TextPiecesTest, PiecesJoinToTheTextWhateverTheSizes) {
  std::string text;
  Random random(3);
  const char* const words[] = {"palimpsest",       " ",  "  ", "\n", "\n\n", "\xc3\xa9t\xc3\xa9",
                               "\xf0\x9f\x93\x9c", "\t", "a"};
  for (int i = 0; i < 4000; ++i) text += words[random.Below(9)];
  for (const size_t piece_bytes : {16, 17, 64, 1000, 1 << 20}) {
    for (const size_t read_bytes : {1, 7, 1 << 20}) {
      const std::vector<std::string> pieces = Pieces(text, piece_bytes, read_bytes);
      EXPECT_EQ(absl::StrJoin(pieces, ""), text);
      for (size_t i = 0; i < pieces.size(); ++i) {
        EXPECT_LE(pieces[i].size(), piece_bytes);
        EXPECT_EQ(FindInvalidUtf8(pieces[i]), std::string::npos);
        if (piece_bytes >= 64 && i > 0) {
          EXPECT_TRUE(isspace(pieces[i][0])) << "piece " << i << " begins with \"" << pieces[i].substr(0, 8) << "\"";
          EXPECT_FALSE(isspace(pieces[i - 1].back())) << "a run of white space was split before piece " << i;
        }
      }
    }
  }
}

TEST(TextPiecesTest, AnErrorOfTheReaderComesThrough) {
  TextPieces pieces([](char*, size_t) -> absl::StatusOr<size_t> { return absl::DataLossError("bad disk"); }, 100);
  EXPECT_EQ(pieces.Next().status().message(), "bad disk");
}

TEST(Utf8Test, TheFirstBadByteIsFound) {
  const std::pair<std::string, size_t> rows[] = {{"", std::string::npos},
                                                 {"plain", std::string::npos},
                                                 {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x93\x9c", std::string::npos},
                                                 {std::string("a\0b", 3), std::string::npos},
                                                 {"ab\x80", 2},            // a continuation without a lead
                                                 {"ab\xc3", 2},            // cut
                                                 {"\xe2\x82", 0},          // cut
                                                 {"a\xc0\xaf", 1},         // overlong
                                                 {"a\xe0\x80\xaf", 1},     // overlong
                                                 {"\xed\xa0\x80", 0},      // a surrogate
                                                 {"\xf4\x90\x80\x80", 0},  // beyond U+10FFFF
                                                 {"\xff", 0}};
  for (const auto& [text, at] : rows) EXPECT_EQ(FindInvalidUtf8(text), at);
}

// -- Load

TEST(LengthsTest, FixedIsFixed) {
  Random random(1);
  EXPECT_EQ(Lengths::Parse("fixed:17")->Draw(random), 17);
  EXPECT_EQ(Lengths::Parse("17")->Draw(random), 17);
}

TEST(LengthsTest, UniformReachesBothEndsAndEveryLengthAlike) {
  Random random(2);
  const Lengths lengths = *Lengths::Parse("uniform:3:6");
  std::map<int64_t, int> counts;
  for (int i = 0; i < 40000; ++i) ++counts[lengths.Draw(random)];
  ASSERT_EQ(counts.size(), 4u);
  for (int64_t length = 3; length <= 6; ++length) EXPECT_NEAR(counts[length], 10000, 400) << length;
}

TEST(LengthsTest, LogNormalHasTheMeanAndSpreadAskedFor) {
  Random random(3);
  const Lengths lengths = *Lengths::Parse("lognormal:200:0.6");
  double sum = 0, log_sum = 0, log_squares = 0;
  constexpr int kDraws = 100000;
  for (int i = 0; i < kDraws; ++i) {
    const double length = lengths.Draw(random);
    sum += length;
    log_sum += std::log(length);
    log_squares += std::log(length) * std::log(length);
  }
  EXPECT_NEAR(sum / kDraws, 200, 2);
  EXPECT_NEAR(std::sqrt(log_squares / kDraws - std::pow(log_sum / kDraws, 2)), 0.6, 0.01);
}

TEST(LengthsTest, WhatIsNoDistributionIsRefused) {
  for (const char* text :
       {"", "x", "0", "-1", "2.5", "nan", "fixed", "fixed:", "fixed:0", "fixed:1:2", "uniform:5", "uniform:5:4",
        "uniform:0:4", "lognormal:100", "lognormal:100:-1", "lognormal:0:1", "poisson:3", "fixed:1e9"}) {
    EXPECT_FALSE(Lengths::Parse(text).ok()) << text;
  }
}

TEST(RandomTest, TheSameSeedGivesTheSameLoadEverywhere) {
  // The published SplitMix64 sequence of seed 1234567.
  Random random(1234567);
  EXPECT_EQ(random.Next(), 6457827717110365317u);
  EXPECT_EQ(random.Next(), 3203168211198807973u);
  EXPECT_EQ(random.Next(), 9817491932198370423u);
}

TEST(RandomTest, ExponentialTimesHaveTheirMean) {
  Random random(4);
  double sum = 0;
  int beyond = 0;
  for (int i = 0; i < 100000; ++i) {
    const double time = random.Exponential(2);
    sum += time;
    beyond += time > 4;
  }
  EXPECT_NEAR(sum / 100000, 2, 0.03);
  EXPECT_NEAR(beyond / 100000.0, std::exp(-2), 0.005);
}

TEST(PromptsTest, PromptsAreStretchesOfTheTextOrRandomIds) {
  Random random(5);
  const Prompts text({10, 11, 12, 13}, 0);
  for (int i = 0; i < 50; ++i) {
    const std::vector<int32_t> prompt = text.Draw(6, random);
    ASSERT_EQ(prompt.size(), 6u);
    for (size_t j = 1; j < prompt.size(); ++j) EXPECT_EQ(prompt[j], prompt[j - 1] == 13 ? 10 : prompt[j - 1] + 1);
  }
  const Prompts ids({}, 5);
  std::set<int32_t> seen;
  for (const int32_t id : ids.Draw(1000, random)) seen.insert(id);
  EXPECT_THAT(seen, ElementsAre(0, 1, 2, 3, 4));
}

// -- Metrics

constexpr char kPage[] =
    "# HELP x_seconds Words, with \"quotes\" and {braces}.\n"
    "# TYPE x_seconds histogram\n"
    "x_seconds_bucket{model=\"a\",le=\"0.1\"} 10\n"
    "x_seconds_bucket{model=\"a\",le=\"0.2\"} 30\n"
    "x_seconds_bucket{model=\"a\",le=\"+Inf\"} 40\n"
    "x_seconds_bucket{model=\"b\",le=\"0.1\"} 0\n"
    "x_seconds_bucket{model=\"b\",le=\"0.2\"} 0\n"
    "x_seconds_bucket{model=\"b\",le=\"+Inf\"} 60\n"
    "x_seconds_sum{model=\"a\"} 7.5\n"
    "\n"
    "calls_total{method=\"Say \\\"hi\\\"\\\\\\n\", code=\"OK\"} 3 1700000000000\n"
    "calls_total{method=\"Other\",code=\"ABORTED\",} 2\r\n"
    "plain 1e3\n"
    "nothing{} NaN\n";

TEST(MetricsPageTest, SamplesAreFoundByNameAndSummedByLabel) {
  const auto page = MetricsPage::Parse(kPage);
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_EQ(page->Sum("calls_total"), 5);
  EXPECT_EQ(page->Sum("calls_total", {{"code", "OK"}}), 3);
  EXPECT_EQ(page->Samples("calls_total")[0].labels.at("method"), "Say \"hi\"\\\n");
  EXPECT_EQ(page->Sum("plain"), 1000);
  EXPECT_TRUE(std::isnan(page->Samples("nothing")[0].value));
  EXPECT_EQ(page->Sum("absent"), 0);
}

TEST(MetricsPageTest, ALineThatIsNoSampleIsNamed) {
  for (const char* line : {"x", "x y", "{a=\"b\"} 1", "x{a=\"b\" 1", "x{a=b} 1", "<html>", "x 1 2 3"}) {
    const auto page = MetricsPage::Parse(absl::StrCat("ok 1\n", line, "\n"));
    EXPECT_FALSE(page.ok()) << line;
    EXPECT_THAT(std::string(page.status().message()), HasSubstr("line 2")) << line;
  }
}

TEST(HistogramTest, QuantilesAreLinearWithinABucket) {
  const MetricsPage page = *MetricsPage::Parse(kPage);
  const Histogram a = Histogram::FromPage(page, "x_seconds", {{"model", "a"}});
  EXPECT_EQ(a.count(), 40);
  EXPECT_DOUBLE_EQ(a.Quantile(0.125), 0.05);
  EXPECT_DOUBLE_EQ(a.Quantile(0.25), 0.1);
  EXPECT_DOUBLE_EQ(a.Quantile(0.5), 0.15);
  EXPECT_DOUBLE_EQ(a.Quantile(0.99), 0.2) << "beyond the last finite edge";
  EXPECT_EQ(Histogram::FromPage(page, "x_seconds").count(), 100) << "all models together";
  EXPECT_TRUE(std::isnan(Histogram::FromPage(page, "absent").Quantile(0.5)));
}

TEST(HistogramTest, TheDifferenceOfTwoReadingsIsWhatCameBetween) {
  const auto read = [](int low, int high) {
    return Histogram::FromPage(*MetricsPage::Parse(absl::StrCat("h_bucket{le=\"1\"} ", low, "\nh_bucket{le=\"3\"} ",
                                                                high, "\nh_bucket{le=\"+Inf\"} ", high, "\n")),
                               "h");
  };
  const Histogram since = read(100, 120).Since(read(100, 110));
  EXPECT_EQ(since.count(), 10);
  EXPECT_DOUBLE_EQ(since.Quantile(0.5), 2);
  EXPECT_EQ(read(1, 2).Since(read(100, 110)).count(), 2) << "the server was started anew";
  EXPECT_EQ(read(5, 5).Since(read(5, 5)).count(), 0);
}

// -- The report

std::vector<RequestRecord> HundredRequests() {
  std::vector<RequestRecord> records;
  for (int i = 1; i <= 100; ++i) {
    RequestRecord record;
    record.arrival = i * 0.1;
    record.first = record.arrival + i * 1e-3;  // 1 to 100 ms
    record.last = record.first + 10 * 5e-3;    // 5 ms a token
    record.end = record.last + 1e-3;
    record.prompt_tokens = 20;
    record.generated = 11;
    records.push_back(record);
  }
  records[9].code = absl::StatusCode::kResourceExhausted;
  return records;
}

TEST(BenchReportTest, NumbersAreThoseOfTheRequests) {
  BenchSetup setup;
  setup.slo_first_token = 0.0505;
  const BenchReport report = Summarize(setup, HundredRequests());
  EXPECT_EQ(report.requests, 100);
  EXPECT_EQ(report.completed, 99);
  EXPECT_EQ(report.errors.at("RESOURCE_EXHAUSTED"), 1);
  EXPECT_EQ(report.generated_tokens, 99 * 11);
  EXPECT_EQ(report.prompt_tokens, 99 * 20);
  EXPECT_EQ(report.within_slo, 49) << "1 to 50 ms, but the one that failed";
  EXPECT_NEAR(report.seconds, 10 + 0.1 + 0.05 + 0.001 - 0.1, 1e-9);
  EXPECT_NEAR(report.first_token.At(0.5), 0.051, 1e-9) << "the 50th of 99 that completed";
  EXPECT_NEAR(report.first_token.At(1), 0.1, 1e-9);
  EXPECT_NEAR(report.per_token.At(0.9), 0.005, 1e-9);
  EXPECT_NEAR(report.end_to_end.At(0), 0.001 + 0.051, 1e-9);
}

TEST(BenchReportTest, RequestsOfOneTokenHaveNoTimePerToken) {
  RequestRecord record;
  record.first = record.last = record.end = 0.5;
  record.generated = 1;
  const BenchReport report = Summarize({}, {record});
  EXPECT_EQ(report.per_token.sorted().size(), 0u);
  EXPECT_TRUE(std::isnan(report.per_token.At(0.5)));
  const auto json = nlohmann::json::parse(ReportJson(report));
  EXPECT_TRUE(json["time_per_output_token_seconds"].is_null());
  EXPECT_THAT(ReportSvg(report), HasSubstr("no data"));
}

TEST(BenchReportTest, TableJsonAndPlotSayTheSame) {
  BenchSetup setup;
  setup.model = "models/a<b>&c";
  setup.load = "closed loop, 8 at once";
  setup.slo_first_token = 0.0505;
  const BenchReport report = Summarize(setup, HundredRequests());
  const std::string table = ReportTable(report, Terminal("never"));
  EXPECT_THAT(table, HasSubstr("99 of 100 completed"));
  EXPECT_THAT(table, HasSubstr("RESOURCE_EXHAUSTED 1"));
  EXPECT_THAT(table, HasSubstr("(49.0% of all)"));
  EXPECT_THAT(table, Not(HasSubstr("\x1b")));
  const auto json = nlohmann::json::parse(ReportJson(report));
  EXPECT_EQ(json["completed"], 99);
  EXPECT_EQ(json["errors"]["RESOURCE_EXHAUSTED"], 1);
  EXPECT_NEAR(json["time_to_first_token_seconds"]["p50"], 0.051, 1e-9);
  EXPECT_NEAR(json["generated_tokens_per_second"], 99 * 11 / report.seconds, 1e-9);
  const std::string svg = ReportSvg(report);
  EXPECT_THAT(svg, HasSubstr("models/a&lt;b&gt;&amp;c"));
  EXPECT_THAT(svg, HasSubstr("p50 51.0 ms"));
  EXPECT_THAT(svg, HasSubstr("class='limit'"));
}

// -- Numbers for people

TEST(FormatTest, NumbersReadWell) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(-1234567), "-1,234,567");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(2359296), "2.36 MB");
  EXPECT_EQ(FormatSeconds(0), "0 s");
  EXPECT_EQ(FormatSeconds(0.0000123), "12.3 us");
  EXPECT_EQ(FormatSeconds(0.0123), "12.3 ms");
  EXPECT_EQ(FormatSeconds(4.2), "4.20 s");
  EXPECT_EQ(FormatSeconds(185), "3m 05s");
  EXPECT_EQ(FormatSeconds(7260), "2h 01m");
  EXPECT_EQ(FormatSeconds(NAN), "-");
  EXPECT_EQ(DisplayWidth("\x1b[31mab\xe2\x96\x88\x1b[0m"), 3);
  EXPECT_EQ(Bar(0.5, 4), "██  ");
  EXPECT_EQ(DisplayWidth(Bar(0.33, 10)), 10);
}

TEST(FormatTest, TablesAlign) {
  Table table({"NAME", ">COUNT"});
  table.Add({"a", "1"});
  table.Add({"longer", "1,000"});
  EXPECT_EQ(table.Render(Terminal("never")), "NAME    COUNT\na           1\nlonger  1,000\n");
}

}  // namespace
}  // namespace palimpsest::cli
