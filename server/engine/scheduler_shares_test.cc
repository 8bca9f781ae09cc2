// Who is next: between owners, and within one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "server/engine/scheduler.h"

namespace palimpsest {
namespace {

using ::testing::ElementsAre;

Scheduler::Job JobOf(const std::string& owner, uint64_t id, int64_t prefill_rows, int64_t decode_rows,
                     Scheduler::Share share = {}) {
  return {.id = id,
          .prefill_rows = prefill_rows,
          .decode = decode_rows > 0,
          .decode_rows = decode_rows,
          .owner = owner,
          .share = share};
}

// Owners that keep a number of jobs in the scheduler, each of so many rows; runs batches and counts.
class Traffic {
 public:
  struct Load {
    std::string owner;
    int jobs = 0;  // at once
    int64_t prefill_rows = 0;
    int64_t decode_rows = 0;
    Scheduler::Share share = {};
  };

  Traffic(int32_t slots, int32_t budget, std::vector<Load> loads)
      : scheduler_(slots, budget), loads_(std::move(loads)) {
    for (const Load& load : loads_) {
      for (int i = 0; i < load.jobs; ++i) Submit(load);
    }
  }

  void Run(int batches) {
    std::vector<Scheduler::Item> items;
    for (int i = 0; i < batches; ++i) {
      while (const auto admission = scheduler_.Admit()) {
        slots_[admission->slot] = admission->id;
        most_slots_[owner_[admission->id]] =
            std::max(most_slots_[owner_[admission->id]], ++slots_of_[owner_[admission->id]]);
      }
      scheduler_.NextBatch(items);
      for (const Scheduler::Item& item : items) {
        const uint64_t id = slots_.at(item.slot);
        rows_[owner_[id]] += item.rows;
        left_[id] -= item.rows;
        if (left_[id] > 0) continue;
        scheduler_.Leave(item.slot);
        --slots_of_[owner_[id]];
        const auto load = std::ranges::find(loads_, owner_[id], &Load::owner);
        Submit(*load);
      }
    }
  }

  int64_t TakeRows(const std::string& owner) { return std::exchange(rows_[owner], 0); }
  int most_slots(const std::string& owner) { return most_slots_[owner]; }

 private:
  void Submit(const Load& load) {
    const uint64_t id = ++last_;
    owner_[id] = load.owner;
    left_[id] = load.prefill_rows + load.decode_rows;
    scheduler_.Enqueue(JobOf(load.owner, id, load.prefill_rows, load.decode_rows, load.share));
  }

  Scheduler scheduler_;
  std::vector<Load> loads_;
  uint64_t last_ = 0;
  std::map<int32_t, uint64_t> slots_;
  std::map<uint64_t, std::string> owner_;
  std::map<uint64_t, int64_t> left_;
  std::map<std::string, int64_t> rows_;
  std::map<std::string, int> slots_of_;
  std::map<std::string, int> most_slots_;
};

TEST(SchedulerShares, OwnersThatWaitGetTheSameHoweverMuchTheyAskFor) {
  Traffic traffic(8, 256, {{"a", 200, 40, 100}, {"b", 20, 40, 100}, {"c", 20, 300, 10}});
  traffic.Run(2000);
  const int64_t a = traffic.TakeRows("a"), b = traffic.TakeRows("b"), c = traffic.TakeRows("c");
  EXPECT_NEAR(static_cast<double>(a) / static_cast<double>(b), 1.0, 0.05);
  EXPECT_NEAR(static_cast<double>(c) / static_cast<double>(b), 1.0, 0.05);
}

TEST(SchedulerShares, WeightsDivideTheRows) {
  Traffic traffic(8, 256, {{"a", 40, 40, 100, {.weight = 3.0}}, {"b", 40, 40, 100}});
  traffic.Run(3000);
  EXPECT_NEAR(static_cast<double>(traffic.TakeRows("a")) / static_cast<double>(traffic.TakeRows("b")), 3.0, 0.15);
}

// One floods at ten times its share; the two others ask for less than theirs and get what they get alone.
TEST(SchedulerShares, WhoAsksForLessThanItsShareLosesNothingToAFlood) {
  const Traffic::Load modest = {"b", 4, 64, 100};
  const Traffic::Load other = {"c", 4, 64, 100};
  Traffic alone(16, 256, {modest, other});
  alone.Run(4000);
  Traffic flooded(16, 256, {{"a", 160, 64, 100}, modest, other});
  flooded.Run(4000);
  for (const char* owner : {"b", "c"}) {
    const auto before = static_cast<double>(alone.TakeRows(owner));
    EXPECT_GT(static_cast<double>(flooded.TakeRows(owner)), 0.9 * before) << owner;
  }
}

TEST(SchedulerShares, AnOwnerAloneHasAllSlotsUnlessItsShareSaysLess) {
  Traffic all(8, 256, {{"a", 20, 10, 100}});
  all.Run(50);
  EXPECT_EQ(all.most_slots("a"), 8);
  Traffic some(8, 256, {{"a", 20, 10, 100, {.max_slots = 3}}, {"b", 20, 10, 100}});
  some.Run(500);
  EXPECT_EQ(some.most_slots("a"), 3);
  EXPECT_EQ(some.most_slots("b"), 5);
}

TEST(SchedulerShares, AnOwnerAtItsLimitKeepsNoSlotFromAnother) {
  Scheduler scheduler(2, 64);
  for (uint64_t id = 1; id <= 3; ++id) scheduler.Enqueue(JobOf("a", id, 0, 5, {.max_slots = 1}));
  EXPECT_EQ(scheduler.Admit()->id, 1);
  EXPECT_FALSE(scheduler.Admit());
  std::vector<Scheduler::Item> items;
  scheduler.NextBatch(items);
  scheduler.Pause(0, true);
  EXPECT_FALSE(scheduler.HasWork()) << "the others wait for the slot of their owner";
  scheduler.Enqueue(JobOf("b", 4, 0, 5));
  EXPECT_TRUE(scheduler.HasWork());
  EXPECT_EQ(scheduler.Admit()->id, 4);
  scheduler.Leave(0);
  EXPECT_EQ(scheduler.Admit()->id, 2);
}

TEST(SchedulerShares, WhatWasUsedWhileNobodyWaitedIsNotHeldAgainstAnOwner) {
  // a has the machine to itself for long; then both wait, and neither is starved.
  Scheduler scheduler(1, 64);
  std::vector<Scheduler::Item> items;
  scheduler.Enqueue(JobOf("a", 1, 0, 1'000'000));
  ASSERT_TRUE(scheduler.Admit());
  for (int i = 0; i < 100'000; ++i) scheduler.NextBatch(items);
  for (uint64_t id = 10; id < 30; ++id) scheduler.Enqueue(JobOf("b", id, 0, 100));
  for (uint64_t id = 30; id < 50; ++id) scheduler.Enqueue(JobOf("a", id, 0, 100));
  int of_b = 0;
  for (int i = 0; i < 20; ++i) {
    scheduler.Leave(0);
    if (scheduler.Admit()->id < 30) ++of_b;
    for (int j = 0; j < 100; ++j) scheduler.NextBatch(items);
  }
  EXPECT_NEAR(of_b, 10, 1);
}

TEST(SchedulerShares, WhatWasNotUsedIsNotOwed) {
  Scheduler scheduler(1, 64);
  std::vector<Scheduler::Item> items;
  uint64_t id = 0;
  // a waits all the time and is served for long, while b does not ask.
  for (int i = 0; i < 100; ++i) scheduler.Enqueue(JobOf("a", ++id, 0, 100));
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(scheduler.Admit());
    for (int j = 0; j < 100; ++j) scheduler.NextBatch(items);
    scheduler.Leave(0);
  }
  for (int i = 0; i < 50; ++i) scheduler.Enqueue(JobOf("b", 1000 + ++id, 0, 100));
  int of_b = 0;
  for (int i = 0; i < 20; ++i) {
    if (scheduler.Admit()->id > 1000) ++of_b;
    for (int j = 0; j < 100; ++j) scheduler.NextBatch(items);
    scheduler.Leave(0);
  }
  EXPECT_NEAR(of_b, 10, 1);
}

TEST(SchedulerShares, AReplyThatEndsEarlyIsPaidForAsFarAsItRan) {
  // Both say that they may take many tokens; those of a end after ten.
  Scheduler scheduler(1, 64);
  std::vector<Scheduler::Item> items;
  for (uint64_t id = 1; id <= 2000; ++id) scheduler.Enqueue(JobOf(id % 2 == 0 ? "a" : "b", id, 0, 200));
  std::map<bool, int> rows;
  for (int i = 0; i < 500; ++i) {
    const bool is_a = scheduler.Admit()->id % 2 == 0;
    const int run = is_a ? 10 : 200;
    for (int j = 0; j < run; ++j) scheduler.NextBatch(items);
    rows[is_a] += run;
    scheduler.Leave(0);
  }
  EXPECT_NEAR(static_cast<double>(rows[true]) / rows[false], 1.0, 0.1);
}

TEST(SchedulerShares, AShortJobGetsInSoonHoweverManyLongOnesAreBeforeIt) {
  Scheduler scheduler(1, 64);
  std::vector<Scheduler::Item> items;
  for (uint64_t id = 1; id <= 256; ++id) scheduler.Enqueue(JobOf("a", id, 2000, 500));
  ASSERT_EQ(scheduler.Admit()->id, 1);
  scheduler.Enqueue(JobOf("a", 1000, 5, 10));
  int slots = 0;
  for (uint64_t id = 0; id != 1000; ++slots) {
    scheduler.Leave(0);
    id = scheduler.Admit()->id;
  }
  EXPECT_LE(slots, 2);
}

TEST(SchedulerShares, ALongJobIsNotPassedForEverByShortOnes) {
  Scheduler scheduler(1, 64);
  uint64_t id = 0;
  for (int i = 0; i < 10; ++i) scheduler.Enqueue(JobOf("a", ++id, 10, 10));
  scheduler.Enqueue(JobOf("a", 1000, 100'000, 1000));
  int slots = 0;
  for (uint64_t admitted = 0; admitted != 1000; ++slots) {
    ASSERT_LT(slots, 2 * 10 + 2);
    for (int i = 0; i < 3; ++i) scheduler.Enqueue(JobOf("a", ++id, 1, 1));
    admitted = scheduler.Admit()->id;
    scheduler.Leave(0);
  }
}

TEST(SchedulerShares, JobsAlikeGoInTheOrderOfArrival) {
  Scheduler scheduler(1, 64);
  std::vector<uint64_t> admitted;
  for (uint64_t id = 1; id <= 6; ++id) scheduler.Enqueue(JobOf("a", id, 10, 10));
  for (int i = 0; i < 6; ++i) {
    admitted.push_back(scheduler.Admit()->id);
    scheduler.Leave(0);
  }
  EXPECT_THAT(admitted, ElementsAre(1, 2, 3, 4, 5, 6));
}

// The prompt rows of each batch are divided, too: many prompts of one owner take no more of it than one of another.
TEST(SchedulerShares, OwnersShareThePromptRowsOfABatch) {
  Scheduler scheduler(9, 128);
  for (uint64_t id = 1; id <= 8; ++id) scheduler.Enqueue(JobOf("a", id, 100'000, 1));
  scheduler.Enqueue(JobOf("b", 9, 100'000, 1));
  std::map<int32_t, uint64_t> ids;
  while (const auto admission = scheduler.Admit()) ids[admission->slot] = admission->id;
  std::vector<Scheduler::Item> items;
  int64_t of_b = 0, rows = 0;
  for (int i = 0; i < 100; ++i) {
    scheduler.NextBatch(items);
    for (const Scheduler::Item& item : items) {
      rows += item.rows;
      if (ids[item.slot] == 9) of_b += item.rows;
    }
  }
  EXPECT_EQ(rows, 100 * 128);
  EXPECT_EQ(of_b, 100 * 64);
}

TEST(SchedulerShares, AnOwnersPromptRowsInABatchMayBeLimited) {
  Scheduler scheduler(3, 512);
  scheduler.Enqueue(JobOf("a", 1, 10'000, 1, {.prefill_budget = 100}));
  scheduler.Enqueue(JobOf("a", 2, 10'000, 1, {.prefill_budget = 100}));
  while (scheduler.Admit()) {
  }
  std::vector<Scheduler::Item> items;
  const auto rows = [&] {
    scheduler.NextBatch(items);
    return std::accumulate(items.begin(), items.end(), int64_t{0},
                           [](int64_t sum, const Scheduler::Item& item) { return sum + item.rows; });
  };
  EXPECT_EQ(rows(), 64);
  EXPECT_EQ(items[0].slot, 0);
  EXPECT_EQ(rows(), 64);
  EXPECT_EQ(items[0].slot, 1);
  scheduler.Enqueue(JobOf("b", 3, 10'000, 1));
  scheduler.Admit();
  EXPECT_EQ(rows(), 64 + 448);
}

TEST(SchedulerShares, TheNewestOfAnOwnerIsTheOneThatCameLast) {
  Scheduler scheduler(1, 64);
  EXPECT_FALSE(scheduler.newest_waiting("a"));
  for (uint64_t id = 1; id <= 3; ++id) scheduler.Enqueue(JobOf("a", id, 1, 1));
  scheduler.Enqueue(JobOf("b", 4, 1, 1));
  EXPECT_EQ(scheduler.newest_waiting("a"), 3);
  EXPECT_EQ(scheduler.newest_waiting("b"), 4);
  EXPECT_EQ(scheduler.first_waiting(), 1);
}

// Whatever comes and goes, what owners that always wait have had stays together.
TEST(SchedulerShares, NoOwnerThatWaitsFallsBehind) {
  std::mt19937 random(11);
  for (int round = 0; round < 20; ++round) {
    std::vector<Traffic::Load> loads;
    for (const char* owner : {"a", "b", "c", "d"}) {
      loads.push_back({owner, 30 + static_cast<int>(random() % 30), static_cast<int64_t>(random() % 300),
                       static_cast<int64_t>(1 + random() % 300)});
    }
    Traffic traffic(4 + static_cast<int32_t>(random() % 12), 64 + static_cast<int32_t>(random() % 400), loads);
    traffic.Run(5000);
    std::vector<int64_t> rows;
    for (const auto& load : loads) rows.push_back(traffic.TakeRows(load.owner));
    EXPECT_LT(static_cast<double>(std::ranges::max(rows)), 1.1 * static_cast<double>(std::ranges::min(rows)) + 20'000)
        << round;
  }
}

}  // namespace
}  // namespace palimpsest
