#include "server/tokenizer/utf8.h"

#include <cstdint>
#include <string>
#include <string_view>

#include "server/tokenizer/tokenizer.h"

namespace palimpsest {
namespace {

// What a lead byte asks for: the length of its character and the range of the second byte. Later bytes are 80..BF.
struct Lead {
  int length;  // 0: begins no character
  uint8_t second_min = 0x80;
  uint8_t second_max = 0xBF;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};  // a continuation, or a longer form of ASCII
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0};
  if (byte == 0xED) return {3, 0x80, 0x9F};  // no surrogates
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};  // no more than U+10FFFF
  return {0};
}

}  // namespace

Utf8Part FrontOf(std::string_view text) {
  const Lead lead = LeadOf(static_cast<uint8_t>(text[0]));
  if (lead.length == 0) return {Utf8Part::Kind::kInvalid, 1};
  for (int i = 1; i < lead.length; ++i) {
    if (i == static_cast<int>(text.size())) return {Utf8Part::Kind::kCut, i};
    const auto byte = static_cast<uint8_t>(text[i]);
    const bool fits = i == 1 ? lead.second_min <= byte && byte <= lead.second_max : (byte & 0xC0) == 0x80;
    if (!fits) return {Utf8Part::Kind::kInvalid, i};
  }
  return {Utf8Part::Kind::kCharacter, lead.length};
}

char32_t CodePointOf(std::string_view character) {
  constexpr uint8_t kLeadBits[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
  char32_t code_point = static_cast<uint8_t>(character[0]) & kLeadBits[character.size()];
  for (const char byte : character.substr(1)) code_point = code_point << 6 | (static_cast<uint8_t>(byte) & 0x3F);
  return code_point;
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Part front = FrontOf(text);
    if (front.kind != Utf8Part::Kind::kCharacter) return false;
    text.remove_prefix(front.length);
  }
  return true;
}

std::string Utf8Stream::Push(std::string_view bytes) {
  pending_.append(bytes);
  std::string whole;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Part front = FrontOf(rest);
    if (front.kind == Utf8Part::Kind::kCut) break;
    whole += front.kind == Utf8Part::Kind::kCharacter ? rest.substr(0, front.length) : kReplacementCharacter;
    rest.remove_prefix(front.length);
  }
  pending_.erase(0, pending_.size() - rest.size());
  return whole;
}

std::string Utf8Stream::Flush() {
  std::string whole = Push("");
  if (!pending_.empty()) whole += kReplacementCharacter;
  pending_.clear();
  return whole;
}

}  // namespace palimpsest
