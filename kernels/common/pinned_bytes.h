// Host memory that copies to and from a device take no detour from, so that they run while the host goes on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/common/device.h"

namespace palimpsest {

struct FreePinned {
  Device* device = nullptr;
  void operator()(std::byte* memory) const { device->FreePinned(memory); }
};

// Must not outlive its device; see device.h for who may touch it when.
using PinnedBytes = std::unique_ptr<std::byte, FreePinned>;

// Null when there is not enough.
inline PinnedBytes AllocatePinned(Device& device, int64_t bytes) {
  return PinnedBytes(device.AllocatePinned(bytes), {&device});
}

}  // namespace palimpsest
