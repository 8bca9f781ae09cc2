#include "server/session/slot_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

namespace palimpsest {
namespace {

constexpr int64_t kBytes = 200;  // not a multiple of the alignment: the slot has a tail

State StateOf(std::byte value) {
  State state;
  state.data = AlignedBytes(kBytes);
  std::fill_n(state.data.data(), kBytes, value);
  return state;
}

bool All(const std::byte* data, int64_t count, std::byte value) {
  return std::all_of(data, data + count, [&](std::byte b) { return b == value; });
}

TEST(SlotPool, PlacesSlotsApartAndAligned) {
  SlotPool pool(3, kBytes);
  EXPECT_EQ(pool.stride(), 256);
  EXPECT_EQ(pool.size(), 3);
  for (int i = 0; i < 3; ++i) {
    const SlotHandle slot = pool.Acquire(nullptr);
    EXPECT_EQ(slot.index, i);
    EXPECT_EQ(pool.Data(slot), pool.base() + i * 256);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(pool.Data(slot)) % 64, 0);
  }
}

TEST(SlotPool, GivesOutNoByteOfAnEarlierTenant) {
  SlotPool pool(1, kBytes);
  const State initial = StateOf(std::byte{0x11});
  for (int round = 0; round < 4; ++round) {
    const bool empty = round % 2 == 0;
    const SlotHandle slot = pool.Acquire(empty ? nullptr : &initial);
    EXPECT_TRUE(All(pool.Data(slot), kBytes, empty ? std::byte{0} : std::byte{0x11}));
    EXPECT_TRUE(All(pool.Data(slot) + kBytes, pool.stride() - kBytes, std::byte{0}));
    std::memset(pool.Data(slot), 0xAB, static_cast<size_t>(pool.stride()));
    pool.Release(slot);
  }
}

TEST(SlotPool, HasNoneToGiveWhenAllAreOut) {
  SlotPool pool(2, kBytes);
  const SlotHandle first = pool.Acquire(nullptr);
  pool.Acquire(nullptr);
  EXPECT_EQ(pool.free(), 0);
  EXPECT_EQ(pool.Acquire(nullptr).index, -1);
  pool.Release(first);
  EXPECT_EQ(pool.Acquire(nullptr).index, first.index);
}

TEST(SlotPool, GivesOutTheSlotThatIsAskedFor) {
  SlotPool pool(3, kBytes);
  EXPECT_EQ(pool.Acquire(1, nullptr).index, 1);
  EXPECT_EQ(pool.Acquire(nullptr).index, 0);
  EXPECT_EQ(pool.Acquire(nullptr).index, 2);
  EXPECT_EQ(pool.free(), 0);
}

TEST(SlotPool, KeepsItsSumsAndItsTenantsApartInAnyOrder) {
  SlotPool pool(7, kBytes);
  std::vector<std::pair<SlotHandle, std::byte>> out;
  std::mt19937 random(1);
  for (int step = 0; step < 10000; ++step) {
    if (!out.empty() && random() % 2 == 0) {
      std::swap(out[random() % out.size()], out.back());
      EXPECT_TRUE(All(pool.Data(out.back().first), kBytes, out.back().second));
      pool.Release(out.back().first);
      out.pop_back();
    } else if (const std::byte value{static_cast<uint8_t>(step)}; pool.free() > 0) {
      const State initial = StateOf(value);
      out.emplace_back(pool.Acquire(&initial), value);
    }
    ASSERT_EQ(pool.live(), std::ssize(out));
    ASSERT_EQ(pool.live() + pool.free(), pool.size());
  }
}

TEST(SlotPoolDeathTest, ABrokenHandleEndsTheProcess) {
  SlotPool pool(2, kBytes);
  const SlotHandle old = pool.Acquire(nullptr);
  pool.Release(old);
  EXPECT_DEATH(pool.Release(old), "check failed");
  const SlotHandle now = pool.Acquire(nullptr);
  ASSERT_EQ(now.index, old.index);
  EXPECT_DEATH(pool.Data(old), "check failed");
  EXPECT_DEATH(pool.Release(old), "check failed");
  EXPECT_DEATH(pool.Release({}), "check failed");
  EXPECT_DEATH(pool.Acquire(now.index, nullptr), "check failed");
}

// A state of which a part is used goes into its places, with zeros between, and comes out of them.
TEST(SlotPool, MovesWhatIsUsed) {
  SlotPool pool(1, 128);
  State state;
  state.format.bytes = 128;
  state.format.positioned = {{.offset = 32, .bytes = 64, .blocks = 2, .positions = 4}};
  for (int i = 0; i < 3; ++i) state.head.Append(i);
  state.data = AlignedBytes(state.format.UsedBytes(2));
  ASSERT_EQ(state.data.size(), 128 - 32);
  for (int64_t i = 0; i < state.data.size(); ++i) state.data.data()[i] = static_cast<std::byte>(i + 1);
  const SlotHandle first = pool.Acquire(nullptr);
  std::memset(pool.Data(first), 0xAB, 128);
  pool.Release(first);

  const SlotHandle slot = pool.Acquire(&state);
  const std::byte* const data = pool.Data(slot);
  EXPECT_EQ(data[31], std::byte{32});
  EXPECT_EQ(data[47], std::byte{48});
  EXPECT_TRUE(All(data + 48, 16, std::byte{0}));
  EXPECT_EQ(data[64], std::byte{49});
  EXPECT_TRUE(All(data + 80, 16, std::byte{0}));
  EXPECT_EQ(data[127], std::byte{96});
  std::vector<std::byte> out(96);
  ASSERT_TRUE(pool.CopyOut(slot, state.format.UsedRanges(2), out.data()).ok());
  EXPECT_TRUE(std::equal(out.begin(), out.end(), state.data.data()));
}

}  // namespace
}  // namespace palimpsest
