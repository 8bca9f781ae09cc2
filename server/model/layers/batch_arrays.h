// The small arrays of a batch on their way to a device: one piece of pinned memory and one of the device's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "base/check.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/common/device.h"
#include "kernels/common/pinned_bytes.h"

namespace palimpsest {

// Not thread-safe. Addresses are stable as long as arrays of the same sizes are put in the same order and Reset finds
// room.
class BatchArrays {
 public:
  // Forgets what was put, and waits for the stream to have read it. True: there was too little room for `bytes`, and
  // addresses change.
  bool Reset(Device& device, int64_t bytes) {
    if (sent_ > 0) device.Synchronize().IgnoreError();  // it will be told again
    used_ = sent_ = 0;
    if (bytes <= memory_.size()) return false;
    memory_ = {};
    memory_ = AlignedBytes(2 * bytes, &device);
    pinned_ = AllocatePinned(device, 2 * bytes);
    PALIMPSEST_CHECK(memory_.data() != nullptr && pinned_ != nullptr);
    return true;
  }

  // Room that an array of `count` values takes.
  template <typename T>
  static constexpr int64_t BytesOf(int64_t count) {
    return (count * int64_t{sizeof(T)} + 15) / 16 * 16;
  }

  // Where `values` will be on the device after the next Send.
  template <typename T>
  const T* Put(std::span<const T> values) {
    const int64_t at = used_;
    used_ += BytesOf<T>(std::ssize(values));
    PALIMPSEST_CHECK(used_ <= memory_.size());
    if (!values.empty()) std::memcpy(pinned_.get() + at, values.data(), values.size_bytes());
    return reinterpret_cast<const T*>(memory_.data() + at);
  }
  void Send(Device& device) {
    device.CopyToDevice(memory_.data() + sent_, pinned_.get() + sent_, used_ - sent_);
    sent_ = used_;
  }

 private:
  AlignedBytes memory_;
  PinnedBytes pinned_;
  int64_t used_ = 0;
  int64_t sent_ = 0;
};

}  // namespace palimpsest
