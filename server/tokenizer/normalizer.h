// The first half of SentencePiece's encoding: rewrites a text by the model's rules and marks its spaces.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/tokenizer/prefix_index.h"
#include "server/tokenizer/sentencepiece_model.h"

namespace palimpsest {

inline constexpr char kSpaceSymbol[] = "\xE2\x96\x81";  // U+2581, what a space is inside a piece

// The rewriting rules of a model: a map from strings to strings, of which the longest that fits applies. It is a double
// array of Darts-clone as the file has it. Each step is checked against its end, so any bytes will do.
class CharsMap {
 public:
  // Empty: no rules. INVALID_ARGUMENT: `blob` is not laid out as (uint32 trie bytes, trie, results).
  static absl::StatusOr<CharsMap> Create(std::string_view blob);

  struct Match {
    size_t length;  // of what it replaces
    std::string_view result;
  };
  // The longest rule for the front of `text`.
  std::optional<Match> LongestMatch(std::string_view text) const;

 private:
  std::vector<uint32_t> trie_;
  std::string results_;  // each ends with a zero byte
};

// Read-only after construction; threads may share it.
class Normalizer {
 public:
  // `user_defined` holds the pieces that no rule may touch.
  static absl::StatusOr<Normalizer> Create(const SentencePieceModel& model, PrefixIndex user_defined);

  // Normalises one text from front to end, as far as it is asked to.
  class Reader {
   public:
    // What comes next. kText: characters to be cut into pieces, of which more follow. kRaw: bytes that no piece can
    // stand for, not valid UTF-8 or U+2581 itself; characters before and after them do not stand side by side.
    enum class Next : uint8_t { kText, kRaw, kEnd };

    // `first`: nothing comes before the text. Both must live as long.
    Reader(const Normalizer& normalizer, std::string_view text, bool first);

    // Appends characters to `characters` until it has `enough` bytes (kText), or a raw part comes, which raw() tells,
    // or the text ends.
    Next Read(size_t enough, std::string& characters);
    const std::string& raw() const { return raw_; }

   private:
    void Append(std::string_view bytes, std::string& characters);
    void AppendSpaces(std::string& characters);

    const Normalizer& normalizer_;
    std::string_view text_;
    bool after_space_ = false;
    size_t spaces_ = 0;  // that have been read, and are dropped if the text ends here
    std::string raw_;
  };

 private:
  struct Front {
    size_t length;  // bytes of the text taken
    bool raw;
    std::string_view result;  // what they become
  };
  Front FrontOfText(std::string_view text) const;

  CharsMap charsmap_;
  PrefixIndex user_defined_;
  std::string_view space_;  // how a space is written
  bool add_dummy_prefix_ = false;
  bool remove_extra_whitespaces_ = false;
  bool space_symbol_is_raw_ = false;
};

}  // namespace palimpsest
