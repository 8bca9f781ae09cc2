// What of a state is used. Most pieces of a state are used as a whole from the start; those with an entry for each of
// some last positions fill up with the context, and what moves, parks or sends a state leaves out entries that no
// position has reached.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace palimpsest {

// A piece of `blocks` equal parts, one after the other, each of which has an entry for each of `positions`: entry
// p mod positions belongs to position p.
struct PositionedPiece {
  int64_t offset = 0;  // bytes from the start of the state
  int64_t bytes = 0;
  int64_t blocks = 1;
  int64_t positions = 1;

  bool operator==(const PositionedPiece&) const = default;
};

struct ByteRange {
  int64_t offset = 0;
  int64_t bytes = 0;

  bool operator==(const ByteRange&) const = default;
};

// The ranges of a state of so many bytes, ascending and apart, that are used once `tokens` have been processed. All of
// it where no piece has positions, and where all are full. `pieces` ascend.
std::vector<ByteRange> UsedRanges(int64_t bytes, std::span<const PositionedPiece> pieces, int64_t tokens);

// Their bytes.
int64_t UsedBytes(int64_t bytes, std::span<const PositionedPiece> pieces, int64_t tokens);

}  // namespace palimpsest
