#include "server/engine/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

namespace palimpsest {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kGiB = int64_t{1} << 30;

ModelMemory Books() {
  return {.id = "books",
          .weight_bytes = 12'500'000,
          .slot_bytes = 373'760,
          .batch_bytes = 20'000'000,
          .slots = 64,
          .parked_bytes = 380'928,
          .snapshot_bytes = 374'903};
}

std::vector<MemoryLimit> Limit(int64_t left, bool mapped = false) {
  return {{.name = mapped ? "RLIMIT_AS" : "control group", .left = left, .mapped = mapped}};
}

int64_t RowOf(const MemoryPlan& plan, const std::string& what) {
  for (const MemoryPlan::Row& row : plan.rows) {
    if (row.what == what) return row.bytes;
  }
  return -1;
}

TEST(MemoryPlan, CountsEverythingAndGivesTheRestToParkedStates) {
  const std::vector<ModelMemory> models = {Books()};
  const auto plan = PlanMemory({}, models, Limit(kGiB), 0);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(RowOf(*plan, "weights of models/books"), 12'500'000);
  EXPECT_EQ(RowOf(*plan, "slots of models/books"), 64 * 373'760);
  EXPECT_EQ(RowOf(*plan, "batches of models/books"), 20'000'000);
  EXPECT_EQ(RowOf(*plan, "states that replies of models/books leave"), 64 * 380'928);
  EXPECT_EQ(RowOf(*plan, "uploads and downloads"), 32 * 2 * 374'903);
  EXPECT_EQ(RowOf(*plan, "messages on their way"), plan->max_rpc_memory_bytes);
  EXPECT_EQ(RowOf(*plan, "answers remembered by request id"), plan->max_request_id_bytes);
  EXPECT_EQ(RowOf(*plan, "parked sessions and snapshots"), plan->max_state_bytes);
  EXPECT_EQ(plan->needed, kGiB) << plan->Table();
  int64_t sum = 0;
  for (const MemoryPlan::Row& row : plan->rows) sum += row.bytes;
  EXPECT_EQ(sum, plan->needed);
  EXPECT_GT(plan->max_state_bytes, kGiB / 3);
  EXPECT_THAT(plan->Table(), AllOf(HasSubstr("--slots: 64 x 373760"), HasSubstr("control group")));
}

// The limits that are in use: a container's, an address space's, a large machine's.
TEST(MemoryPlan, FindsBoundsThatFitWhateverThereIs) {
  const std::vector<ModelMemory> models = {Books()};
  for (const bool mapped : {false, true}) {
    for (int64_t left = 230 * kMiB; left < 64 * kGiB; left += left / 7) {
      const auto plan = PlanMemory({}, models, Limit(left, mapped), 0);
      if (mapped && left < 500 * kMiB) continue;
      ASSERT_TRUE(plan.ok()) << left << mapped << plan.status();
      EXPECT_LE(plan->needed, left);
      EXPECT_GE(plan->max_rpc_memory_bytes, 16 * kMiB);
      EXPECT_LE(plan->max_rpc_memory_bytes, 2 * kGiB);
      EXPECT_LE(plan->max_request_id_bytes, 64 * kMiB);
      EXPECT_GE(plan->max_state_bytes, 380'928);
    }
  }
}

TEST(MemoryPlan, WhatDoesNotFitIsToldWithAllNumbersAndTheCure) {
  const std::vector<ModelMemory> models = {Books()};
  const auto plan = PlanMemory({}, models, Limit(100 * kMiB), 0);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(plan.status().message(),
              AllOf(HasSubstr("104857600 are left (control group)"), HasSubstr("--slots: 64 x 373760"),
                    HasSubstr("weights of models/books"), HasSubstr("bytes more")));
}

TEST(MemoryPlan, WhatFlagsSayIsTakenAsItIsOrRefused) {
  const std::vector<ModelMemory> models = {Books()};
  MemoryFlags flags{.max_state_bytes = 100 * kMiB, .max_rpc_memory_bytes = 300 * kMiB};
  const auto plan = PlanMemory(flags, models, Limit(kGiB), 0);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->max_state_bytes, 100 * kMiB);
  EXPECT_EQ(plan->max_rpc_memory_bytes, 300 * kMiB);
  EXPECT_LT(plan->needed, kGiB);
  flags.max_rpc_memory_bytes = kGiB;
  EXPECT_THAT(PlanMemory(flags, models, Limit(kGiB), 0).status().message(),
              HasSubstr("1073741824  messages on their way (--max_rpc_memory_bytes)"));
  flags = {.max_state_bytes = 1000};
  EXPECT_THAT(PlanMemory(flags, models, Limit(kGiB), 0).status().message(), HasSubstr("--max_state_bytes is 1000"));
}

TEST(MemoryPlan, TheLimitThatIsReachedFirstCounts) {
  const std::vector<MemoryLimit> limits = {{.name = "MemAvailable", .left = 8 * kGiB},
                                           {.name = "control group", .left = kGiB},
                                           {.name = "RLIMIT_AS", .left = kGiB + 100 * kMiB, .mapped = true}};
  const auto plan = PlanMemory({}, {}, limits, 0);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->limit.name, "RLIMIT_AS") << "stacks and arenas count there";
}

TEST(MemoryPlan, WithoutALimitThereIsNone) {
  const auto plan = PlanMemory({}, {}, {}, 0);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->max_state_bytes, INT64_MAX);
  EXPECT_EQ(plan->max_rpc_memory_bytes, 2 * kGiB);
  EXPECT_EQ(plan->max_request_id_bytes, 64 * kMiB);
}

TEST(MemoryPlan, AModelMoreTakesFromParkedStatesButNotWhatIsParked) {
  std::vector<ModelMemory> models = {Books()};
  const int64_t before = PlanMemory({}, models, Limit(kGiB), 0)->max_state_bytes;
  models.push_back(Books());
  models.back().id = "other";
  const auto both = PlanMemory({}, models, Limit(kGiB), before / 2);
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_LT(both->max_state_bytes, before);
  EXPECT_GE(both->max_state_bytes, before / 2);
  EXPECT_FALSE(PlanMemory({}, models, Limit(kGiB), before).ok());
}

TEST(MemoryPlan, OnADeviceOnlyParkedStatesAreTheHosts) {
  ModelMemory model = Books();
  model.weight_bytes = model.slot_bytes = model.batch_bytes = 0;
  const auto plan = PlanMemory({}, std::vector<ModelMemory>{model}, Limit(kGiB), 0);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(RowOf(*plan, "weights of models/books"), -1);
  EXPECT_EQ(RowOf(*plan, "slots of models/books"), -1);
  EXPECT_EQ(RowOf(*plan, "uploads and downloads"), 32 * 2 * 374'903);
}

}  // namespace
}  // namespace palimpsest
