#include "server/engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"

namespace palimpsest {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Work = Scheduler::Work;

// "slot:d", "slot:f", "slot:begin+rows"; a "!" when the prompt is complete.
std::vector<std::string> Next(Scheduler& scheduler) {
  std::vector<Scheduler::Item> items;
  scheduler.NextBatch(items);
  std::vector<std::string> text;
  for (const Scheduler::Item& item : items) {
    const std::string what = item.work == Work::kDecode ? "d"
                             : item.work == Work::kFeed ? "f"
                                                        : absl::StrCat(item.begin, "+", item.rows);
    text.push_back(absl::StrCat(item.slot, ":", what, item.completes_prompt ? "!" : ""));
  }
  return text;
}

Scheduler::Job Prompt(uint64_t id, int64_t rows) { return {.id = id, .prefill_rows = rows, .decode = true}; }

void AdmitAll(Scheduler& scheduler) {
  while (scheduler.Admit()) {
  }
}

TEST(Scheduler, AdmitsInTheOrderOfArrivalIntoFreeSlots) {
  Scheduler scheduler(2, 64);
  for (const uint64_t id : {10, 11, 12, 13}) scheduler.Enqueue(Prompt(id, 1));
  EXPECT_EQ(scheduler.waiting(), 4);
  EXPECT_EQ(scheduler.Admit()->id, 10);
  const Scheduler::Admission second = *scheduler.Admit();
  EXPECT_EQ(second.id, 11);
  EXPECT_FALSE(scheduler.Admit());
  EXPECT_TRUE(scheduler.Withdraw(12));
  EXPECT_FALSE(scheduler.Withdraw(12));
  EXPECT_FALSE(scheduler.Withdraw(10));
  scheduler.Leave(second.slot);
  const Scheduler::Admission third = *scheduler.Admit();
  EXPECT_EQ(third.id, 13);
  EXPECT_EQ(third.slot, second.slot);
  EXPECT_EQ(scheduler.running(), 2);
  EXPECT_EQ(scheduler.waiting(), 0);
}

TEST(Scheduler, HasWorkWhileSomeoneCanBeAdmittedOrRun) {
  Scheduler scheduler(1, 64);
  EXPECT_FALSE(scheduler.HasWork());
  for (const uint64_t id : {1, 2}) scheduler.Enqueue(Prompt(id, 1));
  EXPECT_TRUE(scheduler.HasWork());
  const int32_t slot = scheduler.Admit()->slot;
  EXPECT_TRUE(scheduler.HasWork()) << "a prompt to take in";
  scheduler.Pause(slot, true);
  EXPECT_TRUE(scheduler.HasWork()) << "which holding does not stop";
  EXPECT_THAT(Next(scheduler), ElementsAre("0:0+1!"));
  EXPECT_FALSE(scheduler.HasWork()) << "the one is paused, the other finds no slot";
  scheduler.Pause(slot, false);
  EXPECT_TRUE(scheduler.HasWork());
  scheduler.Pause(slot, true);
  scheduler.Leave(slot);
  EXPECT_TRUE(scheduler.HasWork()) << "a slot for the other";
  scheduler.Admit();
  EXPECT_THAT(Next(scheduler), ElementsAre("0:0+1!"));
  scheduler.Leave(slot);
  EXPECT_FALSE(scheduler.HasWork());
}

TEST(Scheduler, TakesAPromptInWholeChunksAndThenDecodes) {
  Scheduler scheduler(1, 64);
  scheduler.Enqueue(Prompt(1, 130));
  AdmitAll(scheduler);
  EXPECT_THAT(Next(scheduler), ElementsAre("0:0+64"));
  EXPECT_THAT(Next(scheduler), ElementsAre("0:64+64"));
  EXPECT_THAT(Next(scheduler), ElementsAre("0:128+2!"));
  EXPECT_THAT(Next(scheduler), ElementsAre("0:d"));
  EXPECT_THAT(Next(scheduler), ElementsAre("0:d"));
}

TEST(Scheduler, NeverCutsAChunkToFitTheBudget) {
  for (const int32_t budget : {1, 63, 64}) {
    Scheduler scheduler(1, budget);
    scheduler.Enqueue(Prompt(1, 129));
    AdmitAll(scheduler);
    EXPECT_THAT(Next(scheduler), ElementsAre("0:0+64"));
    EXPECT_THAT(Next(scheduler), ElementsAre("0:64+64"));
    EXPECT_THAT(Next(scheduler), ElementsAre("0:128+1!"));
  }
}

TEST(Scheduler, GivesAPromptAloneTheWholeBudgetAsOneRun) {
  Scheduler scheduler(1, 256);
  scheduler.Enqueue(Prompt(1, 300));
  AdmitAll(scheduler);
  EXPECT_THAT(Next(scheduler), ElementsAre("0:0+256"));
  EXPECT_THAT(Next(scheduler), ElementsAre("0:256+44!"));
}

TEST(Scheduler, LetsPromptsTakeTurnsAcrossBatches) {
  Scheduler scheduler(3, 128);
  for (const uint64_t id : {1, 2, 3}) scheduler.Enqueue(Prompt(id, 200));
  AdmitAll(scheduler);
  EXPECT_THAT(Next(scheduler), ElementsAre("0:0+64", "1:0+64"));
  EXPECT_THAT(Next(scheduler), ElementsAre("2:0+64", "0:64+64"));
  EXPECT_THAT(Next(scheduler), ElementsAre("1:64+64", "2:64+64"));
  EXPECT_THAT(Next(scheduler), ElementsAre("0:128+64", "1:128+64"));
  EXPECT_THAT(Next(scheduler), ElementsAre("2:128+72!", "0:192+8!", "1:192+8!"));
  EXPECT_THAT(Next(scheduler), ElementsAre("0:d", "1:d", "2:d"));
}

TEST(Scheduler, AShortPromptDoesNotWaitForALongOne) {
  Scheduler scheduler(2, 64);
  scheduler.Enqueue(Prompt(1, 100'000));
  scheduler.Enqueue(Prompt(2, 10));
  AdmitAll(scheduler);
  EXPECT_THAT(Next(scheduler), ElementsAre("0:0+64"));
  EXPECT_THAT(Next(scheduler), ElementsAre("1:0+10!"));
  EXPECT_THAT(Next(scheduler), ElementsAre("1:d", "0:64+64"));
}

TEST(Scheduler, DecodesEveryReadySlotBesideThePrompts) {
  Scheduler scheduler(3, 64);
  scheduler.Enqueue(Prompt(1, 0));
  scheduler.Enqueue(Prompt(2, 0));
  scheduler.Enqueue(Prompt(3, 70));
  AdmitAll(scheduler);
  EXPECT_THAT(Next(scheduler), ElementsAre("0:d", "1:d", "2:0+64"));
  scheduler.Pause(0, true);
  EXPECT_THAT(Next(scheduler), ElementsAre("1:d", "2:64+6!"));
  EXPECT_THAT(Next(scheduler), ElementsAre("1:d", "2:d"));
  scheduler.Pause(0, false);
  EXPECT_THAT(Next(scheduler), ElementsAre("0:d", "1:d", "2:d"));
}

TEST(Scheduler, FeedsThePendingTokenInAStepOfItsOwn) {
  Scheduler scheduler(3, 256);
  scheduler.Enqueue({.id = 1, .feed = true, .prefill_rows = 65, .decode = true});
  scheduler.Enqueue({.id = 2, .feed = true, .prefill_rows = 0, .decode = true});
  scheduler.Enqueue({.id = 3, .feed = true, .prefill_rows = 3, .decode = false});
  AdmitAll(scheduler);
  EXPECT_THAT(Next(scheduler), ElementsAre("0:f", "1:f!", "2:f"));
  EXPECT_THAT(Next(scheduler), ElementsAre("1:d", "0:0+64", "2:0+3!"));
  EXPECT_THAT(Next(scheduler), ElementsAre("1:d", "0:64+1!"));
  EXPECT_THAT(Next(scheduler), ElementsAre("0:d", "1:d"));
}

TEST(Scheduler, ALastChunkOfOneRowGoesAlone) {
  Scheduler scheduler(2, 1000);
  scheduler.Enqueue({.id = 1, .prefill_rows = 129});
  scheduler.Enqueue({.id = 2, .prefill_rows = 1});
  AdmitAll(scheduler);
  EXPECT_THAT(Next(scheduler), ElementsAre("0:0+128", "1:0+1!"));
  EXPECT_THAT(Next(scheduler), ElementsAre("0:128+1!"));
  EXPECT_THAT(Next(scheduler), ElementsAre());
}

TEST(Scheduler, AJobThatOnlyAppendsStopsAfterItsPrompt) {
  Scheduler scheduler(2, 64);
  scheduler.Enqueue({.id = 1, .prefill_rows = 5});
  scheduler.Enqueue({.id = 2});
  AdmitAll(scheduler);
  EXPECT_THAT(Next(scheduler), ElementsAre("0:0+5!"));
  EXPECT_THAT(Next(scheduler), IsEmpty());
}

TEST(Scheduler, ASlotLeftInTheMiddleOfAPromptLosesItsTurn) {
  Scheduler scheduler(2, 64);
  scheduler.Enqueue(Prompt(1, 200));
  scheduler.Enqueue(Prompt(2, 200));
  AdmitAll(scheduler);
  EXPECT_THAT(Next(scheduler), ElementsAre("0:0+64"));
  scheduler.Leave(0);
  EXPECT_THAT(Next(scheduler), ElementsAre("1:0+64"));
  scheduler.Enqueue(Prompt(3, 10));
  EXPECT_EQ(scheduler.Admit()->slot, 0);
  EXPECT_THAT(Next(scheduler), ElementsAre("1:64+64"));
  EXPECT_THAT(Next(scheduler), ElementsAre("0:0+10!"));
}

TEST(Scheduler, KnowsTheDeadlinesOfWaitingAndRunningJobs) {
  const absl::Time start = absl::FromUnixSeconds(100);
  Scheduler scheduler(1, 64);
  EXPECT_EQ(scheduler.NextDeadline(), absl::InfiniteFuture());
  scheduler.Enqueue({.id = 1, .deadline = start + absl::Seconds(3), .decode = true});
  scheduler.Enqueue({.id = 2, .deadline = start + absl::Seconds(2), .decode = true});
  scheduler.Enqueue({.id = 3, .decode = true});
  AdmitAll(scheduler);
  EXPECT_EQ(scheduler.NextDeadline(), start + absl::Seconds(2));
  EXPECT_THAT(scheduler.Expired(start), IsEmpty());
  EXPECT_THAT(scheduler.Expired(start + absl::Seconds(2)), ElementsAre(2));
  EXPECT_THAT(scheduler.Expired(start + absl::Seconds(3)), ElementsAre(2, 1));
  scheduler.Withdraw(2);
  scheduler.Leave(0);
  EXPECT_EQ(scheduler.NextDeadline(), absl::InfiniteFuture());
}

// Whatever comes and goes: chunks come in order, whole, from multiples of the chunk; the budget holds but for the first
// chunk; nobody is starved.
TEST(Scheduler, KeepsItsLawsUnderRandomTraffic) {
  std::mt19937 random(7);
  for (int round = 0; round < 50; ++round) {
    const auto slots = static_cast<int32_t>(1 + random() % 9);
    const auto budget = static_cast<int32_t>(1 + random() % 400);
    Scheduler scheduler(slots, budget);
    struct Seen {
      Scheduler::Job job;
      bool fed = false;
      int64_t prefilled = 0;
      int waited = 0;
    };
    std::map<int32_t, Seen> by_slot;
    std::map<uint64_t, Scheduler::Job> jobs;
    uint64_t id = 0;
    std::vector<Scheduler::Item> items;
    for (int step = 0; step < 300; ++step) {
      if (random() % 3 == 0) {
        const Scheduler::Job job{.id = ++id,
                                 .feed = random() % 2 == 0,
                                 .prefill_rows = static_cast<int64_t>(random() % 500),
                                 .decode = random() % 4 != 0};
        jobs[id] = job;
        scheduler.Enqueue(job);
      }
      while (const auto admitted = scheduler.Admit()) {
        ASSERT_FALSE(by_slot.contains(admitted->slot));
        by_slot[admitted->slot] = {.job = jobs[admitted->id]};
      }
      scheduler.NextBatch(items);
      std::map<int32_t, const Scheduler::Item*> batch;
      int64_t prefill_rows = 0;
      for (const Scheduler::Item& item : items) {
        ASSERT_TRUE(batch.emplace(item.slot, &item).second);
        Seen& seen = by_slot.at(item.slot);
        switch (item.work) {
          case Work::kFeed:
            ASSERT_TRUE(seen.job.feed && !seen.fed && seen.prefilled == 0);
            seen.fed = true;
            break;
          case Work::kPrefill:
            ASSERT_EQ(seen.fed, seen.job.feed);
            ASSERT_EQ(item.begin, seen.prefilled);
            ASSERT_EQ(item.begin % kChunk, 0);
            seen.prefilled += item.rows;
            ASSERT_TRUE(item.rows % kChunk == 0 || seen.prefilled == seen.job.prefill_rows);
            prefill_rows += item.rows;
            break;
          case Work::kDecode:
            ASSERT_TRUE(seen.job.decode && seen.fed == seen.job.feed && seen.prefilled == seen.job.prefill_rows);
            break;
        }
        if (item.work != Work::kDecode) {
          ASSERT_EQ(item.completes_prompt, seen.prefilled == seen.job.prefill_rows);
        }
      }
      ASSERT_LE(prefill_rows, std::max(budget, kChunk));
      for (auto it = by_slot.begin(); it != by_slot.end();) {
        Seen& seen = it->second;
        const bool prompt_done = seen.fed == seen.job.feed && seen.prefilled == seen.job.prefill_rows;
        seen.waited = prompt_done || batch.contains(it->first) ? 0 : seen.waited + 1;
        ASSERT_LE(seen.waited, slots);
        if (prompt_done && (!seen.job.decode || random() % 5 == 0)) {
          scheduler.Leave(it->first);
          it = by_slot.erase(it);
        } else {
          ++it;
        }
      }
    }
  }
}

}  // namespace
}  // namespace palimpsest
