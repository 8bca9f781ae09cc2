#include "kernels/common/used_ranges.h"

namespace palimpsest {

std::vector<ByteRange> UsedRanges(int64_t bytes, std::span<const PositionedPiece> pieces, int64_t tokens) {
  std::vector<ByteRange> used;
  int64_t begin = 0;
  const auto end_at = [&](int64_t end) {
    if (end > begin) used.push_back({begin, end - begin});
  };
  for (const PositionedPiece& piece : pieces) {
    if (tokens >= piece.positions) continue;
    const int64_t block = piece.bytes / piece.blocks, filled = block / piece.positions * tokens;
    for (int64_t b = 0; b < piece.blocks; ++b) {
      end_at(piece.offset + b * block + filled);
      begin = piece.offset + (b + 1) * block;
    }
  }
  end_at(bytes);
  return used;
}

int64_t UsedBytes(int64_t bytes, std::span<const PositionedPiece> pieces, int64_t tokens) {
  for (const PositionedPiece& piece : pieces) {
    if (tokens < piece.positions) bytes -= piece.bytes / piece.positions * (piece.positions - tokens);
  }
  return bytes;
}

}  // namespace palimpsest
