// Cuts a long text into pieces whose tokens are the tokens of the whole.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace palimpsest::cli {

// Where to cut `text`, which goes on beyond what is there: at most `text.size()`, and greater than 0.
//
// Tokenizers give a word and the white space before it to the same tokens, and give none to two words or two lines. So
// the best place is before the last run of white space that holds a newline, then before the last run of any white
// space; in the second half of the text, so that pieces stay large, before anywhere else. A text without white space is
// cut between two characters (UTF-8 sequences), and one that is not even UTF-8 at its end.
size_t FindCut(absl::string_view text);

// Gives the pieces of a file in order.
class TextPieces {
 public:
  // Reads up to so many bytes; fewer: the end, or a pipe that gives them as they come; none: the end.
  using Read = std::function<absl::StatusOr<size_t>(char* to, size_t bytes)>;

  // Pieces are of at most `piece_bytes` (16 at least).
  TextPieces(Read read, size_t piece_bytes);

  // The next piece; empty at the end.
  absl::StatusOr<std::string> Next();

 private:
  const Read read_;
  const size_t piece_bytes_;
  std::string buffer_;  // read, and not yet given
  bool ended_ = false;
};

}  // namespace palimpsest::cli
