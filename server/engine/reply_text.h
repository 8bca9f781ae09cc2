// The text of a reply as its tokens come: whole characters, up to the first stop string.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "server/tokenizer/tokenizer.h"

namespace palimpsest {

// Holds back what may yet become part of a character or of a stop string. The stop string that ends the reply is the
// one whose last byte comes first (of several, the longest), so where the text ends does not depend on how it was cut
// into tokens. Each byte costs a fixed amount of work per stop string. Not thread-safe.
class ReplyText {
 public:
  // `stop_strings` are valid UTF-8 and not empty. `undecoded`: bytes that the text before this reply ends with, the
  // beginning of a character.
  explicit ReplyText(std::vector<std::string> stop_strings, std::string undecoded = "");

  struct Piece {
    std::string text;
    int32_t stop = -1;  // index of the stop string that the reply now contains; nothing may be pushed after it
  };
  // Takes the bytes of the next token and returns the text that can be sent now.
  Piece Push(std::string_view bytes);
  // What is held back as the beginning of a stop string, when no more tokens follow. Undecoded bytes stay.
  std::string Release();
  // As Release, with undecoded bytes turned into U+FFFD.
  std::string Flush();
  // The beginning of a character that the text ends with; at most 3 bytes.
  const std::string& undecoded() const { return characters_.pending(); }

 private:
  // Knuth-Morris-Pratt: how much of the stop string the text ends with.
  struct Matcher {
    std::string pattern;
    std::vector<int32_t> fallback;  // of each prefix, the length of its longest proper suffix that is a prefix too
    int32_t matched = 0;

    explicit Matcher(std::string stop_string);
    // True: the text now ends with the pattern.
    bool Step(char byte);
  };

  Utf8Stream characters_;
  std::vector<Matcher> matchers_;
  std::string held_;
};

}  // namespace palimpsest
