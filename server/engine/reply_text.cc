#include "server/engine/reply_text.h"

#include <algorithm>
#include <utility>

namespace palimpsest {

ReplyText::Matcher::Matcher(std::string stop_string)
    : pattern(std::move(stop_string)), fallback(pattern.size() + 1, 0) {
  for (size_t i = 1, length = 0; i < pattern.size(); ++i) {
    while (length > 0 && pattern[i] != pattern[length]) length = fallback[length];
    if (pattern[i] == pattern[length]) ++length;
    fallback[i + 1] = static_cast<int32_t>(length);
  }
}

bool ReplyText::Matcher::Step(char byte) {
  while (matched > 0 && pattern[matched] != byte) matched = fallback[matched];
  if (pattern[matched] == byte) ++matched;
  return matched == static_cast<int32_t>(pattern.size());
}

ReplyText::ReplyText(std::vector<std::string> stop_strings, std::string undecoded) : characters_(std::move(undecoded)) {
  matchers_.reserve(stop_strings.size());
  for (std::string& stop_string : stop_strings) matchers_.emplace_back(std::move(stop_string));
}

ReplyText::Piece ReplyText::Push(std::string_view bytes) {
  Piece piece{.text = characters_.Push(bytes)};
  if (matchers_.empty()) return piece;
  const size_t seen = held_.size();
  held_ += piece.text;
  for (size_t i = seen; i < held_.size(); ++i) {
    for (size_t m = 0; m < matchers_.size(); ++m) {
      if (!matchers_[m].Step(held_[i])) continue;
      if (piece.stop < 0 || matchers_[m].pattern.size() > matchers_[piece.stop].pattern.size()) {
        piece.stop = static_cast<int32_t>(m);
      }
    }
    if (piece.stop < 0) continue;
    piece.text = held_.substr(0, i + 1 - matchers_[piece.stop].pattern.size());
    held_.clear();
    return piece;
  }
  int32_t longest = 0;
  for (const Matcher& matcher : matchers_) longest = std::max(longest, matcher.matched);
  piece.text = held_.substr(0, held_.size() - longest);
  held_.erase(0, held_.size() - longest);
  return piece;
}

std::string ReplyText::Release() { return std::exchange(held_, {}); }

std::string ReplyText::Flush() { return Release() + characters_.Flush(); }

}  // namespace palimpsest
