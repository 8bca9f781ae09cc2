#include "kernels/cuda/test_heap.h"

#include <algorithm>
#include <utility>

namespace palimpsest {

// Pieces are aligned to kHeader; for a larger alignment one is cut with room to begin further on.
void* TestHeap::Allocate(size_t bytes, size_t alignment) {
  const size_t slack = alignment > kHeader ? alignment : 0;
  const size_t size_class = std::bit_width(std::max(bytes + slack, kHeader) - 1);
  std::byte* piece = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (Header*& free = free_[size_class]; free != nullptr) {
      piece = reinterpret_cast<std::byte*>(std::exchange(free, free->next_free)) + kHeader;
    } else {
      const size_t taken = kHeader + (size_t{1} << size_class);
      if (taken > static_cast<size_t>(end_ - next_)) return nullptr;
      *reinterpret_cast<Header*>(next_) = {.size_class = size_class, .next_free = nullptr};
      piece = next_ + kHeader;
      next_ += taken;
    }
  }
  if (slack == 0) return piece;
  const auto address = reinterpret_cast<uintptr_t>(piece);
  std::byte* const start = piece + ((address + alignment - 1) / alignment * alignment - address);
  if (start != piece) {
    *reinterpret_cast<Header*>(start - kHeader) = {.size_class = kMoved,
                                                   .next_free = reinterpret_cast<Header*>(piece - kHeader)};
  }
  return start;
}

void TestHeap::Free(void* memory) {
  if (memory == nullptr) return;
  auto* header = reinterpret_cast<Header*>(static_cast<std::byte*>(memory) - kHeader);
  if (header->size_class == kMoved) header = header->next_free;
  const std::lock_guard<std::mutex> lock(mutex_);
  header->next_free = std::exchange(free_[header->size_class], header);
}

}  // namespace palimpsest
