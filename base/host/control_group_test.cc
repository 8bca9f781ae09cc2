// The limits of containers, read from trees as version 1 and version 2 have them.
#include "base/host/control_group.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/host/available_memory.h"
#include "base/host/available_processors.h"
#include "base/testing/temporary_folder.h"

namespace palimpsest {
namespace {

class ControlGroupTest : public ::testing::Test {
 protected:
  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path full = root() + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text << "\n";
  }
  std::string root() const { return folder_.path(); }

 private:
  const testing::TemporaryFolder folder_;
};

TEST_F(ControlGroupTest, WithoutGroupsThereIsNoLimit) {
  EXPECT_EQ(GroupMemoryLeft(root()), std::nullopt);
  EXPECT_EQ(GroupProcessors(root()), std::nullopt);
  EXPECT_EQ(GroupThreads(root()), std::nullopt);
  EXPECT_EQ(AvailableMemory(root()), std::nullopt);
  EXPECT_GE(AvailableProcessors(root()), 1);
}

TEST_F(ControlGroupTest, AContainerOfVersion2SeesItsLimitsAtTheRoot) {
  Write("/proc/self/cgroup", "0::/");
  Write("/sys/fs/cgroup/memory.max", "1000");
  Write("/sys/fs/cgroup/memory.current", "700");
  Write("/sys/fs/cgroup/memory.stat", "anon 300\nfile 450\ninactive_file 100\nactive_file 50\nshmem 300");
  Write("/sys/fs/cgroup/cpu.max", "150000 100000");
  EXPECT_EQ(GroupMemoryLeft(root()), 450) << "the weights just read are pages of files, which are free to take";
  EXPECT_EQ(GroupProcessors(root()), 1.5);
  EXPECT_EQ(AvailableProcessors(root()), 1);
  Write("/proc/meminfo", "MemTotal: 4 kB\nMemAvailable:       2 kB\nBuffers: 1 kB");
  EXPECT_EQ(AvailableMemory(root()), 450);
  Write("/sys/fs/cgroup/memory.max", "100000");
  EXPECT_EQ(AvailableMemory(root()), 2048);
}

TEST_F(ControlGroupTest, TheProcessHasLimitsOfItsOwn) {
  Write("/proc/meminfo", "MemTotal: 4000 kB\nMemAvailable:    3000 kB");
  Write("/proc/self/status", "Name: server\nVmSize:\t    1000 kB\nVmData:\t     500 kB");
  Write("/proc/self/limits",
        "Limit                     Soft Limit           Hard Limit           Units\n"
        "Max data size             unlimited            unlimited            bytes\n"
        "Max address space         2048000              unlimited            bytes");
  ASSERT_EQ(MemoryLimits(root()).size(), 2);
  EXPECT_EQ(MemoryLimits(root())[0].name, "MemAvailable");
  EXPECT_FALSE(MemoryLimits(root())[0].mapped);
  EXPECT_EQ(MemoryLimits(root())[1].name, "RLIMIT_AS");
  EXPECT_TRUE(MemoryLimits(root())[1].mapped);
  EXPECT_EQ(AvailableMemory(root()), 1000 * 1024);
  Write("/proc/self/limits", "Max data size             614400               614400               bytes");
  EXPECT_EQ(AvailableMemory(root()), 100 * 1024);
  Write("/proc/self/limits", "Max data size             1                    1                    bytes");
  EXPECT_EQ(AvailableMemory(root()), 0) << "less than is in use already";
}

TEST_F(ControlGroupTest, ALimitMayBeOnAnyGroupAbove) {
  Write("/proc/self/cgroup", "0::/kubepods.slice/pod1/server");
  Write("/sys/fs/cgroup/kubepods.slice/pod1/server/memory.max", "max");
  Write("/sys/fs/cgroup/kubepods.slice/pod1/server/memory.current", "10");
  Write("/sys/fs/cgroup/kubepods.slice/pod1/server/cpu.max", "max 100000");
  Write("/sys/fs/cgroup/kubepods.slice/pod1/memory.max", "1000");
  Write("/sys/fs/cgroup/kubepods.slice/pod1/memory.current", "900");
  Write("/sys/fs/cgroup/kubepods.slice/memory.max", "5000");
  Write("/sys/fs/cgroup/kubepods.slice/memory.current", "1200");
  Write("/sys/fs/cgroup/kubepods.slice/cpu.max", "50000 100000");
  EXPECT_EQ(GroupMemoryLeft(root()), 100);
  EXPECT_EQ(GroupProcessors(root()), 0.5);
  EXPECT_EQ(AvailableProcessors(root()), 1) << "never none";
  Write("/sys/fs/cgroup/kubepods.slice/pod1/server/memory.high", "60");
  EXPECT_EQ(GroupMemoryLeft(root()), 50);
}

TEST_F(ControlGroupTest, Version1HasAGroupForEachController) {
  Write("/proc/self/cgroup", "4:memory:/unit\n2:cpu,cpuacct:/unit\n1:name=systemd:/unit");
  Write("/sys/fs/cgroup/memory/unit/memory.limit_in_bytes", "2000");
  Write("/sys/fs/cgroup/memory/unit/memory.usage_in_bytes", "1500");
  Write("/sys/fs/cgroup/memory/unit/memory.stat", "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 50");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  Write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "9000");
  Write("/sys/fs/cgroup/cpu/unit/cpu.cfs_quota_us", "200000");
  Write("/sys/fs/cgroup/cpu/unit/cpu.cfs_period_us", "100000");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000");
  EXPECT_EQ(GroupMemoryLeft(root()), 750);
  EXPECT_EQ(GroupProcessors(root()), 2);
}

TEST_F(ControlGroupTest, AContainerMayBeToldThePathOfItsHost) {
  Write("/proc/self/cgroup", "4:memory:/docker/0123\n3:cpu:/docker/0123\n0::/docker/0123");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2000");
  Write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "500");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000");
  EXPECT_EQ(GroupMemoryLeft(root()), 1500);
  EXPECT_EQ(GroupProcessors(root()), 3);
}

TEST_F(ControlGroupTest, ThreadsAreBoundedByTheLowestLimit) {
  Write("/proc/self/cgroup", "0::/pod/server");
  Write("/sys/fs/cgroup/pod/server/pids.max", "max");
  Write("/sys/fs/cgroup/pod/pids.max", "200");
  Write("/sys/fs/cgroup/pids.max", "5000");
  EXPECT_EQ(GroupThreads(root()), 200);
  Write("/proc/self/cgroup", "7:pids:/unit");
  Write("/sys/fs/cgroup/pids/unit/pids.max", "100");
  EXPECT_EQ(GroupThreads(root()), 100);
}

TEST_F(ControlGroupTest, MoreThanTheLimitIsNothingLeft) {
  Write("/proc/self/cgroup", "0::/");
  Write("/sys/fs/cgroup/memory.max", "1000");
  Write("/sys/fs/cgroup/memory.current", "1200");
  EXPECT_EQ(GroupMemoryLeft(root()), 0);
}

}  // namespace
}  // namespace palimpsest
