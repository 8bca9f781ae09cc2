#include "server/tokenizer/normalizer.h"

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/tokenizer/utf8.h"

namespace palimpsest {
namespace {

uint32_t LittleEndian32(const char* bytes) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= uint32_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  return value;
}

// The bits of a unit of a Darts-clone double array.
uint32_t LabelOf(uint32_t unit) { return unit & 0x800000FFu; }
uint32_t OffsetOf(uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); }
bool HasLeaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t ValueOf(uint32_t unit) { return unit & 0x7FFFFFFFu; }

}  // namespace

absl::StatusOr<CharsMap> CharsMap::Create(std::string_view blob) {
  CharsMap map;
  if (blob.empty()) return map;
  const uint64_t trie_bytes = blob.size() < 4 ? 0 : LittleEndian32(blob.data());
  if (trie_bytes == 0 || trie_bytes % 4 != 0 || trie_bytes > blob.size() - 4) {
    return absl::InvalidArgumentError(absl::StrCat("normalizer_spec.precompiled_charsmap is damaged: a trie of ",
                                                   trie_bytes, " bytes in ", blob.size()));
  }
  for (uint64_t i = 0; i < trie_bytes; i += 4) map.trie_.push_back(LittleEndian32(blob.data() + 4 + i));
  map.results_ = std::string(blob.substr(4 + trie_bytes));
  return map;
}

std::optional<CharsMap::Match> CharsMap::LongestMatch(std::string_view text) const {
  std::optional<Match> longest;
  if (trie_.empty()) return longest;
  size_t node = OffsetOf(trie_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    node ^= byte;
    if (node >= trie_.size() || LabelOf(trie_[node]) != byte) break;
    const uint32_t unit = trie_[node];
    node ^= OffsetOf(unit);
    if (!HasLeaf(unit)) continue;
    if (node >= trie_.size() || ValueOf(trie_[node]) >= results_.size()) break;
    const std::string_view result = std::string_view(results_).substr(ValueOf(trie_[node]));
    longest = {i + 1, result.substr(0, result.find('\0'))};
  }
  return longest;
}

absl::StatusOr<Normalizer> Normalizer::Create(const SentencePieceModel& model, PrefixIndex user_defined) {
  PALIMPSEST_ASSIGN_OR_RETURN(CharsMap charsmap, CharsMap::Create(model.charsmap));
  Normalizer normalizer;
  normalizer.charsmap_ = std::move(charsmap);
  normalizer.user_defined_ = std::move(user_defined);
  normalizer.space_ = model.escape_whitespaces ? kSpaceSymbol : " ";
  normalizer.add_dummy_prefix_ = model.add_dummy_prefix;
  normalizer.remove_extra_whitespaces_ = model.remove_extra_whitespaces;
  // A piece with U+2581 in it decodes to a space. Where bytes can be spelled out, the character itself is.
  normalizer.space_symbol_is_raw_ = model.byte_fallback;
  return normalizer;
}

Normalizer::Front Normalizer::FrontOfText(std::string_view text) const {
  const Utf8Part front = FrontOf(text);
  const size_t length = front.length;
  const std::string_view character = text.substr(0, length);
  if (front.kind != Utf8Part::Kind::kCharacter || (space_symbol_is_raw_ && character == kSpaceSymbol)) {
    return {length, true, character};
  }
  if (const size_t matched = user_defined_.LongestPrefix(text); matched > 0) {
    return {matched, false, text.substr(0, matched)};
  }
  if (const std::optional<CharsMap::Match> match = charsmap_.LongestMatch(text)) {
    return {match->length, false, match->result};
  }
  return {length, false, character};
}

Normalizer::Reader::Reader(const Normalizer& normalizer, std::string_view text, bool first)
    : normalizer_(normalizer), text_(text) {
  after_space_ = first && normalizer.remove_extra_whitespaces_;
  while (after_space_ && !text_.empty()) {
    const Front front = normalizer.FrontOfText(text_);
    if (front.raw || front.result != " ") break;
    text_.remove_prefix(front.length);
  }
  if (!text_.empty() && first && normalizer.add_dummy_prefix_) spaces_ = 1;
}

Normalizer::Reader::Next Normalizer::Reader::Read(size_t enough, std::string& characters) {
  raw_.clear();
  while (!text_.empty()) {
    if (raw_.empty() && characters.size() >= enough) return Next::kText;
    Front front = normalizer_.FrontOfText(text_);
    if (!raw_.empty() && !front.raw) return Next::kRaw;
    text_.remove_prefix(front.length);
    if (front.raw) {
      AppendSpaces(characters);
      raw_ += front.result;
      after_space_ = false;
      continue;
    }
    while (after_space_ && front.result.starts_with(' ')) front.result.remove_prefix(1);
    if (front.result.empty()) continue;
    for (size_t begin = 0; begin < front.result.size();) {
      const size_t space = std::min(front.result.find(' ', begin), front.result.size());
      Append(front.result.substr(begin, space - begin), characters);
      if (space < front.result.size()) ++spaces_;
      begin = space + 1;
    }
    after_space_ = normalizer_.remove_extra_whitespaces_ && front.result.ends_with(' ');
  }
  if (!raw_.empty()) return Next::kRaw;
  if (!normalizer_.remove_extra_whitespaces_) AppendSpaces(characters);
  spaces_ = 0;
  return Next::kEnd;
}

void Normalizer::Reader::Append(std::string_view bytes, std::string& characters) {
  size_t spaces = 0;
  while (bytes.ends_with(normalizer_.space_)) {
    bytes.remove_suffix(normalizer_.space_.size());
    ++spaces;
  }
  if (!bytes.empty()) {
    AppendSpaces(characters);
    characters += bytes;
  }
  spaces_ += spaces;
}

void Normalizer::Reader::AppendSpaces(std::string& characters) {
  for (; spaces_ > 0; --spaces_) characters += normalizer_.space_;
}

}  // namespace palimpsest
