#include "server/engine/reply_text.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace palimpsest {
namespace {

struct Outcome {
  std::string text;
  std::string stop;
  bool operator==(const Outcome&) const = default;
};

// Pushes the pieces until a stop string is found, and releases what is held at the end.
Outcome Reply(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  ReplyText reply(stops);
  Outcome outcome;
  for (const std::string& bytes : pieces) {
    const ReplyText::Piece piece = reply.Push(bytes);
    outcome.text += piece.text;
    if (piece.stop >= 0) {
      outcome.stop = stops[piece.stop];
      return outcome;
    }
  }
  outcome.text += reply.Release();
  return outcome;
}

// The definition: the shortest beginning of the text that ends with a stop string, without the longest such.
Outcome Truth(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string longest;
    for (const std::string& stop : stops) {
      if (text.substr(0, end).ends_with(stop) && stop.size() > longest.size()) longest = stop;
    }
    if (!longest.empty()) return {text.substr(0, end - longest.size()), longest};
  }
  return {text, ""};
}

std::ostream& operator<<(std::ostream& out, const Outcome& outcome) {
  return out << '"' << outcome.text << "\" stopped by \"" << outcome.stop << '"';
}

TEST(ReplyText, SendsTextAtOnceWithoutStopStrings) {
  ReplyText reply({});
  EXPECT_EQ(reply.Push("Once").text, "Once");
  EXPECT_EQ(reply.Push("").text, "");
  EXPECT_EQ(reply.Push(" upon").text, " upon");
}

TEST(ReplyText, HoldsBackOnlyWhatMayBecomeAStopString) {
  ReplyText reply({"END", "\n\n"});
  EXPECT_EQ(reply.Push("the E").text, "the ");
  EXPECT_EQ(reply.Push("N").text, "");
  EXPECT_EQ(reply.Push("N\n").text, "ENN");
  EXPECT_EQ(reply.Push("x").text, "\nx");
  const ReplyText::Piece last = reply.Push("yE");
  EXPECT_EQ(last.text, "y");
  EXPECT_EQ(last.stop, -1);
  const ReplyText::Piece stopped = reply.Push("ND and more");
  EXPECT_EQ(stopped.text, "");
  EXPECT_EQ(stopped.stop, 0);
  EXPECT_EQ(reply.Release(), "");
}

TEST(ReplyText, FindsStopStringsAcrossTokenBorders) {
  const struct {
    std::vector<std::string> stops;
    std::vector<std::string> pieces;
    Outcome expected;
  } kRows[] = {
      {{"stop"}, {"a st", "op b"}, {"a ", "stop"}},
      {{"stop"}, {"s", "t", "o", "p"}, {"", "stop"}},
      {{"stop"}, {"sto", "sto", "stop"}, {"stosto", "stop"}},
      {{"stop"}, {"ends with sto"}, {"ends with sto", ""}},
      {{"aab"}, {"aa", "a", "b"}, {"a", "aab"}},
      {{"abc", "b"}, {"abc"}, {"a", "b"}},
      {{"b", "ab"}, {"xab"}, {"x", "ab"}},
      {{"xabc", "ab"}, {"x", "a", "b"}, {"x", "ab"}},
      {{"é"}, {"caf\xC3", "\xA9!"}, {"caf", "é"}},
      {{"é"}, {"caf\xC3", "\xA8!"}, {"cafè!", ""}},
  };
  for (const auto& row : kRows) EXPECT_EQ(Reply(row.stops, row.pieces), row.expected);
}

TEST(ReplyText, EndsAtTheSamePlaceHoweverTheTextIsCut) {
  std::mt19937 random(3);
  for (int round = 0; round < 20000; ++round) {
    const auto word = [&](size_t longest) {
      std::string made;
      for (size_t n = 1 + random() % longest; n > 0; --n) made += static_cast<char>('a' + random() % 2);
      return made;
    };
    std::vector<std::string> stops;
    for (size_t n = random() % 4; n > 0; --n) stops.push_back(word(6));
    std::vector<std::string> pieces;
    std::string text;
    for (size_t n = random() % 12; n > 0; --n) text += pieces.emplace_back(word(3));
    ASSERT_EQ(Reply(stops, pieces), Truth(stops, text)) << text;
  }
}

TEST(ReplyText, SendsWholeCharactersOnly) {
  ReplyText reply({});
  EXPECT_EQ(reply.Push("\xE2\x82").text, "");
  EXPECT_EQ(reply.undecoded(), "\xE2\x82");
  EXPECT_EQ(reply.Push("\xAC\xF0").text, "€");
  EXPECT_EQ(reply.undecoded(), "\xF0");
  EXPECT_EQ(reply.Release(), "");
  EXPECT_EQ(reply.undecoded(), "\xF0");
  EXPECT_EQ(reply.Flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(reply.undecoded(), "");
}

TEST(ReplyText, GoesOnFromUndecodedBytes) {
  ReplyText reply({"€"}, "\xE2\x82");
  const ReplyText::Piece piece = reply.Push("\xAC");
  EXPECT_EQ(piece.text, "");
  EXPECT_EQ(piece.stop, 0);
}

// A text and stop strings made to be as costly as can be: a search that starts anew at each byte needs minutes here.
TEST(ReplyText, CostsTheSameForAnyStopString) {
  std::vector<std::string> stops;
  for (int i = 0; i < 16; ++i) stops.push_back(std::string(254, 'a') + static_cast<char>('b' + i));
  ReplyText reply(stops);
  std::string text;
  for (int i = 0; i < 200'000; ++i) text += reply.Push("a").text;
  text += reply.Release();
  EXPECT_EQ(text, std::string(200'000, 'a'));
}

}  // namespace
}  // namespace palimpsest
