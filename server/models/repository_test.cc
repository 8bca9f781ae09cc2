#include "server/models/repository.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "base/testing/temporary_folder.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/model/testing/random_checkpoint.h"

namespace palimpsest {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class ScanRepositoryTest : public ::testing::Test {
 protected:
  void Publish(const std::string& place) const {
    std::filesystem::create_directories(path(place));
    testing::WriteRandomCheckpoint(path(place), {});
  }
  std::string path(const std::string& place) const { return folder_.path() + "/" + place; }
  // The models of a folder that nothing is wrong with.
  std::map<std::string, std::vector<RepositoryVersion>> Scan(absl::Time now = absl::Now()) {
    return *ScanRepository(folder_.path(), now, &ignored_);
  }

  const testing::TemporaryFolder folder_;
  std::set<std::string> ignored_;
};

TEST_F(ScanRepositoryTest, WhatHasJustBeenWrittenIsNotSettled) {
  Publish("m/1");
  EXPECT_FALSE(Scan().at("m")[0].settled);
  EXPECT_TRUE(Scan(absl::Now() + absl::Seconds(3)).at("m")[0].settled);
}

TEST_F(ScanRepositoryTest, OnlyFilesOfTheCheckpointChangeItsSignature) {
  Publish("m/1");
  const std::string before = Scan().at("m")[0].signature;
  EXPECT_EQ(Scan(absl::Now() + absl::Seconds(3)).at("m")[0].signature, before);
  std::ofstream(path("m/1/README.md")) << "not part of it";
  EXPECT_EQ(Scan().at("m")[0].signature, before);
  std::ofstream(path("m/1/generation_config.json")) << "{}";
  EXPECT_NE(Scan().at("m")[0].signature, before);
}

TEST_F(ScanRepositoryTest, VersionsAreWholeNumbersOfWhichTheHighestIsFirst) {
  Publish("m/9");
  Publish("m/10");
  Publish("m/03");  // no leading zeros
  Publish("m/.2");
  Publish("plain");
  std::filesystem::create_directories(path("m/11"));  // not a checkpoint yet
  std::filesystem::create_directories(path("empty"));
  const auto found = Scan();
  ASSERT_EQ(found.size(), 2);
  ASSERT_EQ(found.at("m").size(), 2);
  EXPECT_EQ(found.at("m")[0].version, "10");
  EXPECT_EQ(found.at("m")[1].version, "9");
  EXPECT_EQ(found.at("plain")[0].version, "");
  EXPECT_THAT(ignored_, IsEmpty());
}

TEST_F(ScanRepositoryTest, NamesThatAreNoIdsAreSaid) {
  Publish("Upper");
  Publish(".hidden");
  EXPECT_THAT(Scan(), IsEmpty());
  EXPECT_THAT(ignored_, ElementsAre("Upper"));
}

TEST_F(ScanRepositoryTest, AFolderThatIsNotThereIsAnError) {
  EXPECT_EQ(ScanRepository("/nowhere", absl::Now(), &ignored_).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace palimpsest
