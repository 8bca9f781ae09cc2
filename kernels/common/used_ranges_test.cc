#include "kernels/common/used_ranges.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace palimpsest {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(UsedRanges, AreAllOfAStateWithoutPositions) {
  EXPECT_THAT(UsedRanges(192, {}, 0), ElementsAre(ByteRange{0, 192}));
  EXPECT_EQ(UsedBytes(192, {}, 0), 192);
}

TEST(UsedRanges, GrowWithTheContextUntilAPieceIsFull) {
  // 64 bytes that are always used; two blocks of 4 entries of 8 bytes; 32 bytes more.
  const PositionedPiece pieces[] = {{.offset = 64, .bytes = 64, .blocks = 2, .positions = 4}};
  EXPECT_THAT(UsedRanges(160, pieces, 0), ElementsAre(ByteRange{0, 64}, ByteRange{128, 32}));
  EXPECT_THAT(UsedRanges(160, pieces, 1), ElementsAre(ByteRange{0, 72}, ByteRange{96, 8}, ByteRange{128, 32}));
  EXPECT_THAT(UsedRanges(160, pieces, 3), ElementsAre(ByteRange{0, 88}, ByteRange{96, 24}, ByteRange{128, 32}));
  for (const int64_t tokens : {4, 5, 100}) {
    EXPECT_THAT(UsedRanges(160, pieces, tokens), ElementsAre(ByteRange{0, 160}));
  }
}

TEST(UsedRanges, NothingIsUsedOfAStateOfPositionsOnlyAtFirst) {
  const PositionedPiece pieces[] = {{.offset = 0, .bytes = 64, .blocks = 1, .positions = 8},
                                    {.offset = 64, .bytes = 64, .blocks = 1, .positions = 2}};
  EXPECT_THAT(UsedRanges(128, pieces, 0), IsEmpty());
  EXPECT_THAT(UsedRanges(128, pieces, 2), ElementsAre(ByteRange{0, 16}, ByteRange{64, 64}));
}

TEST(UsedRanges, TheirBytesAreTheirSum) {
  const PositionedPiece pieces[] = {{.offset = 0, .bytes = 96, .blocks = 2, .positions = 3},
                                    {.offset = 128, .bytes = 320, .blocks = 4, .positions = 5}};
  for (int64_t tokens = 0; tokens < 7; ++tokens) {
    int64_t sum = 0;
    for (const ByteRange& range : UsedRanges(512, pieces, tokens)) sum += range.bytes;
    EXPECT_EQ(UsedBytes(512, pieces, tokens), sum) << tokens;
  }
}

}  // namespace
}  // namespace palimpsest
