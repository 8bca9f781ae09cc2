#include "server/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "server/tokenizer/sentencepiece.h"
#include "server/tokenizer/sentencepiece_oracle_test.h"

namespace palimpsest {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Text of invented words, some frequent and most rare, so that pieces of all lengths come about.
class TextMaker {
 public:
  explicit TextMaker(uint32_t seed) : random_(seed) {}

  std::string Word() {
    constexpr const char* kSyllables[] = {"ba",
                                          "ke",
                                          "lo",
                                          "mi",
                                          "nu",
                                          "sta",
                                          "tre",
                                          "ing",
                                          "er",
                                          "os",
                                          "\xC3\xA9",
                                          "\xC3\xBC",
                                          "th",
                                          "qu",
                                          "a",
                                          "\xE4\xBD\xA0",
                                          "\xD0\xB4\xD0\xB0"};
    std::mt19937 word(Rank());  // the same rank is the same word
    std::string text;
    for (uint32_t i = 0; i < 1 + word() % 4; ++i) text += kSyllables[word() % std::size(kSyllables)];
    return text;
  }

  std::string Sentence() {
    std::string text = Word();
    for (uint32_t i = 0; i < random_() % 12; ++i) {
      text += random_() % 6 == 0 ? ", " : " ";
      text += Word();
    }
    text += random_() % 3 == 0 ? "!" : ".";
    return text;
  }

  // Words with things between them that normalisers, byte fallback and user-defined pieces care about.
  std::string Mixture() {
    static const std::vector<std::string> kOddities = {" ",
                                                       "  ",
                                                       "   ",
                                                       "\n",
                                                       "\n\n",
                                                       "\t",
                                                       "\r\n",
                                                       std::string(1, '\0'),
                                                       "<tag>",
                                                       "<s>",
                                                       "</s>",
                                                       "<unk>",
                                                       "<0x41>",
                                                       "0123456789",
                                                       "aaaaaaaa",
                                                       "ab",
                                                       "abc",
                                                       "abcd",
                                                       "\xE3\x80\x80",
                                                       "\xEF\xBC\xA1\xEF\xBC\xA2",
                                                       "\xEF\xAC\x81",
                                                       "e\xCC\x81",
                                                       "\xF0\x9F\x98\x80",
                                                       "\xE2\x98\x83",
                                                       "\xE2\x98\x83\xE2\x98\x84",
                                                       "\xC2\xA0",
                                                       "\xE2\x80\x8B",
                                                       "\xC2\xAD",
                                                       "\x01",
                                                       "\x7F",
                                                       "\xEF\xBB\xBF",
                                                       "\xF4\x8F\xBF\xBF",
                                                       "\xEF\xBF\xBD",
                                                       "\xE2\x84\xA2"};
    std::string text;
    for (uint32_t i = 0; i < random_() % 12; ++i) {
      switch (random_() % 3) {
        case 0:
          text += Word();
          break;
        case 1:
          text += ' ';
          text += Word();
          break;
        default:
          text += kOddities[random_() % kOddities.size()];
      }
    }
    return text;
  }

  std::string AnyBytes() {
    std::string text = Mixture();
    for (uint32_t i = 0; i < random_() % 6; ++i) {
      text.insert(random_() % (text.size() + 1), 1, static_cast<char>(random_()));
    }
    if (random_() % 4 == 0) text += "\xE2\x96\x81";
    return text;
  }

 private:
  uint32_t Rank() {
    const double u = std::uniform_real_distribution<>(0.0, 1.0)(random_);
    return static_cast<uint32_t>(300.0 * u * u * u);
  }

  std::mt19937 random_;
};

struct ModelCase {
  const char* name;
  const char* flags;
};

constexpr ModelCase kModels[] = {
    {"bpe_bytes",
     "--model_type=bpe --vocab_size=600 --byte_fallback --normalization_rule_name=identity "
     "--remove_extra_whitespaces=false"},
    {"bpe_bytes_no_prefix",
     "--model_type=bpe --vocab_size=600 --byte_fallback --normalization_rule_name=identity "
     "--remove_extra_whitespaces=false --add_dummy_prefix=false --user_defined_symbols=<tag>,ab,abc,bcd"},
    {"bpe_across_spaces",
     "--model_type=bpe --vocab_size=600 --byte_fallback --normalization_rule_name=identity "
     "--remove_extra_whitespaces=false --split_by_whitespace=false --split_by_unicode_script=false"},
    {"bpe_defaults", "--model_type=bpe --vocab_size=500"},
    {"bpe_few_characters", "--model_type=bpe --vocab_size=300 --character_coverage=0.98 --user_defined_symbols=<tag>"},
    {"bpe_nfkc_bytes", "--model_type=bpe --vocab_size=700 --byte_fallback --normalization_rule_name=nfkc"},
    {"unigram_bytes",
     "--model_type=unigram --vocab_size=600 --byte_fallback --normalization_rule_name=identity "
     "--remove_extra_whitespaces=false"},
    {"unigram_defaults", "--model_type=unigram --vocab_size=300 --user_defined_symbols=<tag>,ab,abc"},
};

const std::string& ModelBytes(const ModelCase& c) {
  static auto* const kTrained = new std::map<std::string, std::string>();
  std::string& model = (*kTrained)[c.name];
  if (model.empty()) {
    TextMaker maker(1);
    std::vector<std::string> sentences;
    for (int i = 0; i < 1500; ++i) sentences.push_back(maker.Sentence());
    model = TrainWithSentencePiece(sentences, std::string("--hard_vocab_limit=false ") + c.flags);
  }
  return model;
}

std::unique_ptr<Tokenizer> Make(const std::string& model) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = MakeSentencePieceTokenizer(model);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

// The bytes that the ids stand for, put together as a reader of a stream does.
std::string Joined(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool first) {
  std::string bytes;
  int32_t previous = first ? Tokenizer::kNoToken : Tokenizer::kSomeToken;
  for (const int32_t id : ids) {
    bytes += tokenizer.Bytes(id, previous);
    if (previous != Tokenizer::kNoToken || !tokenizer.Bytes(id, Tokenizer::kSomeToken).empty()) previous = id;
  }
  return bytes;
}

class EveryModelTest : public testing::TestWithParam<ModelCase> {};
INSTANTIATE_TEST_SUITE_P(Models, EveryModelTest, testing::ValuesIn(kModels),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(EveryModelTest, EncodesAsTheLibraryDoes) {
  const SentencePieceOracle oracle(ModelBytes(GetParam()));
  const std::unique_ptr<Tokenizer> tokenizer = Make(ModelBytes(GetParam()));
  ASSERT_EQ(tokenizer->vocabulary(), oracle.vocabulary());
  TextMaker maker(2);
  for (int i = 0; i < 3000; ++i) {
    const std::string text = i % 3 == 0 ? maker.Sentence() : maker.Mixture();
    ASSERT_EQ(tokenizer->Encode(text), oracle.Encode(text)) << "text: \"" << text << "\"";
  }
}

TEST_P(EveryModelTest, DecodesAsTheLibraryDoes) {
  const SentencePieceOracle oracle(ModelBytes(GetParam()));
  const std::unique_ptr<Tokenizer> tokenizer = Make(ModelBytes(GetParam()));
  TextMaker maker(3);
  for (int i = 0; i < 1000; ++i) {
    const std::vector<int32_t> ids = oracle.Encode(maker.Mixture());
    ASSERT_EQ(tokenizer->Decode(ids), oracle.Decode(ids));
  }
}

TEST_P(EveryModelTest, ALongTextIsCutWhereNoPieceSpans) {
  const SentencePieceOracle oracle(ModelBytes(GetParam()));
  const std::unique_ptr<Tokenizer> tokenizer = Make(ModelBytes(GetParam()));
  TextMaker maker(4);
  std::string spaced;
  std::string unspaced;
  while (spaced.size() < 300000) spaced += maker.Sentence() + " ";
  while (unspaced.size() < 300000) unspaced += maker.Word();
  // The library's float32 sums of a whole text round away small differences between cuts, so unigram is compared in
  // what it spells only.
  const bool is_unigram = std::string(GetParam().name).starts_with("unigram");
  for (const std::string& text : {spaced, unspaced, std::string(300000, 'a'), std::string(300000, ' ')}) {
    if (is_unigram) {
      EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), oracle.Decode(oracle.Encode(text)));
    } else {
      EXPECT_TRUE(tokenizer->Encode(text) == oracle.Encode(text)) << text.substr(0, 30);
    }
  }
}

TEST_P(EveryModelTest, AnyBytesEncodeToIdsOfTheVocabulary) {
  const std::unique_ptr<Tokenizer> tokenizer = Make(ModelBytes(GetParam()));
  TextMaker maker(5);
  for (int i = 0; i < 2000; ++i) {
    for (const int32_t id : tokenizer->Encode(maker.AnyBytes(), i % 2 == 0)) {
      ASSERT_GE(id, 0);
      ASSERT_LT(id, tokenizer->vocabulary());
    }
  }
  EXPECT_THAT(tokenizer->Encode(""), IsEmpty());
}

TEST(SentencePieceTest, WithByteFallbackAnyBytesComeBackAsTheyWere) {
  for (const ModelCase& c : kModels) {
    if (std::string(c.flags).find("identity") == std::string::npos) continue;
    SCOPED_TRACE(c.name);
    const std::unique_ptr<Tokenizer> tokenizer = Make(ModelBytes(c));
    TextMaker maker(6);
    for (int i = 0; i < 2000; ++i) {
      const std::string text = maker.AnyBytes();
      ASSERT_EQ(Joined(*tokenizer, tokenizer->Encode(text), true), text);
      ASSERT_EQ(Joined(*tokenizer, tokenizer->Encode(text, false), false), text);
    }
  }
}

TEST(SentencePieceTest, ATextInPiecesIsTheWholeText) {
  const std::unique_ptr<Tokenizer> tokenizer = Make(ModelBytes(kModels[0]));
  TextMaker maker(7);
  std::mt19937 random(8);
  for (int i = 0; i < 1000; ++i) {
    const std::string text = maker.AnyBytes();
    const size_t cut = random() % (text.size() + 1);
    std::vector<int32_t> ids = tokenizer->Encode(text.substr(0, cut));
    const std::vector<int32_t> rest = tokenizer->Encode(text.substr(cut), ids.empty());
    ids.insert(ids.end(), rest.begin(), rest.end());
    ASSERT_EQ(Joined(*tokenizer, ids, true), text);
  }
}

TEST(SentencePieceTest, WithoutByteFallbackARunOfInvalidBytesIsOneUnknownToken) {
  const std::unique_ptr<Tokenizer> tokenizer = Make(ModelBytes(kModels[3]));
  const std::vector<int32_t> plain = tokenizer->Encode("ba");
  std::vector<int32_t> expected = plain;
  expected.push_back(0);
  int64_t unknown = -1;
  EXPECT_EQ(tokenizer->Encode("ba\xFF\xFE\x80", true, &unknown), expected);
  EXPECT_EQ(unknown, 1);
  EXPECT_EQ(tokenizer->Encode("ba", true, &unknown), plain);
  EXPECT_EQ(unknown, 0);
  EXPECT_EQ(tokenizer->Decode(expected), "ba \xE2\x81\x87 ");
}

TEST(SentencePieceTest, TextCannotSpellControlTokens) {
  const std::unique_ptr<Tokenizer> tokenizer = Make(ModelBytes(kModels[0]));
  for (const char* text : {"<s>", "</s>", "<unk>", "<0x41>"}) {
    for (const int32_t id : tokenizer->Encode(text)) EXPECT_GT(id, 2) << text;
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
  }
  EXPECT_EQ(tokenizer->Bytes(1, 0), "");
  EXPECT_EQ(tokenizer->Bytes(2, 0), "");
}

TEST(SentencePieceTest, IdsOutsideTheVocabularyStandForNothing) {
  const std::unique_ptr<Tokenizer> tokenizer = Make(ModelBytes(kModels[0]));
  for (const int32_t id : {-1, tokenizer->vocabulary(), INT32_MAX, INT32_MIN}) EXPECT_EQ(tokenizer->Bytes(id, 0), "");
}

TEST(SentencePieceTest, DecodeJoinsByteTokensToCharacters) {
  const std::unique_ptr<Tokenizer> tokenizer = Make(ModelBytes(kModels[0]));
  const auto byte_id = [](int byte) { return 3 + byte; };
  EXPECT_EQ(tokenizer->Bytes(byte_id(0x9F), 0), "\x9F");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{byte_id(0xF0), byte_id(0x9F), byte_id(0x98), byte_id(0x80)}),
            "\xF0\x9F\x98\x80");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{byte_id(0xF0), byte_id(0x9F), byte_id('x')}), "\xEF\xBF\xBDx");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{byte_id('x'), byte_id(0xF0)}), "x\xEF\xBF\xBD");
}

std::string FileBytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

TEST(SentencePieceTest, TheBundledTokenizersGiveBackTextFilesAndAgreeWithTheLibrary) {
  const std::filesystem::path root = PALIMPSEST_SOURCE_DIR;
  int tokenizers = 0;
  for (const auto& checkpoint : std::filesystem::directory_iterator(root / "checkpoints")) {
    if (!std::filesystem::exists(checkpoint.path() / "tokenizer.model")) continue;
    SCOPED_TRACE(checkpoint.path().string());
    ++tokenizers;
    const std::string model = FileBytes(checkpoint.path() / "tokenizer.model");
    const std::unique_ptr<Tokenizer> tokenizer = Make(model);
    const SentencePieceOracle oracle(model);
    for (const auto& entry : std::filesystem::directory_iterator(root / "server" / "tokenizer")) {
      const std::string text = FileBytes(entry.path());
      ASSERT_FALSE(text.empty());
      const std::vector<int32_t> ids = tokenizer->Encode(text);
      EXPECT_EQ(tokenizer->Decode(ids), text);
      EXPECT_TRUE(ids == oracle.Encode(text)) << entry.path();
      EXPECT_LT(ids.size(), text.size());
    }
  }
  EXPECT_GT(tokenizers, 0);
}

// Pieces of the wire format, to write models that no trainer would.
std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}
std::string Integer(int number, uint64_t value) { return Varint(number << 3) + Varint(value); }
std::string Bytes(int number, const std::string& value) {
  return Varint(number << 3 | 2) + Varint(value.size()) + value;
}
std::string Float(int number, float value) {
  std::string bytes = Varint(number << 3 | 5);
  return bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}
std::string Piece(const std::string& text, int type, float score = 0.0f) {
  return Bytes(1, Bytes(1, text) + Float(2, score) + Integer(3, type));
}
std::string BpeSpec(const std::string& more = "") { return Bytes(2, Integer(3, 2) + more); }
std::string NormalizerSpec(const std::string& charsmap) { return Bytes(3, Bytes(2, charsmap)); }
std::string Little(uint32_t value) { return {reinterpret_cast<const char*>(&value), sizeof(value)}; }

const std::string kUnknown = Piece("<unk>", 2);

TEST(SentencePieceTest, UnusedPiecesLeadToOthersButAreNotUsed) {
  const std::string model = kUnknown + Piece("a", 1, -4) + Piece("b", 1, -5) + Piece("c", 1, -6) + Piece("ab", 5, -1) +
                            Piece("abc", 1, -2) + Piece("\xE2\x96\x81", 1, -7) + BpeSpec();
  const std::unique_ptr<Tokenizer> tokenizer = Make(model);
  EXPECT_THAT(tokenizer->Encode("ab", false), ElementsAre(1, 2));
  EXPECT_THAT(tokenizer->Encode("abc", false), ElementsAre(5));
  const SentencePieceOracle oracle(model);
  for (const char* text : {"ab", "abc", "abab", "ababc cab", "bca"}) {
    EXPECT_EQ(tokenizer->Encode(text), oracle.Encode(text));
  }
}

TEST(SentencePieceTest, UnigramPassesOverUnusedPieces) {
  const std::string model = kUnknown + Piece("a", 1, -4) + Piece("b", 1, -5) + Piece("ab", 5, -1) +
                            Piece("\xE2\x96\x81", 1, -7) + Bytes(2, Integer(3, 1));
  EXPECT_THAT(Make(model)->Encode("ab", false), ElementsAre(1, 2));
  EXPECT_EQ(Make(model)->Encode("abab b"), SentencePieceOracle(model).Encode("abab b"));
}

TEST(SentencePieceTest, UserDefinedPiecesJoinNoOther) {
  const std::string model = kUnknown + Piece("ab", 4) + Piece("abc", 1, -1) + Piece("c", 1, -2) +
                            Piece("\xE2\x96\x81", 1, -3) +
                            Piece(
                                "\xE2\x96\x81"
                                "ab",
                                1, -1) +
                            BpeSpec();
  EXPECT_THAT(Make(model)->Encode("abc", false), ElementsAre(1, 3));
  EXPECT_EQ(Make(model)->Encode("abc ab"), SentencePieceOracle(model).Encode("abc ab"));
}

TEST(SentencePieceTest, NestedUserDefinedPiecesOfAnyDepthAreMatched) {
  std::string model = kUnknown + Piece("\xE2\x96\x81", 1);
  for (int length = 1; length <= 200; ++length) model += Piece(std::string(length, 'a'), 4);
  const std::unique_ptr<Tokenizer> tokenizer = Make(model + BpeSpec());
  EXPECT_THAT(tokenizer->Encode(std::string(301, 'a'), false), ElementsAre(201, 102));
}

TEST(SentencePieceTest, ARewritingRuleThatPointsOutsideItsTableIsNoRule) {
  // Unit 0 leads to unit 0x61 ("a"), which has a leaf far away.
  std::string trie = Little(0) + std::string(4 * 0x60, '\0') + Little(0x61 | 1 << 8 | 0x1FFFFFu << 10);
  const std::string model = kUnknown + Piece("a", 1) + Piece("\xE2\x96\x81", 1) + BpeSpec();
  const std::unique_ptr<Tokenizer> tokenizer =
      Make(model + NormalizerSpec(Little(static_cast<uint32_t>(trie.size())) + trie + "x"));
  EXPECT_THAT(tokenizer->Encode("a", false), ElementsAre(1));
}

struct BadModel {
  const char* name;
  std::string bytes;
  const char* message;
};

const BadModel kBadModels[] = {
    {"empty", "", "has no pieces"},
    {"text", "this is no model at all", "is not a SentencePiece model or is damaged"},
    {"length_beyond_the_end", Bytes(1, Bytes(1, "a")).substr(0, 4), "malformed or cut short"},
    {"length_of_2_to_the_63", "\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F", "malformed or cut short"},
    {"endless_varint", std::string(40, '\xFF'), "malformed or cut short"},
    {"field_number_0", std::string(2, '\0'), "malformed or cut short"},
    {"group", "\x0B", "malformed or cut short"},
    {"broken_piece",
     Bytes(1,
           "\x0A\x05"
           "a"),
     "a piece is malformed or cut short"},
    {"no_unknown", Piece("a", 1) + BpeSpec(), "has no unknown piece"},
    {"two_unknown", kUnknown + Piece("b", 2), "piece 1 is a second unknown piece after piece 0"},
    {"empty_piece", kUnknown + Piece("", 1), "piece 1 is empty"},
    {"repeated_piece", kUnknown + Piece("a", 1) + Piece("a", 1), "piece 2 (\"a\") is also piece 1"},
    {"giant_piece", kUnknown + Piece(std::string(1025, 'a'), 1), "piece 1 has 1025 bytes, more than 1024"},
    {"invalid_text", kUnknown + Piece("\xFF", 1), "piece 1 (\"\\xff\") is not valid UTF-8"},
    {"unknown_type", kUnknown + Piece("a", 7), "piece 1 has unknown type 7"},
    {"nan_score", kUnknown + Piece("a", 1, __builtin_nanf("")), "piece 1 has a score that is not a finite number"},
    {"byte_piece_name", kUnknown + Piece("<0xGG>", 6), "not like \"<0x41>\""},
    {"bytes_missing", kUnknown + Piece("<0x00>", 6) + BpeSpec(Integer(35, 1)), "piece <0x01> is missing"},
    {"word_model", kUnknown + Bytes(2, Integer(3, 3)), "model_type is 3 (WORD), supported are"},
    {"character_model", kUnknown + Bytes(2, Integer(3, 4)), "model_type is 4 (CHAR), supported are"},
    {"suffix_model", kUnknown + BpeSpec(Integer(24, 1)), "treat_whitespace_as_suffix is true"},
    {"short_charsmap", kUnknown + NormalizerSpec("abc"), "precompiled_charsmap is damaged"},
    {"charsmap_size", kUnknown + NormalizerSpec(Little(400) + std::string(8, 'x')), "a trie of 400 bytes in 12"},
    {"charsmap_alignment", kUnknown + NormalizerSpec(Little(6) + std::string(8, 'x')), "a trie of 6 bytes in 12"},
};

TEST(SentencePieceTest, BadModelsAreRefusedWithTheReason) {
  for (const BadModel& bad : kBadModels) {
    SCOPED_TRACE(bad.name);
    const auto tokenizer = MakeSentencePieceTokenizer(bad.bytes);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(bad.message));
  }
}

TEST(SentencePieceTest, DamagedModelsAreRefusedOrWorkButNeverCrash) {
  std::mt19937 random(9);
  for (const ModelCase& c : kModels) {
    SCOPED_TRACE(c.name);
    TextMaker maker(10);
    int refused = 0;
    for (int i = 0; i < 150; ++i) {
      std::string model = ModelBytes(c);
      if (i % 3 == 0) {
        model.resize(random() % model.size());
      } else {
        // Rules lie at the end, pieces before them: damage both.
        for (int n = 0; n < 20; ++n) model[random() % model.size()] = static_cast<char>(random());
      }
      const auto tokenizer = MakeSentencePieceTokenizer(model);
      if (!tokenizer.ok()) {
        EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
        ++refused;
        continue;
      }
      for (int n = 0; n < 20; ++n) {
        for (const int32_t id : (*tokenizer)->Encode(maker.AnyBytes())) {
          ASSERT_GE(id, 0);
          ASSERT_LT(id, (*tokenizer)->vocabulary());
        }
      }
    }
    EXPECT_GT(refused, 0);
  }
}

class LoadTest : public testing::Test {
 protected:
  LoadTest()
      : folder_(std::filesystem::path(testing::TempDir()) /
                testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~LoadTest() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> Load(int32_t vocabulary) {
    return Tokenizer::Load(folder_.string(), vocabulary);
  }
  void ExpectRefused(int32_t vocabulary, const std::vector<std::string>& words,
                     absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    const auto tokenizer = Load(vocabulary);
    EXPECT_EQ(tokenizer.status().code(), code);
    for (const std::string& word : words) EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(word));
  }

  std::filesystem::path folder_;
};

TEST_F(LoadTest, ReadsASentencePieceModel) {
  const std::string& model = ModelBytes(kModels[0]);
  Write("tokenizer.model", model);
  Write("tokenizer.json", "{}");
  const auto tokenizer = Load(SentencePieceOracle(model).vocabulary());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->kind(), "sentencepiece");
  EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode("balo kenu")), "balo kenu");
}

TEST_F(LoadTest, AnEmptyFolderMeansBytes) {
  const auto tokenizer = Load(300);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->kind(), "bytes");
  EXPECT_EQ((*tokenizer)->vocabulary(), 300);
  const std::string text("a\0\xFF\xC3\xA9", 5);
  EXPECT_THAT((*tokenizer)->Encode(text), ElementsAre(97, 0, 255, 195, 169));
  EXPECT_EQ(Joined(**tokenizer, (*tokenizer)->Encode(text), true), text);
  EXPECT_EQ((*tokenizer)->Decode(std::vector<int32_t>{97, 255, 195, 169, 299, -1, 300}), "a\xEF\xBF\xBD\xC3\xA9");
}

TEST_F(LoadTest, VocabulariesFarFromTheNumberOfBytesAreNotBytes) {
  for (const int32_t vocabulary : {256, 1024}) EXPECT_TRUE(Load(vocabulary).ok()) << vocabulary;
  ExpectRefused(255, {folder_.string(), "255 is too small", "256", "put the model's tokenizer.model there"});
  for (const int32_t vocabulary : {1025, 32000}) {
    ExpectRefused(vocabulary, {folder_.string(), std::to_string(vocabulary) + " is too large", "256 to 1024",
                               "put the model's tokenizer.model there", "vocab.txt with a vocabulary.json"});
  }
  // Whoever put a file that cannot be read is told so, not that there is none.
  Write("tokenizer.json", "{}");
  ExpectRefused(32000, {"tokenizer.json: is a tokenizer format that is not supported", "as tokenizer.model"});
}

TEST_F(LoadTest, RefusesWithPathNumbersAndCure) {
  Write("tokenizer.json", "{}");
  ExpectRefused(300, {"tokenizer.json", "not supported", "as tokenizer.model"});
  Write("tokenizer.model", "");
  ExpectRefused(300, {"tokenizer.model", "no pieces"});
  Write("tokenizer.model", ModelBytes(kModels[0]).substr(0, 5000));
  ExpectRefused(300, {"tokenizer.model", "damaged"});
  Write("tokenizer.model", ModelBytes(kModels[0]));
  ExpectRefused(300, {"tokenizer.model", "pieces", "vocab_size 300"});
  std::filesystem::resize_file(folder_ / "tokenizer.model", (64 << 20) + 1);
  ExpectRefused(300, {"tokenizer.model", "67108865", "67108864"});
}

// An embedding may have some rows more than there are tokens; with many more, it is another model's.
TEST_F(LoadTest, AnEmbeddingMayBePadded) {
  Write("tokenizer.model", ModelBytes(kModels[0]));
  const int32_t pieces = (*MakeSentencePieceTokenizer(ModelBytes(kModels[0])))->vocabulary();
  for (const int32_t vocabulary : {pieces, pieces + 1, pieces + pieces / 16}) {
    const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(folder_.string(), vocabulary);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->vocabulary(), pieces);
    EXPECT_EQ((*tokenizer)->Bytes(vocabulary - 1 + (vocabulary == pieces), 0), "");
  }
  ExpectRefused(pieces - 1, {"tokenizer.model", "pieces"});
  ExpectRefused(pieces + pieces / 8, {"tokenizer.model", "pieces"});
}

TEST_F(LoadTest, RefusesWhatIsNoFileOrFolder) {
  std::filesystem::create_directory(folder_ / "tokenizer.model");
  ExpectRefused(300, {"tokenizer.model", "not a regular file"});
  std::filesystem::remove(folder_ / "tokenizer.model");
  std::filesystem::create_symlink(folder_ / "nowhere", folder_ / "tokenizer.model");
  ExpectRefused(300, {"tokenizer.model", "No such file"}, absl::StatusCode::kNotFound);
  folder_ /= "missing";
  ExpectRefused(300, {"missing", "not a folder"});
}

}  // namespace
}  // namespace palimpsest
