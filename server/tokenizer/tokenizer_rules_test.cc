#include "server/tokenizer/tokenizer_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "server/tokenizer/sentencepiece_oracle_test.h"
#include "server/tokenizer/tokenizer.h"

namespace palimpsest {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(TokenizerRules, SayWhetherATextBeginsWithAToken) {
  const struct {
    const char* file;
    bool add_bos;
    const char* bos;
  } kCases[] = {
      {"{}", false, ""},
      {R"({"tokenizer_class": null, "chat_template": "{{ x }}", "legacy": false})", false, ""},
      {R"({"add_bos_token": true, "bos_token": "<s>"})", true, "<s>"},
      {R"({"add_bos_token": true, "bos_token": {"content": "<b>", "special": true, "lstrip": false}})", true, "<b>"},
      {R"({"add_bos_token": false, "bos_token": "<s>"})", false, "<s>"},
      {R"({"tokenizer_class": "LlamaTokenizer"})", true, "<s>"},
      {R"({"add_bos_token": false, "tokenizer_class": "LlamaTokenizerFast"})", false, "<s>"},
      {R"({"bos_token": "<x>", "tokenizer_class": "GemmaTokenizer"})", true, "<x>"},
      {R"({"bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"})", false, "<s>"},
      {R"({"add_bos_token": true, "bos_token": "<s>", "add_eos_token": false, "add_prefix_space": null,
           "sp_model_kwargs": {}, "legacy": true, "model_max_length": 1e30, "pad_token": null,
           "added_tokens_decoder": {"1": {"content": "<s>", "special": true}}})",
       true, "<s>"},
  };
  for (const auto& c : kCases) {
    const absl::StatusOr<TokenizerRules> rules = ParseTokenizerRules(c.file);
    ASSERT_TRUE(rules.ok()) << c.file << rules.status();
    EXPECT_EQ(rules->add_bos, c.add_bos) << c.file;
    EXPECT_EQ(rules->bos, c.bos) << c.file;
  }
}

TEST(TokenizerRules, WhatTheyAskForAndIsNotDoneIsRefusedByName) {
  const struct {
    const char* file;
    const char* what;
  } kCases[] = {
      {"", "is no JSON object"},
      {"[]", "is no JSON object"},
      {R"({"add_eos_token": true})", "add_eos_token is true, only false is supported: prompts are gone on from"},
      {R"({"add_bos_token": 1})", "add_bos_token is 1, expected true or false"},
      {R"({"bos_token": 1})", "bos_token is 1, expected a token as text"},
      {R"({"bos_token": {"content": []}})", "bos_token is of type array"},
      {R"({"tokenizer_class": "T5Tokenizer"})",
       "tokenizer_class is \"T5Tokenizer\", of which palimpsest does not know"},
      {R"({"tokenizer_class": 5})", "tokenizer_class is 5"},
      {R"({"add_prefix_space": false})", "add_prefix_space is false"},
      {R"({"do_lower_case": true})", "do_lower_case is true"},
      {R"({"sp_model_kwargs": {"enable_sampling": true}})", "sp_model_kwargs is of type object, only {}"},
      {R"({"remove_space": true})", "unknown key \"remove_space\""},
      {R"({"added_tokens_decoder": {"7": {"content": "x", "special": false}}})",
       "has token \"7\", which is not special"},
      {R"({"added_tokens_decoder": []})", "added_tokens_decoder is of type array"},
  };
  for (const auto& c : kCases) {
    const absl::StatusOr<TokenizerRules> rules = ParseTokenizerRules(c.file);
    EXPECT_EQ(rules.status().code(), absl::StatusCode::kInvalidArgument) << c.file;
    EXPECT_THAT(std::string(rules.status().message()), HasSubstr(c.what));
  }
}

class BeginningOfText : public testing::Test {
 protected:
  BeginningOfText()
      : folder_(std::filesystem::path(testing::TempDir()) /
                testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~BeginningOfText() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
  }

  std::filesystem::path folder_;
};

TEST_F(BeginningOfText, IsInFrontOfATextThatBeginsAContextAndOfNoOther) {
  std::vector<std::string> sentences;
  for (int i = 0; i < 300; ++i)
    sentences.push_back(std::string("the sea and the storm took the ship ").append(std::to_string(i * 7919)));
  const std::string model =
      TrainWithSentencePiece(sentences,
                             "--model_type=bpe --vocab_size=320 --byte_fallback --normalization_rule_name=identity "
                             "--remove_extra_whitespaces=false --hard_vocab_limit=false");
  const SentencePieceOracle oracle(model);
  Write("tokenizer.model", model);
  Write("tokenizer_config.json", R"({"tokenizer_class": "LlamaTokenizer", "add_bos_token": true, "bos_token": "<s>",
                                     "add_eos_token": false, "legacy": true})");
  const auto loaded = Tokenizer::Load(folder_.string(), oracle.vocabulary());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Tokenizer& tokenizer = **loaded;
  EXPECT_EQ(tokenizer.bos_token(), 1);
  for (const char* text : {"", "the sea", " the sea", "\n", "<s>the sea", "\xE2\x82\xAC"}) {
    // As the slow and the fast tokenizer of Llama do: the token, then what SentencePiece says, its space included.
    std::vector<int32_t> expected = oracle.Encode(text);
    expected.insert(expected.begin(), 1);
    EXPECT_EQ(tokenizer.Encode(text), expected) << text;
    EXPECT_EQ(tokenizer.Encode(text, /*first=*/false, nullptr, 10).size(), tokenizer.Encode(text, false).size());
    const std::vector<int32_t> on = tokenizer.Encode(text, /*first=*/false);
    EXPECT_TRUE(on.empty() || on[0] != 1) << text;
  }
  const std::vector<int32_t> ids = tokenizer.Encode("the sea");
  EXPECT_EQ(tokenizer.Decode(ids), "the sea");
  EXPECT_EQ(tokenizer.Bytes(1, Tokenizer::kNoToken), "");
  EXPECT_EQ(tokenizer.Bytes(ids[1], 1), tokenizer.Bytes(ids[1], Tokenizer::kNoToken)) << "a text begins after it";
  EXPECT_NE(tokenizer.Bytes(ids[1], 1), tokenizer.Bytes(ids[1], ids[1]));

  Write("tokenizer_config.json", R"({"add_bos_token": true, "bos_token": "<begin>"})");
  const auto missing = Tokenizer::Load(folder_.string(), oracle.vocabulary());
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("tokenizer_config.json: add_bos_token is true, but no "
                                                                 "token is written \"<begin>\""));
  Write("tokenizer_config.json", R"({"add_eos_token": true})");
  EXPECT_THAT(std::string(Tokenizer::Load(folder_.string(), oracle.vocabulary()).status().message()),
              HasSubstr("tokenizer_config.json: add_eos_token is true"));
  std::filesystem::remove(folder_ / "tokenizer_config.json");
  const auto plain = Tokenizer::Load(folder_.string(), oracle.vocabulary());
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ((*plain)->bos_token(), -1);
  EXPECT_EQ((*plain)->Encode("the sea"), oracle.Encode("the sea"));
}

TEST_F(BeginningOfText, OfWordsIsASymbolAndOfBytesTheConfigs) {
  Write("vocab.txt", "<unk>\n<eos>\n<bos>\na\nb\n");
  Write("vocabulary.json", R"({"kind": "word", "unk": "<unk>", "eos": "<eos>"})");
  Write("tokenizer_config.json", R"({"add_bos_token": true, "bos_token": "<bos>"})");
  const auto words = Tokenizer::Load(folder_.string(), 5, /*bos_token_id=*/1);
  ASSERT_TRUE(words.ok()) << words.status();
  EXPECT_THAT((*words)->Encode("a b"), ElementsAre(2, 3, 4));
  EXPECT_THAT((*words)->Encode("a b", /*first=*/false), ElementsAre(3, 4));
  EXPECT_EQ((*words)->Bytes(3, 2), "a");
  std::filesystem::remove(folder_ / "vocab.txt");
  std::filesystem::remove(folder_ / "vocabulary.json");
  const auto bytes = Tokenizer::Load(folder_.string(), 300, /*bos_token_id=*/256);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_THAT((*bytes)->Encode("ab"), ElementsAre(256, 97, 98));
  EXPECT_THAT(std::string(Tokenizer::Load(folder_.string(), 300).status().message()), HasSubstr("bos_token_id"));
}

// A limit stops the work, and what comes back says so.
class Limit : public testing::TestWithParam<const char*> {};

std::string LongText(int kind) {
  std::string text;
  while (text.size() < 300'000) {
    const std::string number = std::to_string(text.size() * 2654435761u);
    if (kind == 0) text.append("the sea and the storm ").append(number).append(" ");
    if (kind == 1) text.append("thesea").append(number);
    if (kind == 2) text += "aaaaaaaa";
    if (kind == 3) text += text.size() % 7 == 0 ? "\xE2\x82\xAC" : "  \n";
  }
  return text;
}

TEST_P(Limit, ATextIsReadNoFurtherThanItReaches) {
  std::vector<std::string> sentences;
  for (int i = 0; i < 300; ++i) {
    sentences.push_back(std::string("the sea and the storm took the ship aaaa ").append(std::to_string(i * 7919)));
  }
  const std::string model = TrainWithSentencePiece(sentences, std::string("--hard_vocab_limit=false ") + GetParam());
  const SentencePieceOracle oracle(model);
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "tokenizer_limit";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "tokenizer.model", std::ios::binary) << model;
  const auto loaded = Tokenizer::Load(folder.string(), oracle.vocabulary());
  std::filesystem::remove_all(folder);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Tokenizer& tokenizer = **loaded;
  for (int kind = 0; kind < 4; ++kind) {
    const std::string text = LongText(kind);
    const std::vector<int32_t> all = tokenizer.Encode(text);
    // Of unigram models the library adds so many scores up that their last bits decide.
    const bool is_bpe = std::string(GetParam()).find("bpe") != std::string::npos;
    EXPECT_TRUE(!is_bpe || all == oracle.Encode(text)) << kind;
    const auto count = static_cast<int64_t>(all.size());
    EXPECT_TRUE(tokenizer.Encode(text, true, nullptr, count) == all) << kind;
    for (const int64_t most : {count - 1, count / 2, int64_t{100}, int64_t{1}, int64_t{0}}) {
      if (most >= count || most < 0) continue;
      EXPECT_GT(std::ssize(tokenizer.Encode(text, true, nullptr, most)), most) << kind;
    }
    // The third has no place where it may be cut.
    if (count > 100'000 && kind != 2) {
      EXPECT_LT(std::ssize(tokenizer.Encode(text, true, nullptr, 100)), 100'000) << kind << ": it was read to the end";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Limit,
                         testing::Values("--model_type=bpe --vocab_size=330 --byte_fallback "
                                         "--normalization_rule_name=identity --remove_extra_whitespaces=false",
                                         "--model_type=bpe --vocab_size=100",
                                         "--model_type=unigram --vocab_size=330 --byte_fallback",
                                         "--model_type=unigram --vocab_size=100 --add_dummy_prefix=false"),
                         [](const auto& info) { return std::string("m").append(std::to_string(info.index)); });

}  // namespace
}  // namespace palimpsest
