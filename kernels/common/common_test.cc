#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/common/aligned_buffer.h"
#include "kernels/common/dtype.h"
#include "kernels/common/simd.h"
#include "kernels/common/thread_pool.h"

namespace palimpsest {
namespace {

class ThreadPoolOf : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolOf, RunsEveryPartOnceInEachOfManyRegions) {
  ThreadPool pool(GetParam());
  ASSERT_EQ(pool.size(), GetParam());
  std::vector<int64_t> runs(GetParam());  // not atomic: the pool's own synchronisation must do
  for (int region = 0; region < 1000; ++region) {
    pool.Run([&](int part) { ++runs[part]; });
    ASSERT_EQ(std::accumulate(runs.begin(), runs.end(), int64_t{0}), int64_t{region + 1} * GetParam());
  }
  EXPECT_THAT(runs, testing::Each(1000));
}

TEST_P(ThreadPoolOf, WakesThreadsThatHaveGoneToSleep) {
  ThreadPool pool(GetParam());
  std::vector<int> runs(GetParam());
  for (int region = 0; region < 20; ++region) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    pool.Run([&](int part) {
      if (part == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      ++runs[part];
    });
  }
  EXPECT_THAT(runs, testing::Each(20));
}

TEST_P(ThreadPoolOf, TheCallerIsPartZero) {
  ThreadPool pool(GetParam());
  std::vector<std::thread::id> ids(GetParam());
  pool.Run([&](int part) { ids[part] = std::this_thread::get_id(); });
  EXPECT_EQ(ids[0], std::this_thread::get_id());
  for (int part = 1; part < GetParam(); ++part) EXPECT_NE(ids[part], ids[0]);
}

TEST_P(ThreadPoolOf, ParallelForCoversEveryIndexOnceWithBordersAtTheGrain) {
  ThreadPool pool(GetParam());
  for (const int64_t n : {0, 1, 2, 7, 64, 65, 1000}) {
    for (const int64_t grain : {1, 2, 16, 100, 5000}) {
      std::vector<int> covered(n);
      std::atomic<int> ranges{0};
      pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end) {
        ++ranges;
        EXPECT_LT(begin, end);
        EXPECT_EQ(begin % grain, 0);
        if (end != n) {
          EXPECT_EQ(end % grain, 0);
        }
        for (int64_t i = begin; i < end; ++i) ++covered[i];
      });
      EXPECT_THAT(covered, testing::Each(1)) << n << " in grains of " << grain;
      EXPECT_EQ(ranges, std::min<int64_t>((n + grain - 1) / grain, GetParam()));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolOf, testing::Values(1, 2, 3, 8));

TEST(ThreadPoolTest, ASingleRangeRunsOnTheCallingThread) {
  ThreadPool pool(4);
  std::thread::id id;
  pool.ParallelFor(10, 10, [&](int64_t, int64_t) { id = std::this_thread::get_id(); });
  EXPECT_EQ(id, std::this_thread::get_id());
}

TEST(ThreadPoolTest, MayBeDestroyedWithoutHavingRunAnything) { ThreadPool pool(4); }

class AlignedBytesOf : public testing::TestWithParam<int64_t> {};

TEST_P(AlignedBytesOf, AreZeroWritableAndAligned) {
  AlignedBytes bytes(GetParam());
  ASSERT_EQ(bytes.size(), GetParam());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % 4096, 0u);
  if (GetParam() >= int64_t{2} << 20) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % (2 << 20), 0u);
  }
  for (const int64_t at : {int64_t{0}, GetParam() / 2, GetParam() - 1}) {
    EXPECT_EQ(bytes.data()[at], std::byte{0});
  }
  bytes.data()[GetParam() - 1] = std::byte{1};
  EXPECT_EQ(bytes.data()[GetParam() - 1], std::byte{1});
}

INSTANTIATE_TEST_SUITE_P(Sizes, AlignedBytesOf, testing::Values(1, 4096, 4097, 2 << 20, (2 << 20) + 1, 5 << 20));

TEST(AlignedBytesTest, MovingLeavesNothingBehind) {
  AlignedBytes from(100);
  std::byte* const data = from.data();
  data[99] = std::byte{7};
  AlignedBytes to = std::move(from);
  EXPECT_EQ(to.data(), data);
  EXPECT_EQ(to.size(), 100);
  EXPECT_EQ(to.data()[99], std::byte{7});
  EXPECT_EQ(from.data(), nullptr);  // NOLINT(bugprone-use-after-move): what a moved-from buffer looks like is promised
  EXPECT_EQ(from.size(), 0);
  to = AlignedBytes(5000);
  EXPECT_EQ(to.data()[99], std::byte{0});
}

TEST(AlignedBytesTest, ThatTheSystemHasNoRoomForThrow) { EXPECT_THROW(AlignedBytes(int64_t{1} << 60), std::bad_alloc); }

TEST(AlignedBytesTest, TakePages) {
  EXPECT_EQ(AlignedBytes::MappedBytes(0), 0);
  EXPECT_EQ(AlignedBytes::MappedBytes(1), 4096);
  EXPECT_EQ(AlignedBytes::MappedBytes(4097), 8192);
  EXPECT_EQ(AlignedBytes::MappedBytes((2 << 20) + 1), 4 << 20);
}

TEST(AlignedBytesTest, OfNoSizeHaveNoData) {
  EXPECT_EQ(AlignedBytes(0).data(), nullptr);
  EXPECT_EQ(AlignedArray<float>(0).size(), 0);
}

TEST(DTypeTest, EveryBF16SurvivesTheWayThroughFloat) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = FloatFromBF16(static_cast<BF16>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(FloatFromBF16(BF16FromFloat(value))));
    } else {
      ASSERT_EQ(BF16FromFloat(value), bits);
    }
  }
}

TEST(DTypeTest, RoundingToBF16TakesTheNearestAndTheEvenOneOnTies) {
  EXPECT_EQ(BF16FromFloat(0x1.00p0f), 0x3F80);
  EXPECT_EQ(BF16FromFloat(0x1.01p0f), 0x3F80);      // a tie: even is below
  EXPECT_EQ(BF16FromFloat(0x1.010002p0f), 0x3F81);  // just above it
  EXPECT_EQ(BF16FromFloat(0x1.03p0f), 0x3F82);      // a tie: even is above
  EXPECT_EQ(BF16FromFloat(-0x1.03p0f), 0xBF82);
  EXPECT_EQ(BF16FromFloat(std::numeric_limits<float>::max()), 0x7F80);  // rounds to infinity
  EXPECT_EQ(BF16FromFloat(std::numeric_limits<float>::infinity()), 0x7F80);
  EXPECT_TRUE(std::isnan(FloatFromBF16(BF16FromFloat(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(
      std::isnan(FloatFromBF16(BF16FromFloat(std::bit_cast<float>(0x7F800001u)))));  // all payload in the low bits
}

TEST(DTypeTest, HalvesConvertExactly) {
  EXPECT_EQ(FloatFromF16(0x3C00), 1.0f);
  EXPECT_EQ(FloatFromF16(0xC000), -2.0f);
  EXPECT_EQ(FloatFromF16(0x7BFF), 65504.0f);
  EXPECT_EQ(FloatFromF16(0x0400), 0x1p-14f);
  EXPECT_EQ(FloatFromF16(0x0001), 0x1p-24f);  // the smallest subnormal
  EXPECT_EQ(FloatFromF16(0x83FF), -0x1.FF8p-15f);
  EXPECT_EQ(FloatFromF16(0xFC00), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(FloatFromF16(0x7E00)));
  EXPECT_TRUE(std::signbit(FloatFromF16(0x8000)));
}

TEST(SimdTest, ATargetIsUsedWhenItIsThereAndRefusedWhenNot) {
  const std::string best = SimdTargetName();
  ASSERT_TRUE(UseSimdTarget("PORTABLE"));
  EXPECT_STREQ(SimdTargetName(), "PORTABLE");
  EXPECT_FALSE(HasNativeBF16());
  EXPECT_FALSE(UseSimdTarget("AVX9000"));
  EXPECT_STREQ(SimdTargetName(), "PORTABLE");
  ASSERT_TRUE(UseSimdTarget(best));
  EXPECT_EQ(SimdTargetName(), best);
}

TEST(SimdDeathTest, AnUnknownTargetInTheEnvironmentIsNotSilentlyIgnored) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_DEATH(
      {
        setenv("PALIMPSEST_SIMD", "AVX9000", 1);
        ThreadPool pool(1);
      },
      "PALIMPSEST_SIMD=AVX9000: this processor or this build has no such target");
}

}  // namespace
}  // namespace palimpsest
