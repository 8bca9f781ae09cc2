// What models leave is shared out anew whenever one comes or goes.
#include "server/rpc/memory_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace palimpsest {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kState = 2 * kMiB;  // of whole large pages

ModelMemory Model(std::string id, int64_t weights) {
  return {.id = std::move(id),
          .weight_bytes = weights,
          .slot_bytes = kState,
          .batch_bytes = kMiB,
          .slots = 4,
          .parked_bytes = ParkedBytes(kState),
          .snapshot_bytes = kState + 2000};
}

class MemoryBudgetTest : public ::testing::Test {
 protected:
  MemoryBudgetTest() { EXPECT_TRUE(budget_.Begin().ok()); }
  int64_t MaxStateBytes() const { return sessions_.use().limits.max_state_bytes; }
  // Parks sessions until their bytes are over `bytes`.
  void Park(int64_t bytes) {
    while (sessions_.use().all.state_bytes <= bytes) {
      ASSERT_TRUE(sessions_.Create(kDefaultOwner, {.id = "", .model = "m", .state_bytes = kState}, SteadyNow()).ok());
    }
  }

  SessionStore sessions_{{}};
  RequestTable requests_{100, INT64_MAX};
  ReplyBudget replies_{INT64_MAX};
  MemoryBudget budget_{{}, {{.name = "control group", .left = 1024 * kMiB}}, &sessions_, &requests_, &replies_};
};

TEST_F(MemoryBudgetTest, AModelTakesItsPartAndGivesItBack) {
  const int64_t before = MaxStateBytes();
  auto room = budget_.Admit(Model("a", 100 * kMiB));
  ASSERT_TRUE(room.ok()) << room.status();
  EXPECT_LT(MaxStateBytes(), before);
  EXPECT_EQ(MaxStateBytes(), budget_.plan().max_state_bytes);
  EXPECT_EQ(requests_.counts().max_bytes, budget_.plan().max_request_id_bytes);
  EXPECT_EQ(replies_.counts().max_bytes, budget_.plan().max_reply_bytes);
  EXPECT_EQ(budget_.plan().needed, 1024 * kMiB);
  *room = nullptr;
  EXPECT_EQ(MaxStateBytes(), before);
}

TEST_F(MemoryBudgetTest, AModelThatDoesNotFitChangesNothing) {
  const auto room = budget_.Admit(Model("a", 100 * kMiB));
  const int64_t before = MaxStateBytes();
  const absl::Status refused = budget_.Admit(Model("large", 900 * kMiB)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("weights of models/large"));
  EXPECT_EQ(MaxStateBytes(), before);
}

TEST_F(MemoryBudgetTest, WhatIsParkedStaysParked) {
  const auto room = budget_.Admit(Model("a", 100 * kMiB));
  Park(MaxStateBytes() / 2);
  const int64_t before = MaxStateBytes();
  const int64_t parked = sessions_.use().all.state_bytes;
  EXPECT_FALSE(budget_.Admit(Model("b", before)).ok()) << "it would fit if nothing were parked";
  EXPECT_EQ(MaxStateBytes(), before);
  const auto second = budget_.Admit(Model("b", 10 * kMiB));
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_GE(MaxStateBytes(), parked);
  EXPECT_LT(MaxStateBytes(), before);
}

}  // namespace
}  // namespace palimpsest
