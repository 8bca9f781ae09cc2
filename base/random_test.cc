#include "base/random.h"

#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace palimpsest {
namespace {

using ::testing::SizeIs;

TEST(Random, NumbersDifferWithinAThreadAndBetweenThreads) {
  std::vector<std::vector<uint64_t>> drawn(4);
  std::vector<std::thread> threads;
  threads.reserve(drawn.size());
  for (std::vector<uint64_t>& numbers : drawn) {
    threads.emplace_back([&numbers] {
      for (int i = 0; i < 100; ++i) numbers.push_back(RandomNumber());
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<uint64_t> all;
  for (const std::vector<uint64_t>& numbers : drawn) all.insert(numbers.begin(), numbers.end());
  EXPECT_THAT(all, SizeIs(400));
}

TEST(Random, SecretsHaveTheLengthAskedForAndDiffer) {
  EXPECT_THAT(SecretBytes(0), SizeIs(0));
  EXPECT_THAT(SecretBytes(33), SizeIs(33));
  std::set<std::string> all;
  for (int i = 0; i < 100; ++i) all.insert(SecretBytes(16));
  EXPECT_THAT(all, SizeIs(100));
}

}  // namespace
}  // namespace palimpsest
