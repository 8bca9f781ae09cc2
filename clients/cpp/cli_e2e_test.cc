// The command line as its user meets it: the real binary against the real server with the bundled checkpoint.
#include "clients/cpp/testing/cli_e2e.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "clients/cpp/client.h"

namespace palimpsest {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

TEST_F(CliE2eTest, GenerateStreamsPlainTextAndTheSameSeedGivesTheSame) {
  const std::vector<std::string> command = {"generate", "Once upon a time", "--max_tokens=40", "--seed", "7"};
  const std::string text = Out(command);
  EXPECT_GT(text.size(), 40u);
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
  EXPECT_EQ(Out(command), text);
  EXPECT_EQ(Out({"generate", "--max_tokens=40", "--seed", "7"}, "Once upon a time"), text) << "the prompt from stdin";

  std::vector<std::string> with_stats = command;
  with_stats.push_back("--stats");
  const Result result = Run(with_stats);
  EXPECT_EQ(result.out, text) << "the numbers go to stderr";
  EXPECT_THAT(result.err, AllOf(HasSubstr("generated 40"), HasSubstr("first token"), HasSubstr("tokens/s"),
                                HasSubstr("bytes"), HasSubstr("seed 7")));
}

TEST_F(CliE2eTest, GenerateAsJsonIsOneObjectALineAndEndsWithTheFinish) {
  std::string text;
  int tokens = 0;
  nlohmann::json last;
  for (const auto& line : std::vector<std::string>(absl::StrSplit(
           Out({"generate", "Once", "--max_tokens", "12", "--seed", "1", "--json", "--top_logprobs", "2"}), '\n',
           absl::SkipEmpty()))) {
    last = nlohmann::json::parse(line);
    text += last.value("text", "");
    for (const auto& token : last.value("tokens", nlohmann::json::array())) {
      ++tokens;
      EXPECT_EQ(token["top"].size(), 2u);
    }
  }
  EXPECT_EQ(tokens, 12);
  EXPECT_EQ(last["finish"]["reason"], "FINISH_REASON_LENGTH");
  EXPECT_EQ(text, Out({"generate", "Once", "--max_tokens", "12", "--seed", "1"}));
}

TEST_F(CliE2eTest, TokenizeAndDetokenizeAreInverses) {
  const std::string text = Text(3);
  EXPECT_EQ(Out({"detokenize"}, Out({"tokenize"}, text)), text);
}

TEST_F(CliE2eTest, ScoreInPiecesIsTheScoreOfTheWhole) {
  const std::string text = Text(60);
  const std::string path = TempFile("score.txt", text);
  // The truth: one call without a session.
  v1::ScoreRequest request;
  request.set_text(text);
  const auto whole = Connect()->Score(request);
  ASSERT_TRUE(whole.ok()) << whole.status();
  const double bits_per_byte = -whole->total_logprob() / std::log(2.0) / whole->scored_bytes();
  for (const char* piece_bytes : {"1000000", "4096", "512"}) {
    const auto json = nlohmann::json::parse(Out({"score", path, "--json", "--piece_bytes", piece_bytes}));
    EXPECT_EQ(json["tokens"], whole->scored_tokens() + 1) << piece_bytes;
    EXPECT_EQ(json["bytes"], text.size());
    EXPECT_NEAR(json["total_logprob"], whole->total_logprob(), 1e-3 * std::fabs(whole->total_logprob())) << piece_bytes;
    EXPECT_NEAR(json["bits_per_byte"], bits_per_byte, 1e-3 * bits_per_byte) << piece_bytes;
    EXPECT_NEAR(json["perplexity"], std::exp(-whole->total_logprob() / whole->scored_tokens()), 0.5);
  }
  EXPECT_EQ(Out({"tokenize", "--count", "--file", path}), absl::StrCat(whole->scored_tokens() + 1, "\n"));
  EXPECT_THAT(Out({"score", "-"}, text), HasSubstr("bits per byte"));
  EXPECT_EQ(Out({"session", "list"}), "") << "its sessions are gone";
  std::remove(path.c_str());
}

// The sum of what Score says by itself of each window.
class ScoreProtocolsTest : public CliE2eTest {
 protected:
  struct Sum {
    double logprob = 0;
    int64_t tokens = 0;
    int64_t bytes = 0;
    int64_t characters = 0;
    std::vector<float> logprobs;
  };

  void SetUp() override {
    path_ = TempFile("protocols.txt", Text(4));
    v1::TokenizeRequest request;
    request.set_text(Text(4));
    const auto response = client_->Tokenize(request);
    ASSERT_TRUE(response.ok()) << response.status();
    ids_.assign(response->ids().begin(), response->ids().end());
    ASSERT_GT(ids_.size(), 100u);
  }
  void TearDown() override { std::remove(path_.c_str()); }

  // Scores ids_[begin, end) and adds what is said of the last `scored`, all of which are asked for.
  void Add(size_t begin, size_t end, size_t scored, Sum& sum) {
    v1::ScoreRequest request;
    request.mutable_tokens()->mutable_ids()->Add(ids_.begin() + begin, ids_.begin() + end);
    request.set_return_tokens(true);
    const auto response = client_->Score(request);
    ASSERT_TRUE(response.ok()) << response.status();
    for (size_t i = end - begin - scored; i < end - begin; ++i) {
      const v1::ScoredToken& token = response->tokens(static_cast<int>(i));
      sum.logprob += token.logprob();
      sum.logprobs.push_back(token.logprob());
      ++sum.tokens;
      sum.bytes += token.token().size();
      for (const char byte : token.token()) sum.characters += (byte & 0xc0) != 0x80;
    }
  }

  // That the command says so, and the same of each token.
  void ExpectOut(std::vector<std::string> flags, const Sum& sum, int64_t requests) {
    const std::string tokens_path = TempFile("tokens.tsv");
    std::vector<std::string> command = {"score", path_, "--json", "--tokens_out", tokens_path, "--piece_bytes", "200"};
    command.insert(command.end(), flags.begin(), flags.end());
    const auto json = nlohmann::json::parse(Out(command));
    EXPECT_EQ(json["requests"], requests);
    EXPECT_EQ(json["tokens"], ids_.size());
    EXPECT_EQ(json["scored_tokens"], sum.tokens);
    EXPECT_EQ(json["scored_bytes"], sum.bytes);
    EXPECT_EQ(json["scored_characters"], sum.characters);
    EXPECT_EQ(json["unknown_tokens"], 0);
    EXPECT_NEAR(json["total_logprob"], sum.logprob, 1e-3);
    EXPECT_NEAR(json["perplexity"], std::exp(-sum.logprob / sum.tokens), 1e-3);
    EXPECT_NEAR(json["bits_per_token"], -sum.logprob / std::log(2.0) / sum.tokens, 1e-4);
    EXPECT_NEAR(json["bits_per_character"], -sum.logprob / std::log(2.0) / sum.characters, 1e-4);
    EXPECT_NEAR(json["bits_per_byte"], -sum.logprob / std::log(2.0) / sum.bytes, 1e-4);
    const std::vector<std::string> lines = absl::StrSplit(ReadFile(tokens_path), '\n');
    ASSERT_EQ(lines.size(), ids_.size() + 2) << "a heading, the tokens, the end of the last line";
    EXPECT_EQ(lines[0], "id\ttoken\tlogprob");
    for (size_t i = 0; i < ids_.size(); ++i) {
      const std::vector<std::string> fields = absl::StrSplit(lines[1 + i], '\t');
      ASSERT_EQ(fields.size(), 3u) << lines[1 + i];
      EXPECT_EQ(fields[0], absl::StrCat(ids_[i]));
      if (i == 0) {
        EXPECT_EQ(fields[2], "");
      } else {
        EXPECT_NEAR(std::stof(fields[2]), sum.logprobs[i - 1], 1e-4) << i;
      }
    }
    std::remove(tokens_path.c_str());
  }

  const std::unique_ptr<client::Client> client_ = Connect();
  std::string path_;
  std::vector<int32_t> ids_;
};

TEST_F(ScoreProtocolsTest, CarriedIsTheScoreOfTheWhole) {
  Sum sum;
  Add(0, ids_.size(), ids_.size() - 1, sum);
  const std::vector<std::string> protocol = {"--protocol", "carried", "--piece_bytes", "100000"};
  ExpectOut(protocol, sum, 1);
}

TEST_F(ScoreProtocolsTest, SegmentsAreScoredFromEmptyStates) {
  const size_t last = ids_.size() - 1;
  for (const size_t length : {size_t{7}, size_t{64}, last - 1, last, last + 5}) {
    Sum sum;
    int64_t requests = 0;
    for (size_t begin = 0; begin < last; begin += length, ++requests) {
      const size_t predicted = std::min(length, last - begin);
      Add(begin, begin + predicted + 1, predicted, sum);
    }
    ExpectOut({"--protocol=segments", "--window", absl::StrCat(length)}, sum, requests);
  }
}

TEST_F(ScoreProtocolsTest, ASlidingWindowScoresItsLastTokens) {
  const size_t last = ids_.size() - 1;
  const size_t length = 24;
  Sum by_one;
  Add(0, length + 1, length, by_one);
  for (size_t token = length + 1; token <= last; ++token) Add(token - length, token + 1, 1, by_one);
  ExpectOut({"--protocol=sliding", "--window", absl::StrCat(length)}, by_one, last - length + 1);
  ExpectOut({"--protocol=sliding", "--window", absl::StrCat(length), "--parallel=1"}, by_one, last - length + 1);

  const size_t stride = 10;
  Sum by_ten;
  Add(0, length + 1, length, by_ten);
  int64_t requests = 1;
  for (size_t scored = length; scored < last; ++requests) {
    const size_t end = std::min(scored + stride, last);
    Add(end - length, end + 1, end - scored, by_ten);
    scored = end;
  }
  ExpectOut({"--protocol=sliding", "--window", absl::StrCat(length), "--stride", "10"}, by_ten, requests);

  const std::string text = Out({"score", path_, "--protocol=sliding", "--window=24", "--stride=10"});
  EXPECT_THAT(text, AllOf(HasSubstr("sliding, window 24, stride 10"), HasSubstr("bits per character"),
                          HasSubstr("bits per byte"), HasSubstr("unknown tokens")));
}

TEST(ScoreVocabularyTest, UnknownWordsAreCountedAndCharactersAreTokens) {
  const std::string folder = testing::MakeCheckpoint();
  const auto write = [&](const std::string& name, const std::string& content) {
    std::ofstream(absl::StrCat(folder, "/", name), std::ios::binary) << content;
  };
  std::string words = "<eos>\n<unk>\nthe\ncat\n";
  std::string bytes;
  for (int i = 0; i < 256; ++i) {
    if (i >= 4) absl::StrAppend(&words, "w", i, "\n");
    absl::StrAppend(&bytes, 255 - i, "\n");
  }
  const auto score = [&](const std::string& symbols, const std::string& rules,
                         std::vector<std::string> flags) -> nlohmann::json {
    write("vocab.txt", symbols);
    write("vocabulary.json", rules);
    const std::unique_ptr<ServerProcess> server = ServerProcess::Start(folder);
    if (server == nullptr) return nullptr;
    const std::string text = folder + "/text";
    std::ofstream(text) << "the dog\nthe \xC3\xA9 cat\n";
    std::string command = absl::StrCat(PALIMPSEST_CLI_BINARY, " score ", text, " --json --server ", server->target());
    for (const std::string& flag : flags) absl::StrAppend(&command, " ", flag);
    command += " > " + folder + "/out";
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
    return nlohmann::json::parse(ReadFile(folder + "/out"));
  };
  for (const std::vector<std::string>& flags :
       {std::vector<std::string>{}, {"--protocol=segments", "--window=3"}, {"--protocol=sliding", "--window=3"}}) {
    const auto json = score(words, R"({"kind": "word", "unk": "<unk>", "eos": "<eos>"})", flags);
    EXPECT_EQ(json["tokens"], 7) << json;
    EXPECT_EQ(json["unknown_tokens"], 2) << json;
    EXPECT_EQ(json["scored_bytes"], 6 + 1 + 3 + 6 + 4 + 1) << json;
  }
  const auto json = score(bytes, R"({"kind": "character", "unk": null, "eos": null})", {});
  EXPECT_EQ(json["tokens"], 19) << json;
  EXPECT_EQ(json["scored_characters"], 17) << json;
  EXPECT_EQ(json["bits_per_character"], json["bits_per_token"]) << json;
}

TEST_F(CliE2eTest, ScoreAfterASessionLeavesTheSessionAsItIs) {
  Out({"session", "create", "--id", "context"});
  Out({"generate", "The old king asked his", "--session", "context", "--max_tokens", "0"});
  const auto alone = nlohmann::json::parse(Out({"score", "-", "--json"}, " daughters"));
  const auto after = nlohmann::json::parse(Out({"score", "-", "--json", "--after", "context"}, " daughters"));
  EXPECT_EQ(after["scored_tokens"], alone["scored_tokens"].get<int>() + 1) << "a context predicts the first token too";
  const std::string count = Out({"tokenize", "The old king asked his", "--count"});
  EXPECT_EQ(nlohmann::json::parse(Out({"session", "get", "context", "--json"}))["position"],
            std::string(absl::StripSuffix(count, "\n")));
  Out({"session", "delete", "context"});
}

TEST_F(CliE2eTest, CtrlCEndsWorkWith130AndLeavesNothingBehind) {
  const std::string path = TempFile("long.txt", Text(20000));
  Running score({"score", path}, "");
  absl::SleepFor(absl::Seconds(1));
  score.Interrupt();
  const Result scored = score.Wait();
  EXPECT_EQ(scored.exit_code, 130);
  EXPECT_THAT(scored.err, HasSubstr("interrupted"));
  std::remove(path.c_str());

  const std::string short_path = TempFile("short.txt", Text(200));
  Running slide({"score", short_path, "--protocol", "sliding", "--window", "2000"}, "");
  absl::SleepFor(absl::Seconds(1));
  slide.Interrupt();
  const Result slid = slide.Wait();
  EXPECT_EQ(slid.exit_code, 130);
  EXPECT_THAT(slid.out, HasSubstr("perplexity")) << "what was scored so far is reported";
  std::remove(short_path.c_str());

  Running generate({"generate", "Once", "--max_tokens", "60000", "--ignore_end_of_text"}, "");
  for (int i = 0; i < 2000 && generate.OutSoFar().empty(); ++i) absl::SleepFor(absl::Milliseconds(5));
  generate.Interrupt();
  const Result generated = generate.Wait();
  EXPECT_EQ(generated.exit_code, 130);
  EXPECT_GT(generated.out.size(), 0u);

  Running bench({"bench", "--requests", "100000", "--concurrency", "4", "--warmup", "0"}, "");
  absl::SleepFor(absl::Seconds(1));
  bench.Interrupt();
  const Result benched = bench.Wait();
  EXPECT_EQ(benched.exit_code, 130);
  EXPECT_THAT(benched.out, HasSubstr("completed")) << "what was done so far is reported";

  EXPECT_EQ(Out({"session", "list"}), "");
  double used = -1;
  for (int i = 0; i < 1000 && used != 0; ++i) {
    used = server_->Metric("palimpsest_slots", "used");
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_EQ(used, 0) << "every slot is back";
}

TEST_F(CliE2eTest, AStateGoesThroughFilesAndGivesTheSameText) {
  Out({"session", "create", "story", "--ttl", "10m"});
  Out({"generate", "It was a dark night.", "--session", "story", "--max_tokens", "8", "--seed", "1"});
  Out({"snapshot", "create", "--session", "story", "--id", "then"});
  const std::string path = TempFile("state");
  Out({"snapshot", "download", "then", path});
  Out({"snapshot", "upload", path, "again"});
  Out({"session", "create", "copy", "--from_snapshot", "again"});
  Out({"session", "fork", "story", "left", "right"});
  const std::string text = Out({"generate", "--session", "story", "--max_tokens", "20", "--temperature", "0"});
  EXPECT_FALSE(text.empty());
  EXPECT_EQ(Out({"generate", "--session", "copy", "--max_tokens", "20", "--temperature", "0"}), text);
  EXPECT_EQ(Out({"generate", "--session", "left", "--max_tokens", "20", "--temperature", "0"}), text);
  EXPECT_EQ(Out({"generate", "--state_in", path, "--max_tokens", "20", "--temperature", "0"}), text);
  const auto digest = [&](const char* name) {
    return nlohmann::json::parse(Out({"snapshot", "get", name, "--json"}))["state_digest"].get<std::string>();
  };
  EXPECT_EQ(digest("then"), digest("again"));
  EXPECT_THAT(Out({"session", "update", "right", "--ttl", "30m"}), HasSubstr("30m"));
  EXPECT_THAT(Out({"session", "list"}), AllOf(HasSubstr("sessions/copy"), HasSubstr("sessions/right")));
  Out({"session", "delete", "story", "copy", "left", "sessions/right"});
  Out({"snapshot", "delete", "then", "again"});
  EXPECT_EQ(Out({"snapshot", "list"}), "");
  std::remove(path.c_str());
}

TEST_F(CliE2eTest, ChatUndoesSavesAndLoads) {
  const std::string path = TempFile("chat");
  const Result chat =
      Run({"chat", "--max_tokens", "5", "--seed", "3"},
          absl::StrCat("/info\nHello there\n/info\n/save ", path, "\nAnd then\n/undo\n/info\n/reset\n/info\n", "/load ",
                       path, "\n/info\n/nonsense\n/quit\n"));
  EXPECT_EQ(chat.exit_code, 0) << chat.err;
  std::vector<std::string> positions;
  for (const auto& line : std::vector<std::string>(absl::StrSplit(chat.out, '\n'))) {
    const size_t begin = line.find(": ");
    const size_t end = line.find(" tokens read, state");
    if (end != std::string::npos) positions.push_back(line.substr(begin + 2, end - begin - 2));
  }
  ASSERT_EQ(positions.size(), 5u) << chat.out;
  EXPECT_EQ(positions[0], "0");
  EXPECT_NE(positions[1], "0");
  EXPECT_EQ(positions[2], positions[1]) << "undone";
  EXPECT_EQ(positions[3], "0") << "reset";
  EXPECT_EQ(positions[4], positions[1]) << "loaded";
  EXPECT_THAT(chat.err, HasSubstr("there is no /nonsense"));
  EXPECT_EQ(Out({"session", "list"}), "") << "its session and its copies for undo are gone";
  std::remove(path.c_str());
}

TEST_F(CliE2eTest, BenchReportsWhatItSent) {
  const std::string json_path = TempFile("bench.json");
  const std::string svg_path = TempFile("bench.svg");
  const std::string table =
      Out({"bench", "--requests", "20", "--concurrency", "4", "--prompt_tokens", "uniform:4:16", "--output_tokens",
           "fixed:8", "--slo_ttft", "60s", "--json", json_path, "--svg", svg_path});
  EXPECT_THAT(table, AllOf(HasSubstr("20 of 20 completed"), HasSubstr("(100.0% of all)"), HasSubstr("p99")));
  const auto json = nlohmann::json::parse(ReadFile(json_path));
  EXPECT_EQ(json["completed"], 20);
  EXPECT_EQ(json["generated_tokens"], 160);
  EXPECT_GE(json["prompt_tokens"], 80);
  EXPECT_LE(json["prompt_tokens"], 320);
  EXPECT_GT(json["time_to_first_token_seconds"]["p50"], 0);
  EXPECT_GE(json["end_to_end_seconds"]["p50"], json["time_to_first_token_seconds"]["p50"]);
  EXPECT_THAT(ReadFile(svg_path), AllOf(StartsWith("<svg"), HasSubstr("</svg>")));

  const auto open_loop =
      nlohmann::json::parse(Out({"bench", "--rate", "40", "--requests", "20", "--output_tokens", "2", "--json", "-"}));
  EXPECT_EQ(open_loop["completed"], 20);
  std::remove(json_path.c_str());
  std::remove(svg_path.c_str());
}

TEST_F(CliE2eTest, WhatGoesWrongIsSaidWithItsExitCode) {
  const std::string binary = TempFile("binary", "abc\xff");
  const std::string unreachable = "127.0.0.1:1";
  const struct {
    std::vector<std::string> arguments;
    int exit_code;
    const char* message;
  } rows[] = {
      {{}, 2, "Usage: palimpsest COMMAND"},
      {{"nonsense"}, 2, "there is no command nonsense"},
      {{"session"}, 2, "session create"},
      {{"generate", "a", "b"}, 2, "generate takes [PROMPT]"},
      {{"generate", "a", "--temprature", "1"}, 2, "did you mean --temperature?"},
      {{"generate", "a", "--temperature", "300"}, 1, "INVALID_ARGUMENT: sampling.temperature"},
      {{"generate", "a", "--session", "x", "--state_in", "y"}, 2, "exclude each other"},
      {{"generate", "a", "--model", "nope"}, 1, "NOT_FOUND"},
      {{"generate", "a", "--session", "nope"}, 1, "NOT_FOUND"},
      {{"generate", "a", "--server", unreachable}, 1, "cannot reach 127.0.0.1:1"},
      {{"session", "get", "nope"}, 1, "NOT_FOUND"},
      {{"session", "create", "a", "--id", "b"}, 2, "not both"},
      {{"snapshot", "create"}, 2, "takes SESSION [ID]"},
      {{"snapshot", "create", "a", "b", "--id", "c"}, 2, "given twice"},
      {{"session", "update", "nope"}, 2, "--ttl is needed"},
      {{"score", "/nonexistent/file"}, 1, "/nonexistent/file"},
      {{"score", "-", "--protocol", "full"}, 2, "there are carried, segments and sliding"},
      {{"score", "-", "--protocol", "segments"}, 2, "--protocol segments needs --window"},
      {{"score", "-", "--window", "4"}, 2, "--window goes with --protocol segments or sliding"},
      {{"score", "-", "--protocol", "sliding", "--window", "0"}, 2, "--window is 1 to"},
      {{"score", "-", "--protocol", "sliding", "--window", "4", "--stride", "5"}, 2, "--stride is 1 to --window"},
      {{"score", "-", "--protocol", "segments", "--window", "4", "--stride", "1"}, 2, "--protocol sliding"},
      {{"score", "-", "--protocol", "segments", "--window", "4", "--after", "x"}, 2, "--protocol carried"},
      {{"score", "-", "--protocol", "segments", "--window", "4", "--parallel", "0"}, 2, "--parallel is 1 to"},
      {{"score", "-", "--protocol", "segments", "--window", "4"}, 1, "stdin is empty"},
      {{"score", "-", "--tokens_out", "/nonexistent/file"}, 1, "cannot write /nonexistent/file"},
      {{"score", binary, "--protocol", "segments", "--window", "4"}, 1, "byte 3 of the text"},
      {{"score", binary}, 1, "byte 3 of the text is not part of valid UTF-8"},
      {{"score", "-"}, 1, "stdin is empty"},
      {{"snapshot", "upload", binary}, 1, "palimpsest: "},
      {{"detokenize", "99999999"}, 1, "INVALID_ARGUMENT"},
      {{"detokenize", "x"}, 2, "\"x\" is not a token id"},
      {{"bench", "--rate", "1", "--concurrency", "1"}, 2, "exclude each other"},
      {{"top", "--once", "--metrics", "http://127.0.0.1:1/metrics"}, 1, "127.0.0.1:1"},
      {{"health", "no.such.Service"}, 1, "SERVICE_UNKNOWN"},
  };
  for (const auto& row : rows) {
    const Result result = Run(row.arguments);
    const std::string command = absl::StrJoin(row.arguments, " ");
    EXPECT_EQ(result.exit_code, row.exit_code) << command << "\n" << result.err;
    EXPECT_THAT(result.err, HasSubstr(row.message)) << command;
  }
  EXPECT_EQ(Out({"session", "list"}), "") << "no error left a session behind";
  std::remove(binary.c_str());
}

TEST_F(CliE2eTest, EveryCommandExplainsItself) {
  const std::string overview = Out({"--help"});
  EXPECT_THAT(overview, HasSubstr("Commands:"));
  for (const char* command : {"generate",
                              "chat",
                              "score",
                              "tokenize",
                              "detokenize",
                              "session create",
                              "session get",
                              "session list",
                              "session fork",
                              "session update",
                              "session interrupt",
                              "session delete",
                              "snapshot create",
                              "snapshot get",
                              "snapshot list",
                              "snapshot download",
                              "snapshot upload",
                              "snapshot delete",
                              "models list",
                              "models get",
                              "models load",
                              "models unload",
                              "health",
                              "top",
                              "bench"}) {
    EXPECT_THAT(overview, HasSubstr(absl::StrCat("\n  ", command, " ")));
    std::vector<std::string> arguments = absl::StrSplit(command, ' ');
    arguments.push_back("--help");
    EXPECT_THAT(Out(arguments), StartsWith(absl::StrCat("Usage: palimpsest ", command)));
  }
}

}  // namespace
}  // namespace palimpsest
