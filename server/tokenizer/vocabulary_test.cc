#include "server/tokenizer/vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace palimpsest {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kWords[] = R"({"kind": "word", "unk": "<unk>", "eos": "<eos>", "lowercase": false})";
constexpr char kCharacters[] = R"({"kind": "character", "unk": null, "eos": null})";
// <eos> 0, the 1, <unk> 2, cat 3, The 4, = 5, é 6
constexpr char kSymbols[] = "<eos>\nthe\n<unk>\ncat\nThe\n=\n\xC3\xA9\n";

absl::StatusOr<std::unique_ptr<Tokenizer>> TryMake(const std::string& symbols, const std::string& json) {
  const absl::StatusOr<VocabularyRules> rules = ParseVocabularyRules(json);
  if (!rules.ok()) return rules.status();
  return MakeVocabularyTokenizer(symbols, *rules);
}

std::unique_ptr<Tokenizer> Make(const std::string& symbols, const std::string& json) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = TryMake(symbols, json);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

// Of a character below U+10000.
std::string Utf8(char32_t c) {
  const auto byte = [](char32_t value) { return std::string(1, static_cast<char>(value)); };
  const auto tail = [&](char32_t value) { return byte(0x80 | (value & 0x3F)); };
  if (c < 0x80) return byte(c);
  if (c < 0x800) return byte(0xC0 | c >> 6) + tail(c);
  return byte(0xE0 | c >> 12) + tail(c >> 6) + tail(c);
}

// What a reader of the stream puts together, token by token.
std::string Streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  std::string text;
  int32_t previous = Tokenizer::kNoToken;
  for (const int32_t id : ids) {
    text += tokenizer.Bytes(id, previous);
    previous = id;
  }
  return text;
}

TEST(WordsTest, LinesAreCutAtWhiteSpaceAndEndWithEos) {
  const std::unique_ptr<Tokenizer> words = Make(kSymbols, kWords);
  EXPECT_EQ(words->kind(), "words");
  EXPECT_EQ(words->vocabulary(), 7);
  EXPECT_THAT(words->Encode(""), IsEmpty());
  EXPECT_THAT(words->Encode(" \t "), IsEmpty());
  EXPECT_THAT(words->Encode("the  cat \xC3\xA9"), ElementsAre(1, 3, 6)) << "no line end, no <eos>";
  EXPECT_THAT(words->Encode(" the cat \n"), ElementsAre(1, 3, 0));
  EXPECT_THAT(words->Encode("\n = the = \n\n The cat\n"), ElementsAre(0, 5, 1, 5, 0, 0, 4, 3, 0)) << "case is kept";
  EXPECT_THAT(words->Encode("the\r\ncat\rthe\n\rcat\r\n\r\n"), ElementsAre(1, 0, 3, 0, 1, 0, 0, 3, 0, 0));
  EXPECT_THAT(words->Encode("the\x0B"
                            "cat\x0C\x1C\x1D\x1E\x1Fthe\xC2\x85"
                            "cat\xE2\x80\xA8the\xE2\x80\xA9"),
              ElementsAre(1, 3, 1, 3, 1))
      << "white space that ends no line";
  EXPECT_THAT(words->Encode("the\xC2\xA0"
                            "cat\xE3\x80\x80the"),
              ElementsAre(1, 3, 1));
}

// Python's str.isspace, character by character.
TEST(WordsTest, WhiteSpaceIsExactlyPythons) {
  const std::unique_ptr<Tokenizer> words = Make(kSymbols, kWords);
  std::vector<int> spaces;
  for (char32_t c = 0; c < 0xD800; ++c) {
    if (words->Encode(absl::StrCat("the", Utf8(c), "cat")) != std::vector<int32_t>{2})
      spaces.push_back(static_cast<int>(c));
  }
  EXPECT_EQ(absl::StrJoin(spaces, " ", [](std::string* out, int c) { absl::StrAppend(out, absl::Hex(c)); }),
            "9 a b c d 1c 1d 1e 1f 20 85 a0 1680 2000 2001 2002 2003 2004 2005 2006 2007 2008 2009 200a 2028 2029 202f "
            "205f 3000");
}

TEST(WordsTest, UnknownWordsAreCountedAndKnownOnesAreNot) {
  const std::unique_ptr<Tokenizer> words = Make(kSymbols, kWords);
  int64_t unknown = -1;
  EXPECT_THAT(words->Encode("the dog <unk> cat. cat", true, &unknown), ElementsAre(1, 2, 2, 2, 3));
  EXPECT_EQ(unknown, 2) << "<unk> itself is a word of the vocabulary";
  EXPECT_THAT(words->Encode("the\xFF \xE3\x80 \xC2", true, &unknown), ElementsAre(2, 2, 2)) << "any bytes";
  EXPECT_EQ(unknown, 3);
  EXPECT_THAT(words->Encode("the cat\n", true, &unknown), ElementsAre(1, 3, 0));
  EXPECT_EQ(unknown, 0);
}

TEST(WordsTest, WithoutEosALineEndIsWhiteSpace) {
  const std::unique_ptr<Tokenizer> words = Make("<unk>\nthe\n", R"({"kind": "word", "unk": "<unk>", "eos": null})");
  EXPECT_THAT(words->Encode("the\nthe\r\n"), ElementsAre(1, 1));
  EXPECT_EQ(words->Decode(std::vector<int32_t>{1, 0, 1}), "the <unk> the");
}

TEST(WordsTest, TextComesBackWithOneSpaceBetweenWords) {
  const std::unique_ptr<Tokenizer> words = Make(kSymbols, kWords);
  const std::vector<int32_t> ids = words->Encode("\n  the   cat\r\n\xC3\xA9 dog");
  EXPECT_EQ(words->Decode(ids), "\nthe cat\n\xC3\xA9 <unk>");
  EXPECT_EQ(Streamed(*words, ids), words->Decode(ids));
  EXPECT_EQ(words->Bytes(3, Tokenizer::kNoToken), "cat");
  EXPECT_EQ(words->Bytes(3, 0), "cat") << "after a line end";
  EXPECT_EQ(words->Bytes(3, 1), " cat");
  EXPECT_EQ(words->Bytes(3, Tokenizer::kSomeToken), " cat");
  EXPECT_EQ(words->Bytes(0, 1), "\n");
  for (const int32_t id : {-1, 7, INT32_MAX, INT32_MIN}) EXPECT_EQ(words->Bytes(id, 1), "");
}

TEST(WordsTest, PiecesThatMeetAtWhiteSpaceGiveTheWhole) {
  const std::unique_ptr<Tokenizer> words = Make(kSymbols, kWords);
  const std::vector<std::string> parts = {"the",  "cat", "dog",          "<unk>",    " ",    "  ",       "\n",
                                          "\r\n", "\r",  "\xE3\x80\x80", "\xC2\xA0", "\xFF", "\xE2\x80", "\xC3\xA9"};
  std::mt19937 random(1);
  int cuts = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string before;
    std::string after;
    for (uint32_t n = random() % 8; n > 0; --n) before += parts[random() % parts.size()];
    for (uint32_t n = random() % 8; n > 0; --n) after += parts[random() % parts.size()];
    const bool spaced = before.empty() || after.empty() ||
                        std::string(" \n\r").find(before.back()) != std::string::npos ||
                        std::string(" \n\r").find(after.front()) != std::string::npos;
    if (!spaced || (before.ends_with('\r') && after.starts_with('\n'))) continue;
    ++cuts;
    int64_t unknown = 0;
    int64_t unknown_before = 0;
    int64_t unknown_after = 0;
    std::vector<int32_t> ids = words->Encode(before, true, &unknown_before);
    const std::vector<int32_t> rest = words->Encode(after, false, &unknown_after);
    ids.insert(ids.end(), rest.begin(), rest.end());
    ASSERT_EQ(ids, words->Encode(before + after, true, &unknown)) << absl::StrCat(before, "|", after);
    ASSERT_EQ(unknown_before + unknown_after, unknown);
    // What was lost is white space and unknown words only.
    ASSERT_EQ(words->Encode(words->Decode(ids)), ids);
  }
  EXPECT_GT(cuts, 1000);
}

TEST(WordsTest, AnyBytesGiveIdsOfTheVocabulary) {
  std::mt19937 random(2);
  const std::unique_ptr<Tokenizer> words = Make(kSymbols, kWords);
  const std::unique_ptr<Tokenizer> characters = Make("32\n97\n255\n", kCharacters);
  for (int i = 0; i < 3000; ++i) {
    std::string text(random() % 40, '\0');
    for (char& byte : text) byte = static_cast<char>(random() % 3 == 0 ? " \n\xE3\x80\xC2"[random() % 5] : random());
    for (const Tokenizer* tokenizer : {words.get(), characters.get()}) {
      for (const int32_t id : tokenizer->Encode(text)) {
        ASSERT_GE(id, 0);
        ASSERT_LT(id, tokenizer->vocabulary());
      }
    }
  }
}

TEST(CharactersTest, SymbolsAreValuesOfBytes) {
  const std::unique_ptr<Tokenizer> characters = Make("32\n101\n116\n195\n169\n48\n", kCharacters);
  EXPECT_EQ(characters->kind(), "characters");
  int64_t unknown = -1;
  EXPECT_THAT(characters->Encode("te \xC3\xA9"
                                 "0",
                                 true, &unknown),
              ElementsAre(2, 1, 0, 3, 4, 5));
  EXPECT_EQ(unknown, 0);
  EXPECT_EQ(characters->Decode(std::vector<int32_t>{2, 1, 0, 3, 4, 5}),
            "te \xC3\xA9"
            "0");
  EXPECT_THAT(characters->Encode("t\ne", true, &unknown), ElementsAre(2, 1)) << "as enwik8's models saw line breaks";
  EXPECT_EQ(unknown, 1);
  for (const int32_t id : {-1, 6, INT32_MAX, INT32_MIN}) EXPECT_EQ(characters->Bytes(id, 0), "");
}

TEST(CharactersTest, UnknownBytesAndLineEndsMayHaveSymbols) {
  const std::unique_ptr<Tokenizer> characters =
      Make("97\n<unk>\n<eos>\n", R"({"kind": "character", "unk": "<unk>", "eos": "<eos>", "lowercase": true})");
  int64_t unknown = -1;
  EXPECT_THAT(characters->Encode("ab\na", true, &unknown), ElementsAre(0, 1, 2, 0));
  EXPECT_EQ(unknown, 1);
  EXPECT_EQ(characters->Decode(std::vector<int32_t>{0, 1, 2, 0}), "a<unk>\na");
}

TEST(VocabularyTest, RefusesWithTheLineAndTheCure) {
  const struct {
    const char* symbols;
    const char* json;
    const char* message;
  } rows[] = {
      {kSymbols, "", "no JSON object"},
      {kSymbols, "[]", "no JSON object"},
      {kSymbols, "{}", "has no \"kind\""},
      {kSymbols, R"({"kind": "bpe"})", "kind is none of \"word\" and \"character\""},
      {kSymbols, R"({"kind": 1})", "kind is none of"},
      {kSymbols, R"({"kind": "word"})", "has no \"unk\""},
      {kSymbols, R"({"kind": "word", "unk": null})", "has no \"unk\""},
      {kSymbols, R"({"kind": "word", "unk": 7})", "unk is neither a symbol of vocab.txt nor null"},
      {kSymbols, R"({"kind": "word", "unk": "<unk>", "lowercase": true})", "lowercase is true, but only"},
      {kSymbols, R"({"kind": "word", "unk": "<unk>", "lowercase": 0})", "lowercase is neither true nor false"},
      {kSymbols, R"({"kind": "word", "unk": "<unk>", "bos": null})", "has the key \"bos\"; known are"},
      {kSymbols, R"({"kind": "word", "unk": "<UNK>"})", "does not hold \"<UNK>\", which vocabulary.json names as unk"},
      {kSymbols, R"({"kind": "word", "unk": "<unk>", "eos": "</s>"})", "\"</s>\", which vocabulary.json names as eos"},
      {"", kWords, "holds no symbols"},
      {"<unk>\n<eos>\n\nthe\n", kWords, "line 3 is empty"},
      {"<unk>\n<eos>\nthe\n\n", kWords, "line 4 is empty"},
      {"<unk>\n<eos>\nthe\ncat\nthe\n", kWords, "line 5 holds \"the\", as line 3 does"},
      {"<unk>\n<eos>\nth\xFF\n", kWords, "line 3 is not valid UTF-8"},
      {"<unk>\n<eos>\nthe cat\n", kWords, "line 3 holds white space: \"the cat\""},
      {"<unk>\n<eos>\nthe\xC2\xA0\n", kWords, "line 3 holds white space"},
      {"<unk>\r\n<eos>\r\n", R"({"kind": "word", "unk": "<unk>\r"})", "line 1 holds white space: \"<unk>\\r\"; each"},
      {"97\n256\n", kCharacters, "line 2 holds \"256\", which is no decimal value of a byte"},
      {"97\n098\n", kCharacters, "line 2 holds \"098\""},
      {"97\n-1\n", kCharacters, "line 2 holds \"-1\""},
      {"97\n97\n", kCharacters, "line 2 holds \"97\", as line 1 does"},
      {"a\n", kCharacters, "for words, say so in vocabulary.json"},
      {"u\n", R"({"kind": "character", "unk": "u"})", "holds no byte's value"},
  };
  for (const auto& row : rows) {
    const auto tokenizer = TryMake(row.symbols, row.json);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << row.message;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(row.message));
  }
}

TEST(VocabularyTest, AnyBytesAsFilesAreReadOrRefused) {
  std::mt19937 random(3);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string symbols = kSymbols;
    std::string json = kWords;
    std::string& damaged = i % 2 == 0 ? symbols : json;
    for (uint32_t n = 1 + random() % 3; n > 0; --n) damaged[random() % damaged.size()] = static_cast<char>(random());
    const auto tokenizer = TryMake(symbols, json);
    if (tokenizer.ok()) {
      for (const int32_t id : (*tokenizer)->Encode("the cat dog\n")) {
        ASSERT_GE(id, 0);
        ASSERT_LT(id, (*tokenizer)->vocabulary());
      }
    } else {
      ++refused;
    }
  }
  EXPECT_GT(refused, 0);
}

class VocabularyFolderTest : public ::testing::Test {
 protected:
  VocabularyFolderTest()
      : folder_(std::filesystem::path(::testing::TempDir()) /
                absl::StrCat("vocabulary_", ::testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~VocabularyFolderTest() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
  }
  void ExpectRefused(int32_t vocabulary, const std::vector<std::string>& words,
                     absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    const auto tokenizer = Tokenizer::Load(folder_.string(), vocabulary);
    EXPECT_EQ(tokenizer.status().code(), code);
    for (const std::string& word : words) EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(word));
  }

  std::filesystem::path folder_;
};

TEST_F(VocabularyFolderTest, IsLoadedByWhatIsThere) {
  Write("vocab.txt", kSymbols);
  Write("vocabulary.json", kWords);
  auto tokenizer = Tokenizer::Load(folder_.string(), 7);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->kind(), "words");
  Write("vocab.txt", "97\n98");
  Write("vocabulary.json", kCharacters);
  tokenizer = Tokenizer::Load(folder_.string(), 2);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->kind(), "characters");
  EXPECT_THAT((*tokenizer)->Encode("ba"), ElementsAre(1, 0));
}

TEST_F(VocabularyFolderTest, IsRefusedWithPathNumbersAndCure) {
  Write("vocab.txt", kSymbols);
  ExpectRefused(7, {"vocab.txt", "no vocabulary.json beside it", "\"kind\": \"word\""});
  Write("vocabulary.json", "nonsense");
  ExpectRefused(7, {"vocabulary.json", "no JSON object"});
  Write("vocabulary.json", kWords);
  ExpectRefused(8, {"vocab.txt", "7 symbols", "vocab_size 8", "trained with"});
  Write("tokenizer.model", "");
  ExpectRefused(7, {"both a tokenizer.model and a vocabulary.json"});
  std::filesystem::remove(folder_ / "tokenizer.model");
  std::filesystem::resize_file(folder_ / "vocab.txt", (64 << 20) + 1);
  ExpectRefused(7, {"vocab.txt", "67108865", "67108864"});
  std::filesystem::remove(folder_ / "vocab.txt");
  ExpectRefused(7, {"vocab.txt", "No such file"}, absl::StatusCode::kNotFound);
  std::filesystem::resize_file(folder_ / "vocabulary.json", (64 << 10) + 1);
  ExpectRefused(7, {"vocabulary.json", "65537", "65536"});
}

}  // namespace
}  // namespace palimpsest
