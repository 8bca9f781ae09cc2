// Text to ids and back, byte-exact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace palimpsest {

// Thread-safe: const after construction.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Loads what the folder holds: `tokenizer.model` (SentencePiece BPE or unigram); or `vocabulary.json` and `vocab.txt`
  // (words or characters, see vocabulary.h); or none of them and a vocabulary of 256 to 1024 (bytes: id = byte).
  // INVALID_ARGUMENT, with the path and the cure: a file is damaged, or has another number of pieces than `vocabulary`,
  // or the folder holds two of these, or only formats that are not supported (named), or none although the vocabulary
  // is too small or too large for bytes; or tokenizer_config.json (tokenizer_rules.h) asks for what is not supported.
  // What ReadFile (base/file.h) says of a file that cannot be read. `bos_token_id` is that of config.json, -1: none; it
  // is asked only for bytes, which have no piece that tokenizer_config.json could name.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& folder, int32_t vocabulary,
                                                         int32_t bos_token_id = -1);

  // "sentencepiece", "bytes", "words" or "characters".
  virtual std::string_view kind() const = 0;
  virtual int32_t vocabulary() const = 0;
  // The token that begins a text, where the checkpoint's tokenizer_config.json says that one does; else -1.
  int32_t bos_token() const { return bos_; }

  static constexpr int64_t kAllTokens = std::numeric_limits<int64_t>::max();
  // Any bytes in: what is not valid UTF-8 is encoded byte by byte where the vocabulary can, else as the unknown token.
  // `first` is true when nothing comes before the text: then bos_token() comes in front, if there is one, and a
  // SentencePiece model may put a space there (its dummy prefix), which it must not do in the middle of a text that
  // comes in pieces. `unknown`, if given, is set to how often the text has something that the vocabulary does not; each
  // became the unknown token, or nothing where there is no such token.
  //
  // A text of more than `max_tokens` is not read to its end: then more than so many ids come back, and nothing but that
  // is to be believed of them. Takes time in proportion to the length of what is read, or a logarithm more. That is
  // what `max_tokens` take and some thousand bytes, unless SentencePiece finds no place where a text may be cut, such
  // as between two words: of so long a stretch it reads all, or finds that even the longest pieces would be too many.
  std::vector<int32_t> Encode(std::string_view text, bool first = true, int64_t* unknown = nullptr,
                              int64_t max_tokens = kAllTokens) const;

  static constexpr int32_t kNoToken = -1;    // before the first token of a text
  static constexpr int32_t kSomeToken = -2;  // before a token that goes on from a text of which no more is known
  // The bytes that the token stands for after `previous`; empty for control tokens and for ids outside the vocabulary.
  // `previous` is the token before, or kNoToken where none before stands for any bytes: the space that Encode put in
  // front is then dropped. After bos_token() a text begins, too. Words have a space between them that belongs to the
  // second.
  virtual std::string_view Bytes(int32_t id, int32_t previous) const = 0;
  // Concatenated bytes, with what is not valid UTF-8 replaced by U+FFFD.
  std::string Decode(std::span<const int32_t> ids) const;

 protected:
  // Appends the tokens of the text to `ids`, and adds to `unknown`, as Encode says. May stop when `ids` holds more than
  // `most`.
  virtual void Append(std::string_view text, bool first, size_t most, std::vector<int32_t>& ids,
                      int64_t& unknown) const = 0;
  bool BeginsAText(int32_t previous) const { return previous == kNoToken || (previous == bos_ && bos_ >= 0); }
  // The id of the piece or symbol that is written so; -1: none is.
  virtual int32_t Find(std::string_view piece) const = 0;

 private:
  int32_t bos_ = -1;  // constant after Load
};

// Cuts a stream of bytes at character borders. What is held back is at most three bytes.
class Utf8Stream {
 public:
  // Goes on from bytes that an earlier stream held back.
  explicit Utf8Stream(std::string pending = "") : pending_(std::move(pending)) {}

  // Takes the next bytes and returns the whole characters that are now complete. Bytes that can begin no character come
  // out as U+FFFD, one for each maximal invalid part (Unicode 15, section 3.9).
  std::string Push(std::string_view bytes);
  // What is held back comes out as U+FFFD.
  std::string Flush();
  const std::string& pending() const { return pending_; }

 private:
  std::string pending_;
};

}  // namespace palimpsest
