#include "server/tokenizer/vocabulary.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/quote.h"
#include "base/status_macros.h"
#include "server/tokenizer/utf8.h"

namespace palimpsest {
namespace {

using Kind = VocabularyRules::Kind;

constexpr int32_t kNone = -1;

absl::Status Refuse(const std::string& why) { return absl::InvalidArgumentError(why); }

bool IsPythonSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// Bytes of the white space that `text`, which is not empty, begins with: one character or none.
size_t SpaceLength(std::string_view text) {
  const auto byte = static_cast<uint8_t>(text[0]);
  if (byte < 0x80) return IsPythonSpace(byte) ? 1 : 0;
  const Utf8Part part = FrontOf(text);
  const bool is_space =
      part.kind == Utf8Part::Kind::kCharacter && IsPythonSpace(CodePointOf(text.substr(0, part.length)));
  return is_space ? part.length : 0;
}

// Bytes of the character, or of what is none, that `text` begins with.
size_t FrontLength(std::string_view text) {
  return static_cast<uint8_t>(text[0]) < 0x80 ? 1 : static_cast<size_t>(FrontOf(text).length);
}

// The symbols by id, and the ids by symbol. Not to be copied: it holds views of itself.
class Symbols {
 public:
  Symbols() = default;
  Symbols(const Symbols&) = delete;
  Symbols& operator=(const Symbols&) = delete;

  absl::Status Read(std::string_view bytes) {
    bytes_ = std::string(bytes);
    if (!bytes_.empty() && bytes_.back() != '\n') bytes_ += '\n';
    const auto lines = std::ranges::count(bytes_, '\n');
    if (lines == 0) return Refuse("holds no symbols");
    if (lines > std::numeric_limits<int32_t>::max()) return Refuse("holds more symbols than there are ids");
    symbols_.reserve(static_cast<size_t>(lines));
    ids_.reserve(static_cast<size_t>(lines));
    for (std::string_view rest = bytes_; !rest.empty();) {
      const std::string_view symbol = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(symbol.size() + 1);
      const int32_t line = size() + 1;
      if (symbol.empty()) return Refuse(absl::StrCat("line ", line, " is empty; each line holds one symbol"));
      if (!IsValidUtf8(symbol)) return Refuse(absl::StrCat("line ", line, " is not valid UTF-8: the file is damaged"));
      const auto [other, is_new] = ids_.emplace(symbol, size());
      if (!is_new) {
        return Refuse(absl::StrCat("line ", line, " holds ", DoubleQuotedUtf8(symbol), ", as line ", other->second + 1,
                                   " does; each symbol is there once"));
      }
      symbols_.push_back(symbol);
    }
    return absl::OkStatus();
  }

  int32_t size() const { return static_cast<int32_t>(symbols_.size()); }
  std::string_view symbol(int32_t id) const { return symbols_[id]; }
  // kNone: it is not there.
  int32_t Find(std::string_view symbol) const {
    const auto it = ids_.find(symbol);
    return it == ids_.end() ? kNone : it->second;
  }

 private:
  std::string bytes_;
  std::vector<std::string_view> symbols_;
  absl::flat_hash_map<std::string_view, int32_t> ids_;
};

class VocabularyTokenizer : public Tokenizer {
 public:
  int32_t vocabulary() const override { return symbols_.size(); }

 protected:
  int32_t Find(std::string_view symbol) const override { return symbols_.Find(symbol); }
  absl::Status Read(std::string_view symbols, const VocabularyRules& rules) {
    PALIMPSEST_RETURN_IF_ERROR(symbols_.Read(symbols));
    PALIMPSEST_RETURN_IF_ERROR(FindSpecial("unk", rules.unk, &unk_));
    return FindSpecial("eos", rules.eos, &eos_);
  }

  bool Has(int32_t id) const { return id >= 0 && id < vocabulary(); }
  // Appends what stands for something that the vocabulary does not have.
  void AppendUnknown(std::vector<int32_t>& ids) const {
    if (unk_ != kNone) ids.push_back(unk_);
  }

  Symbols symbols_;
  int32_t unk_ = kNone;
  int32_t eos_ = kNone;

 private:
  absl::Status FindSpecial(const char* key, const std::optional<std::string>& symbol, int32_t* id) {
    if (!symbol.has_value()) return absl::OkStatus();
    *id = symbols_.Find(*symbol);
    if (*id != kNone) return absl::OkStatus();
    return Refuse(absl::StrCat("does not hold ", DoubleQuotedUtf8(*symbol), ", which vocabulary.json names as ", key,
                               "; correct the name there"));
  }
};

class WordTokenizer final : public VocabularyTokenizer {
 public:
  absl::Status Read(std::string_view symbols, const VocabularyRules& rules) {
    PALIMPSEST_RETURN_IF_ERROR(VocabularyTokenizer::Read(symbols, rules));
    size_t bytes = 0;
    for (int32_t id = 0; id < vocabulary(); ++id) {
      const std::string_view word = symbols_.symbol(id);
      for (size_t at = 0; at < word.size(); at += FrontLength(word.substr(at))) {
        if (SpaceLength(word.substr(at)) == 0) continue;
        return Refuse(absl::StrCat("line ", id + 1, " holds white space: ", DoubleQuotedUtf8(word),
                                   "; each line is one word, and ends with \\n alone"));
      }
      bytes += 1 + word.size();
    }
    spaced_.reserve(bytes);
    begin_.reserve(static_cast<size_t>(vocabulary()) + 1);
    for (int32_t id = 0; id < vocabulary(); ++id) {
      begin_.push_back(spaced_.size());
      spaced_ += ' ';
      spaced_ += symbols_.symbol(id);
    }
    begin_.push_back(spaced_.size());
    return absl::OkStatus();
  }

  std::string_view kind() const override { return "words"; }

  std::string_view Bytes(int32_t id, int32_t previous) const override {
    if (!Has(id)) return {};
    if (id == eos_) return "\n";
    std::string_view bytes = std::string_view(spaced_).substr(begin_[id], begin_[id + 1] - begin_[id]);
    if (BeginsAText(previous) || (previous == eos_ && eos_ != kNone)) bytes.remove_prefix(1);
    return bytes;
  }

 protected:
  void Append(std::string_view text, bool /*first*/, size_t most, std::vector<int32_t>& ids,
              int64_t& unknown) const override {
    size_t at = 0;
    while (at < text.size() && ids.size() <= most) {
      if (const size_t space = SpaceLength(text.substr(at)); space > 0) {
        const bool begins_pair = text[at] == '\r' && at + 1 < text.size() && text[at + 1] == '\n';
        if (eos_ != kNone && (text[at] == '\n' || (text[at] == '\r' && !begins_pair))) ids.push_back(eos_);
        at += space;
        continue;
      }
      const size_t begin = at;
      while (at < text.size() && SpaceLength(text.substr(at)) == 0) at += FrontLength(text.substr(at));
      const int32_t id = symbols_.Find(text.substr(begin, at - begin));
      if (id == kNone) {
        ++unknown;
        AppendUnknown(ids);
      } else {
        ids.push_back(id);
      }
    }
  }

 private:
  std::string spaced_;  // all words in order, each with a space in front
  std::vector<size_t> begin_;
};

class CharacterTokenizer final : public VocabularyTokenizer {
 public:
  absl::Status Read(std::string_view symbols, const VocabularyRules& rules) {
    PALIMPSEST_RETURN_IF_ERROR(VocabularyTokenizer::Read(symbols, rules));
    id_of_.fill(kNone);
    bytes_.resize(static_cast<size_t>(vocabulary()));
    int found = 0;
    for (int byte = 0; byte < 256; ++byte) {
      id_of_[byte] = symbols_.Find(absl::StrCat(byte));
      if (id_of_[byte] == kNone) continue;
      bytes_[id_of_[byte]] = std::string(1, static_cast<char>(byte));
      ++found;
    }
    for (int32_t id = 0; id < vocabulary(); ++id) {
      if (!bytes_[id].empty() || id == unk_ || id == eos_) continue;
      return Refuse(absl::StrCat("line ", id + 1, " holds ", DoubleQuotedUtf8(symbols_.symbol(id)),
                                 ", which is no decimal value of a byte (0 to 255); for words, say so in "
                                 "vocabulary.json: \"kind\": \"word\""));
    }
    if (found == 0) return Refuse("holds no byte's value");
    if (unk_ != kNone && bytes_[unk_].empty()) bytes_[unk_] = symbols_.symbol(unk_);
    if (eos_ != kNone && bytes_[eos_].empty()) bytes_[eos_] = "\n";
    if (id_of_['\n'] == kNone) id_of_['\n'] = eos_;
    return absl::OkStatus();
  }

  std::string_view kind() const override { return "characters"; }

  std::string_view Bytes(int32_t id, int32_t /*previous*/) const override {
    return Has(id) ? std::string_view(bytes_[id]) : std::string_view();
  }

 protected:
  void Append(std::string_view text, bool /*first*/, size_t most, std::vector<int32_t>& ids,
              int64_t& unknown) const override {
    for (size_t i = 0; i < text.size() && ids.size() <= most; ++i) {
      const int32_t id = id_of_[static_cast<uint8_t>(text[i])];
      if (id == kNone) {
        ++unknown;
        AppendUnknown(ids);
      } else {
        ids.push_back(id);
      }
    }
  }

 private:
  std::array<int32_t, 256> id_of_;
  std::vector<std::string> bytes_;  // by id
};

template <class T>
absl::StatusOr<std::unique_ptr<Tokenizer>> Make(std::string_view symbols, const VocabularyRules& rules) {
  auto tokenizer = std::make_unique<T>();
  PALIMPSEST_RETURN_IF_ERROR(tokenizer->Read(symbols, rules));
  return tokenizer;
}

}  // namespace

absl::StatusOr<VocabularyRules> ParseVocabularyRules(std::string_view bytes) {
  const nlohmann::json json = nlohmann::json::parse(bytes, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Refuse("is no JSON object");
  VocabularyRules rules;
  bool has_kind = false;
  bool lowercase = false;
  for (const auto& [key, value] : json.items()) {
    if (key == "kind") {
      if (value != "word" && value != "character") {
        return Refuse("kind is none of \"word\" and \"character\", which are supported");
      }
      rules.kind = value == "word" ? Kind::kWord : Kind::kCharacter;
      has_kind = true;
    } else if (key == "unk" || key == "eos") {
      if (!value.is_null() && (!value.is_string() || value.get_ref<const std::string&>().empty())) {
        return Refuse(absl::StrCat(key, " is neither a symbol of vocab.txt nor null"));
      }
      if (value.is_string()) (key == "unk" ? rules.unk : rules.eos) = value.get<std::string>();
    } else if (key == "lowercase") {
      if (!value.is_boolean()) return Refuse("lowercase is neither true nor false");
      lowercase = value.get<bool>();
    } else {
      return Refuse(absl::StrCat("has the key ", DoubleQuotedUtf8(key), "; known are kind, unk, eos and lowercase"));
    }
  }
  if (!has_kind) return Refuse("has no \"kind\"; it is \"word\" or \"character\"");
  // Of the decimal digits that are the symbols of characters it changes nothing.
  if (rules.kind == Kind::kWord && lowercase) {
    return Refuse("lowercase is true, but only vocabularies of words that keep the case are supported");
  }
  if (rules.kind == Kind::kWord && !rules.unk.has_value()) {
    return Refuse(
        "has no \"unk\", the symbol for words that the vocabulary does not have; name one of vocab.txt, most often "
        "\"<unk>\"");
  }
  return rules;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeVocabularyTokenizer(std::string_view symbols,
                                                                   const VocabularyRules& rules) {
  return rules.kind == Kind::kWord ? Make<WordTokenizer>(symbols, rules) : Make<CharacterTokenizer>(symbols, rules);
}

}  // namespace palimpsest
