// Text to ids and back, byte-exact.
#pragma once

#include <cstdint>
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
  // (words or characters, see vocabulary.h); or none of them and a vocabulary of 256 or more (bytes: id = byte).
  // INVALID_ARGUMENT, with the path and the cure: a file is damaged, or has another number of pieces than `vocabulary`,
  // or the folder holds two of these, or only formats that are not supported (named). What ReadFile (base/file.h) says
  // of a file that cannot be read.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& folder, int32_t vocabulary);

  // "sentencepiece", "bytes", "words" or "characters".
  virtual std::string_view kind() const = 0;
  virtual int32_t vocabulary() const = 0;
  // Adds no beginning-of-text token. Any bytes in: what is not valid UTF-8 is encoded byte by byte where the vocabulary
  // can, else as the unknown token. `first` is true when nothing comes before the text: a SentencePiece model may then
  // put a space in front (its dummy prefix), which it must not do in the middle of a text that comes in pieces.
  // `unknown`, if given, is set to how often the text has something that the vocabulary does not; each became the
  // unknown token, or nothing where there is no such token. Takes time in proportion to the length of the text, or a
  // logarithm more.
  virtual std::vector<int32_t> Encode(std::string_view text, bool first = true, int64_t* unknown = nullptr) const = 0;

  static constexpr int32_t kNoToken = -1;    // before the first token of a text
  static constexpr int32_t kSomeToken = -2;  // before a token that goes on from a text of which no more is known
  // The bytes that the token stands for after `previous`; empty for control tokens and for ids outside the vocabulary.
  // `previous` is the token before, or kNoToken where none before stands for any bytes: the space that Encode put in
  // front is then dropped. Words have a space between them that belongs to the second.
  virtual std::string_view Bytes(int32_t id, int32_t previous) const = 0;
  // Concatenated bytes, with what is not valid UTF-8 replaced by U+FFFD.
  std::string Decode(std::span<const int32_t> ids) const;
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
