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

  struct Part {
    bool raw;           // bytes that no piece can stand for: not valid UTF-8, or U+2581 itself
    std::string bytes;  // else: characters to be cut into pieces
  };
  // `first`: nothing comes before the text.
  std::vector<Part> Normalize(std::string_view text, bool first) const;

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
