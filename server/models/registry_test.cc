#include "server/models/registry.h"

#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "base/testing/temporary_folder.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/model/testing/random_checkpoint.h"

namespace palimpsest {
namespace {

using ::testing::HasSubstr;

class ModelRegistryTest : public ::testing::Test {
 protected:
  ModelRegistryTest() {
    std::filesystem::create_directories(path("m"));
    testing::WriteRandomCheckpoint(path("m"), {});
  }
  std::string path(const std::string& place) const { return folder_.path() + "/" + place; }
  ModelRegistry::Options Options() const {
    ModelRegistry::Options options;
    options.engine.threads = 1;
    options.engine.slots = 2;
    options.root = folder_.path();
    options.max_models = 2;
    options.backend.kind = BackendOptions::Kind::kCpu;
    return options;
  }
  // Counts the rooms that are taken.
  absl::StatusOr<std::shared_ptr<const void>> Admit(const ModelMemory&) {
    if (full_) return absl::ResourceExhaustedError("no room");
    ++rooms_;
    return std::shared_ptr<const void>(this, [this](const void*) { --rooms_; });
  }

  const testing::TemporaryFolder folder_;
  bool full_ = false;
  int rooms_ = 0;
  Metrics metrics_;
  SessionStore sessions_{SessionStoreOptions()};
  ModelRegistry registry_{Options(), &metrics_, &sessions_, [this](const ModelMemory& model) { return Admit(model); }};
};

TEST_F(ModelRegistryTest, AModelIsFoundFromWhenItIsLoadedUntilItIsUnloaded) {
  EXPECT_EQ(registry_.Find("a").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(registry_.AnyReady());
  const absl::StatusOr<ModelInfo> info = registry_.Load("a", path("m"));
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->condition, ModelCondition::kReady);
  EXPECT_THAT(info->backend, HasSubstr("cpu"));
  EXPECT_EQ(rooms_, 1);
  EXPECT_TRUE(registry_.AnyReady());
  {
    const absl::StatusOr<ModelRef> model = registry_.Find("a", info->fingerprint);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->id(), "a");
    EXPECT_EQ(registry_.FindOnly()->id(), "a");
  }
  EXPECT_EQ(registry_.Find("a", "another").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(registry_.Unload("a").ok());
  EXPECT_EQ(registry_.Find("a").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(rooms_, 0);
}

TEST_F(ModelRegistryTest, NamesAndPlacesAreBounded) {
  ASSERT_TRUE(registry_.Load("a", path("m")).ok());
  EXPECT_EQ(registry_.Load("a", path("m")).status().code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(registry_.Load("b", path("m")).ok());
  EXPECT_EQ(registry_.FindOnly().status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(registry_.Load("c", path("m")).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(ModelRegistryTest, WhatDoesNotFitLeavesNothingBehind) {
  full_ = true;
  EXPECT_EQ(registry_.Load("a", path("m")).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(registry_.Get("a").status().code(), absl::StatusCode::kNotFound);
  full_ = false;
  EXPECT_TRUE(registry_.Load("a", path("m")).ok());
}

TEST_F(ModelRegistryTest, AReplacedVersionStaysUntilItsTimeIsOver) {
  const absl::StatusOr<ModelInfo> first = registry_.Replace("a", path("m"), "1", absl::Hours(1));
  ASSERT_TRUE(first.ok()) << first.status();
  std::filesystem::create_directories(path("n"));
  testing::RandomCheckpointSpec other;
  other.seed = 2;
  testing::WriteRandomCheckpoint(path("n"), other);
  ASSERT_TRUE(registry_.Replace("a", path("n"), "2", absl::Hours(1)).ok());
  EXPECT_EQ(registry_.Get("a")->version, "2");
  EXPECT_TRUE(registry_.Find("a", first->fingerprint).ok());
  EXPECT_EQ(rooms_, 2);
  registry_.DropRetired(absl::InfiniteFuture());
  EXPECT_EQ(registry_.Find("a", first->fingerprint).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(rooms_, 1);
  EXPECT_EQ(registry_.Unload("a").code(), absl::StatusCode::kFailedPrecondition) << "it is the repository's";
}

TEST_F(ModelRegistryTest, PathsStayBelowTheRoot) {
  EXPECT_EQ(*registry_.ResolvePath("m"), std::filesystem::canonical(path("m")));
  std::filesystem::create_symlink("/", path("out"));
  for (const char* outside : {"../x", "/tmp", "out", "m/../../x"}) {
    EXPECT_EQ(registry_.ResolvePath(outside).status().code(), absl::StatusCode::kPermissionDenied) << outside;
  }
  EXPECT_EQ(registry_.ResolvePath("nothing").status().code(), absl::StatusCode::kNotFound);
}

TEST(OpenBackend, WithoutADeviceInTheBuildOnlyTheProcessorIsLeft) {
  EXPECT_EQ(*OpenBackend({.kind = BackendOptions::Kind::kAuto}), nullptr);
  EXPECT_EQ(*OpenBackend({.kind = BackendOptions::Kind::kCpu}), nullptr);
  EXPECT_EQ(OpenBackend({.kind = BackendOptions::Kind::kCuda}).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace palimpsest
