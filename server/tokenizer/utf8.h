// Well-formed UTF-8, as Unicode 15 defines it (section 3.9, table 3-7).
#pragma once

#include <cstdint>
#include <string_view>

namespace palimpsest {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// What stands at the front of a text.
struct Utf8Part {
  enum class Kind : uint8_t {
    kCharacter,  // a whole character
    kInvalid,    // a maximal part that no following bytes can complete: one U+FFFD stands for it
    kCut,        // the whole rest, which following bytes could complete to a character
  };
  Kind kind;
  int length;  // 1 to 4 bytes
};

// `text` is not empty.
Utf8Part FrontOf(std::string_view text);

// The code point of the character that is all of `character`.
char32_t CodePointOf(std::string_view character);

bool IsValidUtf8(std::string_view text);

}  // namespace palimpsest
