#include "kernels/cuda/test_heap.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <vector>

namespace palimpsest {
namespace {

// The memory of a heap, and around it what must not change.
struct Memory {
  explicit Memory(size_t bytes) : bytes(bytes), words((bytes + 128) / 8 + 8) {}
  std::byte* data() {
    const auto address = reinterpret_cast<uintptr_t>(words.data());
    return reinterpret_cast<std::byte*>((address + 63) / 64 * 64);
  }
  size_t bytes;
  std::vector<uint64_t> words;
};

TEST(TestHeapTest, PiecesAreAlignedApartAndKeepWhatIsWritten) {
  Memory memory(4 << 20);
  TestHeap heap(memory.data(), memory.bytes);
  std::mt19937 random(1);
  struct Piece {
    size_t bytes;
    uint8_t fill;
  };
  std::map<std::byte*, Piece> pieces;
  const auto check_and_free = [&](std::map<std::byte*, Piece>::iterator piece) {
    for (size_t i = 0; i < piece->second.bytes; ++i) ASSERT_EQ(piece->first[i], std::byte{piece->second.fill});
    heap.Free(piece->first);
    pieces.erase(piece);
  };
  for (int i = 0; i < 4000; ++i) {
    if (pieces.size() > 100) check_and_free(std::next(pieces.begin(), static_cast<int>(random() % pieces.size())));
    const size_t bytes = random() % 3000, alignment = size_t{1} << (random() % 12);
    auto* const piece = static_cast<std::byte*>(heap.Allocate(bytes, alignment));
    ASSERT_NE(piece, nullptr);
    ASSERT_EQ(reinterpret_cast<uintptr_t>(piece) % std::max(alignment, TestHeap::kHeader), 0u);
    ASSERT_GE(piece, memory.data());
    ASSERT_LE(piece + bytes, memory.data() + memory.bytes);
    ASSERT_TRUE(pieces.emplace(piece, Piece{bytes, static_cast<uint8_t>(i)}).second);
    std::memset(piece, static_cast<uint8_t>(i), bytes);
  }
  while (!pieces.empty()) check_and_free(pieces.begin());
}

TEST(TestHeapTest, IsFullWithoutHarmAndServesAgainWhatIsFreed) {
  Memory memory(8192);
  TestHeap heap(memory.data(), memory.bytes);
  std::vector<void*> pieces;
  while (void* const piece = heap.Allocate(1000)) pieces.push_back(piece);
  EXPECT_GE(pieces.size(), 6u);
  EXPECT_EQ(heap.Allocate(1 << 20), nullptr);
  heap.Free(pieces.back());
  EXPECT_EQ(heap.Allocate(513), pieces.back());
  heap.Free(nullptr);
}

}  // namespace
}  // namespace palimpsest
