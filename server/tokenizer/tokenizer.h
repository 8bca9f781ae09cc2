// Text to ids and back, byte-exact.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace palimpsest {

// Thread-safe: const after construction.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Loads what the folder holds: `tokenizer.model` (SentencePiece), or none and a vocabulary of 256 or more (bytes: id =
  // byte). INVALID_ARGUMENT: the file is damaged, or has another number of pieces than `vocabulary`, or the folder holds
  // only formats that are not supported (named).
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& folder, int32_t vocabulary);

  // "sentencepiece" or "bytes".
  virtual std::string_view kind() const = 0;
  virtual int32_t vocabulary() const = 0;
  // Adds no beginning-of-text token. Any bytes in: what is not valid UTF-8 is encoded byte by byte where the vocabulary
  // can, else as the unknown token.
  virtual std::vector<int32_t> Encode(std::string_view text) const = 0;
  // The bytes that the token stands for; empty for control tokens. `first` is true at the very start of a text, where
  // SentencePiece drops the space that its dummy prefix added (only if the model adds one).
  virtual std::string_view Bytes(int32_t id, bool first = false) const = 0;
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
