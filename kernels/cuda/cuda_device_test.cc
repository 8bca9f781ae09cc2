// What a device promises beside ops: whose turn it is.
#include "kernels/cuda/cuda_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels/common/aligned_buffer.h"
#include "kernels/common/test_device.h"
#include "kernels/copy_rows/copy_rows.h"

namespace palimpsest {
namespace {

constexpr int64_t kFloats = 64;
constexpr int64_t kBytes = kFloats * static_cast<int64_t>(sizeof(float));

std::vector<float> Read(Device& device, const AlignedBytes& from) {
  std::vector<float> to(kFloats);
  device.CopyToHost(to.data(), from.data(), kBytes);
  EXPECT_TRUE(device.Synchronize().ok());
  return to;
}

void Write(Device& device, AlignedBytes& to, float value) {
  const std::vector<float> from(kFloats, value);
  device.CopyToDevice(to.data(), from.data(), kBytes);
}

CopyRowsParams Copy(const AlignedBytes& from, AlignedBytes& to) {
  return {.rows = 1,
          .dim = kFloats,
          .x = reinterpret_cast<const float*>(from.data()),
          .ldx = kFloats,
          .y = reinterpret_cast<float*>(to.data()),
          .ldy = kFloats};
}

TEST(CudaDevice, WhatOtherThreadsDoIsNotRecordedAndSpoilsNothing) {
  const std::shared_ptr<Device> device = OpenTestDevice();
  AlignedBytes a(kBytes, device.get()), b(kBytes, device.get()), theirs(kBytes, device.get());
  Write(*device, a, 1.0f);
  std::atomic<bool> recording = false;
  std::thread other([&] {
    while (!recording) std::this_thread::yield();
    const AlignedBytes freed(kBytes, device.get());
    Write(*device, theirs, 2.0f);
    EXPECT_TRUE(device->Synchronize().ok());
  });
  const std::unique_ptr<Device::Graph> graph = device->Record([&] {
    recording = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // the other thread comes meanwhile
    device->Run(Copy(a, b));
  });
  other.join();
  ASSERT_NE(graph, nullptr);
  Write(*device, a, 3.0f);
  Write(*device, theirs, 4.0f);
  device->Run(*graph);
  EXPECT_EQ(Read(*device, b), std::vector<float>(kFloats, 3.0f));
  EXPECT_EQ(Read(*device, theirs), std::vector<float>(kFloats, 4.0f));
}

TEST(CudaDevice, ACopyAsideHasWhatWasThereWhenItBegan) {
  const std::shared_ptr<Device> device = OpenTestDevice();
  AlignedBytes a(kBytes, device.get());
  auto* const to = reinterpret_cast<float*>(device->AllocatePinned(kBytes));
  const std::unique_ptr<Device::SideCopy> copy = device->MakeSideCopy();
  ASSERT_NE(copy, nullptr);
  for (const float value : {1.0f, 2.0f}) {
    Write(*device, a, value);
    device->CopyToHostAside(*copy, to, a.data(), kBytes);
    device->StreamAwaits(*copy);
    Write(*device, a, -1.0f);
    ASSERT_TRUE(device->Synchronize().ok());
    ASSERT_TRUE(device->Await(*copy).ok());
    EXPECT_EQ(std::vector<float>(to, to + kFloats), std::vector<float>(kFloats, value));
    EXPECT_EQ(Read(*device, a), std::vector<float>(kFloats, -1.0f));
  }
  device->FreePinned(reinterpret_cast<std::byte*>(to));
}

TEST(CudaDeviceDeathTest, WhatIsRecordedMayNotWait) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        const std::shared_ptr<Device> device = OpenTestDevice();
        device->Record([&] { static_cast<void>(device->Synchronize()); });
      },
      "recorder_");
}

}  // namespace
}  // namespace palimpsest
