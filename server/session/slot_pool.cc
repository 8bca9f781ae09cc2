#include "server/session/slot_pool.h"

#include <cstring>

#include "kernels/common/check.h"

namespace palimpsest {
namespace {

constexpr int64_t kAlignment = 64;  // of a state piece: a cache line, and any vector load

}  // namespace

SlotPool::SlotPool(int32_t slots, int64_t state_bytes)
    : stride_((state_bytes + kAlignment - 1) / kAlignment * kAlignment),
      memory_(slots * stride_),
      generation_(static_cast<size_t>(slots), 0) {
  // Lowest index on top, so that a lightly loaded server keeps to few pages.
  for (int32_t i = slots - 1; i >= 0; --i) free_.push_back(i);
}

SlotHandle SlotPool::Acquire(const State* initial) {
  if (free_.empty()) return {};
  const int64_t given = initial == nullptr ? 0 : initial->data.size();
  PALIMPSEST_CHECK(given <= stride_);
  const int32_t index = free_.back();
  free_.pop_back();
  std::byte* slot = memory_.data() + index * stride_;
  if (given > 0) std::memcpy(slot, initial->data.data(), static_cast<size_t>(given));
  std::memset(slot + given, 0, static_cast<size_t>(stride_ - given));
  return {.index = index, .generation = ++generation_[index]};
}

void SlotPool::Release(SlotHandle handle) {
  Data(handle);  // checks the handle
  ++generation_[handle.index];
  free_.push_back(handle.index);
}

std::byte* SlotPool::Data(SlotHandle handle) {
  PALIMPSEST_CHECK(handle.index >= 0 && handle.index < size());
  PALIMPSEST_CHECK(handle.generation % 2 == 1 && handle.generation == generation_[handle.index]);
  return memory_.data() + handle.index * stride_;
}

}  // namespace palimpsest
