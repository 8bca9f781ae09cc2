// States leave a device's slots beside its stream.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/common/test_device.h"
#include "server/session/slot_pool.h"

namespace palimpsest {
namespace {

constexpr int64_t kBytes = 200;

State StateOf(int value) {
  State state;
  state.data = AlignedBytes(kBytes);
  std::fill_n(state.data.data(), kBytes, static_cast<std::byte>(value));
  return state;
}

std::vector<std::byte> Bytes(int value) { return std::vector<std::byte>(kBytes, static_cast<std::byte>(value)); }

// More copies at once than there are places on the way, each of a slot that is given out again before it has come.
TEST(SlotPoolOnDevice, AStateThatLeavesIsNotTheNextTenants) {
  const std::shared_ptr<Device> device = OpenTestDevice();
  SlotPool pool(2, kBytes, device.get());
  ASSERT_NE(pool.base(), nullptr);
  for (int round = 0; round < 3; ++round) {
    constexpr int kCopies = 10;
    std::vector<std::vector<std::byte>> left(kCopies, std::vector<std::byte>(kBytes));
    std::vector<SlotCopy> copies(kCopies);
    for (int i = 0; i < kCopies; ++i) {
      const State state = StateOf(20 * round + i);
      const SlotHandle slot = pool.Acquire(&state);
      absl::StatusOr<SlotCopy> copy = pool.BeginCopyOut(slot, std::vector<ByteRange>{{0, kBytes}}, left[i].data());
      ASSERT_TRUE(copy.ok()) << copy.status();
      copies[i] = *std::move(copy);
      pool.Release(slot);
    }
    const SlotHandle next = pool.Acquire(nullptr);
    ASSERT_TRUE(device->Synchronize().ok());
    for (int i = 0; i < kCopies; ++i) {
      ASSERT_TRUE(copies[i].Finish().ok());
      EXPECT_EQ(left[i], Bytes(20 * round + i)) << i;
    }
    std::vector<std::byte> zeros(kBytes);
    ASSERT_TRUE(pool.CopyOut(next, std::vector<ByteRange>{{0, kBytes}}, zeros.data()).ok());
    EXPECT_EQ(zeros, Bytes(0));
    pool.Release(next);
  }
}

}  // namespace
}  // namespace palimpsest
