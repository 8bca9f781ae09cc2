#include "clients/cpp/cli/text_pieces.h"

#include <algorithm>
#include <utility>

namespace palimpsest::cli {
namespace {

bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

// True if a run of white space begins at `at`.
bool RunBegins(absl::string_view text, size_t at) { return IsSpace(text[at]) && !IsSpace(text[at - 1]); }

bool RunHoldsNewline(absl::string_view text, size_t at) {
  while (at < text.size() && IsSpace(text[at])) {
    if (text[at++] == '\n') return true;
  }
  return false;
}

}  // namespace

size_t FindCut(absl::string_view text) {
  const std::pair<size_t, size_t> halves[] = {{text.size() / 2, text.size()}, {1, text.size() / 2}};
  for (const auto& [begin, end] : halves) {
    size_t space = 0;
    for (size_t at = end; at-- > std::max<size_t>(begin, 1);) {
      if (!RunBegins(text, at)) continue;
      if (RunHoldsNewline(text, at)) return at;
      if (space == 0) space = at;
    }
    if (space != 0) return space;
  }
  // Before the last character, which may be incomplete.
  for (size_t at = text.size(); at-- > 1 && text.size() - at <= 4;) {
    if ((text[at] & 0xc0) != 0x80) return at;
  }
  return text.size();
}

TextPieces::TextPieces(Read read, size_t piece_bytes)
    : read_(std::move(read)), piece_bytes_(std::max<size_t>(piece_bytes, 16)) {}

absl::StatusOr<std::string> TextPieces::Next() {
  while (!ended_ && buffer_.size() < piece_bytes_) {
    const size_t had = buffer_.size();
    const size_t wanted = std::min<size_t>(piece_bytes_ - had, 1 << 16);
    buffer_.resize(had + wanted);
    const absl::StatusOr<size_t> count = read_(buffer_.data() + had, wanted);
    buffer_.resize(had + count.value_or(0));
    if (!count.ok()) return count.status();
    ended_ = *count == 0;
  }
  const size_t cut = ended_ ? buffer_.size() : FindCut(buffer_);
  std::string piece = buffer_.substr(0, cut);
  buffer_.erase(0, cut);
  return piece;
}

}  // namespace palimpsest::cli
