// The heap of the programs that test ops on a device: one array, so that the device can be shown all of it at once.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace palimpsest {

// Hands out pieces of an array whose sizes are powers of two and takes them back; pieces are not joined again. Needs no
// other memory. Thread-safe.
class TestHeap {
 public:
  // `memory` is aligned to kHeader and outlives the heap.
  TestHeap(std::byte* memory, size_t bytes) : next_(memory), end_(memory + bytes) {}

  // Aligned to kHeader at least; null if the heap is full.
  void* Allocate(size_t bytes, size_t alignment = kHeader);
  // Of this heap, or null.
  void Free(void* memory);

  static constexpr size_t kHeader = 64;

 private:
  // Before each piece.
  struct alignas(kHeader) Header {
    uint64_t size_class;  // the piece has 2^size_class bytes; kMoved: it began earlier
    Header* next_free;    // kMoved: the header there
  };
  static constexpr uint64_t kMoved = ~uint64_t{0};

  std::mutex mutex_;
  std::byte* next_;  // what was never handed out
  std::byte* const end_;
  std::array<Header*, 64> free_{};  // by size class
};

}  // namespace palimpsest
