// The preallocated room for the states of the sequences that run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/common/device.h"
#include "server/session/state.h"

namespace palimpsest {

// A slot that was given out. The generation tells it from earlier and later uses of the same slot.
struct SlotHandle {
  int32_t index = -1;
  uint64_t generation = 0;
};

// Pinned memory that states leave a device through.
struct SlotStaging {
  std::byte* memory = nullptr;
  std::unique_ptr<Device::SideCopy> copy;
  int32_t slot = -1;  // whose state is on its way; -1: it is free
};

// A state on its way out of its slot.
class SlotCopy {
 public:
  SlotCopy() = default;
  SlotCopy(SlotCopy&& other) noexcept { *this = std::move(other); }
  SlotCopy& operator=(SlotCopy&& other) noexcept;
  ~SlotCopy();  // waits, if nobody has
  // Waits until the memory that SlotPool::BeginCopyOut was given has the state. INTERNAL: the device failed.
  absl::Status Finish();

 private:
  friend class SlotPool;
  SlotStaging* staging_ = nullptr;  // null: there is nothing to wait for
  Device* device_ = nullptr;
  std::byte* to_ = nullptr;
  std::vector<ByteRange> ranges_;
};

// Not thread-safe: the engine's thread owns it. live() + free() == size() always.
class SlotPool {
 public:
  // With a device, the room is in its memory; base() is null if it has too little, and then there are no slots.
  SlotPool(int32_t slots, int64_t state_bytes, Device* device = nullptr);
  ~SlotPool();  // after every SlotCopy
  SlotPool(const SlotPool&) = delete;
  SlotPool& operator=(const SlotPool&) = delete;

  // Of the host's memory, what a pool of a device takes at most.
  static int64_t StagingBytes(int64_t state_bytes);

  int32_t size() const { return static_cast<int32_t>(generation_.size()); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }
  int32_t live() const { return size() - free(); }

  // Gives out a slot and fills all of it: with `initial`'s data where that is used, and with zeros. Null: with zeros
  // only. index is -1 when none is free.
  SlotHandle Acquire(const State* initial);
  // Gives out this slot, for a caller that keeps count of those that are free. One that is out aborts.
  SlotHandle Acquire(int32_t index, const State* initial);
  // Takes a slot back. A handle of another generation, or of a slot that is not out, is a broken invariant: aborts.
  void Release(SlotHandle handle);
  // The slot's address in the pool's memory; aborts on a stale handle.
  std::byte* Data(SlotHandle handle);
  // Copies these ranges of the slot into host memory, one after the other; aborts on a stale handle. INTERNAL: the
  // device failed.
  absl::Status CopyOut(SlotHandle handle, std::span<const ByteRange> ranges, std::byte* to);
  // The same without waiting for a device, whose stream goes on beside the copy. The slot may be released and given out
  // again at once; `to` is to be left alone until Finish. On a processor, and where kStagings states are on their way
  // already, it is CopyOut.
  absl::StatusOr<SlotCopy> BeginCopyOut(SlotHandle handle, std::span<const ByteRange> ranges, std::byte* to);

  std::byte* base() { return memory_.data(); }
  int64_t stride() const { return stride_; }

 private:
  static constexpr int32_t kStagings = 4;

  void Fill(std::byte* slot, const State* initial);
  // One that is free; null if there is none.
  SlotStaging* FindStaging();

  Device* const device_;
  int64_t stride_ = 0;
  AlignedBytes memory_;
  std::vector<uint64_t> generation_;  // odd while out
  std::vector<int32_t> free_;
  std::vector<SlotStaging> stagings_;  // on a device: kStagings, each made when it is first needed
};

}  // namespace palimpsest
