// The preallocated room for the states of the sequences that run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/common/device.h"
#include "server/session/state.h"

namespace palimpsest {

// A slot that was given out. The generation tells it from earlier and later uses of the same slot.
struct SlotHandle {
  int32_t index = -1;
  uint64_t generation = 0;
};

// Not thread-safe: the engine's thread owns it. live() + free() == size() always.
class SlotPool {
 public:
  // With a device, the room is in its memory; base() is null if it has too little, and then there are no slots.
  SlotPool(int32_t slots, int64_t state_bytes, Device* device = nullptr);

  int32_t size() const { return static_cast<int32_t>(generation_.size()); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }
  int32_t live() const { return size() - free(); }

  // Gives out a slot and fills all of it: with `initial`'s data, or with zeros for null. index is -1 when none is free.
  SlotHandle Acquire(const State* initial);
  // Takes a slot back. A handle of another generation, or of a slot that is not out, is a broken invariant: aborts.
  void Release(SlotHandle handle);
  // The slot's address in the pool's memory; aborts on a stale handle.
  std::byte* Data(SlotHandle handle);
  // Copies the first `bytes` of the slot into host memory; aborts on a stale handle. INTERNAL: the device failed.
  absl::Status CopyOut(SlotHandle handle, std::byte* to, int64_t bytes);

  std::byte* base() { return memory_.data(); }
  int64_t stride() const { return stride_; }

 private:
  Device* const device_;
  int64_t stride_ = 0;
  AlignedBytes memory_;
  std::vector<uint64_t> generation_;  // odd while out
  std::vector<int32_t> free_;
};

}  // namespace palimpsest
