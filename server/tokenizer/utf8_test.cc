#include "server/tokenizer/utf8.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <unordered_set>
#include <vector>

#include "server/tokenizer/tokenizer.h"

namespace palimpsest {
namespace {

std::string Encoded(char32_t c) {
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
  if (c < 0x10000) {
    return {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3F)),
            static_cast<char>(0x80 | (c & 0x3F))};
  }
  return {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3F)),
          static_cast<char>(0x80 | (c >> 6 & 0x3F)), static_cast<char>(0x80 | (c & 0x3F))};
}

// By enumeration: every character there is, and every way to begin one.
struct Characters {
  Characters() {
    for (char32_t c = 0; c <= 0x10FFFF; ++c) {
      if (0xD800 <= c && c <= 0xDFFF) continue;
      const std::string bytes = Encoded(c);
      whole.insert(bytes);
      for (size_t length = 1; length < bytes.size(); ++length) begun.insert(bytes.substr(0, length));
    }
  }
  std::unordered_set<std::string> whole;
  std::unordered_set<std::string> begun;
};

const Characters& AllCharacters() {
  static const auto* const kCharacters = new Characters();
  return *kCharacters;
}

// Replaces by the definition: at each place the character, or U+FFFD for the longest beginning of one, or for one byte.
std::string DecodedByDefinition(const std::string& bytes) {
  const Characters& characters = AllCharacters();
  std::string text;
  for (size_t at = 0; at < bytes.size();) {
    size_t length = 1;
    while (length < 4 && characters.begun.contains(bytes.substr(at, length)) && at + length < bytes.size() &&
           (characters.begun.contains(bytes.substr(at, length + 1)) ||
            characters.whole.contains(bytes.substr(at, length + 1)))) {
      ++length;
    }
    const std::string part = bytes.substr(at, length);
    text += characters.whole.contains(part) ? part : "\xEF\xBF\xBD";
    at += length;
  }
  return text;
}

std::string DecodedInPieces(const std::string& bytes, const std::vector<size_t>& cuts) {
  Utf8Stream stream;
  std::string text;
  size_t begin = 0;
  for (const size_t cut : cuts) {
    const std::string piece = stream.Push(bytes.substr(begin, cut - begin));
    EXPECT_TRUE(IsValidUtf8(piece));
    EXPECT_LE(stream.pending().size(), 3);
    text += piece;
    begin = cut;
  }
  text += stream.Push(bytes.substr(begin));
  text += stream.Flush();
  EXPECT_EQ(stream.pending(), "");
  return text;
}

TEST(Utf8StreamTest, ReplacesAsTheUnicodeStandardShows) {
  // Unicode 15, tables 3-8 to 3-11.
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(DecodedInPieces("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", {}), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(DecodedInPieces("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", {}), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(DecodedInPieces("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", {}), r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(DecodedInPieces("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", {}), r + r + r + r + "A");
}

TEST(Utf8StreamTest, EveryCharacterPassesThroughByteByByte) {
  for (const std::string& character : AllCharacters().whole) {
    Utf8Stream stream;
    std::string text;
    for (const char byte : character) text += stream.Push({&byte, 1});
    ASSERT_EQ(text, character);
    ASSERT_EQ(stream.pending(), "");
    ASSERT_EQ(Encoded(CodePointOf(character)), character);
  }
}

TEST(Utf8StreamTest, AnySplitOfAnyBytesDecodesToTheSameText) {
  // Bytes at the borders of the ranges, where the cases are, and some of all.
  constexpr uint8_t kBorders[] = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF,
                                  0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xF8, 0xFF};
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes(random() % 13, '\0');
    for (char& byte : bytes) {
      byte = static_cast<char>(random() % 2 == 0 ? kBorders[random() % std::size(kBorders)] : random());
    }
    const std::string expected = DecodedByDefinition(bytes);
    ASSERT_TRUE(IsValidUtf8(expected));
    ASSERT_EQ(DecodedInPieces(bytes, {}), expected);
    std::vector<size_t> every;
    for (size_t cut = 0; cut < bytes.size(); ++cut) {
      ASSERT_EQ(DecodedInPieces(bytes, {cut}), expected);
      every.push_back(cut);
    }
    ASSERT_EQ(DecodedInPieces(bytes, every), expected);
    ASSERT_EQ(IsValidUtf8(bytes), bytes == expected);
  }
}

TEST(Utf8StreamTest, GoesOnFromWhatAnotherHeldBack) {
  Utf8Stream first;
  EXPECT_EQ(first.Push("a\xF0\x9F"), "a");
  EXPECT_EQ(first.pending(), "\xF0\x9F");
  Utf8Stream second(first.pending());
  EXPECT_EQ(second.Push("\x98\x80!"), "\xF0\x9F\x98\x80!");
  EXPECT_EQ(second.Flush(), "");
}

}  // namespace
}  // namespace palimpsest
