#include "server/engine/waiting_room.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/status/status.h"

namespace palimpsest {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(WaitingRoom, LetsInAsManyAsThereAreSlotsAndPlaces) {
  WaitingRoom room(2, 3);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(room.Enter("a", {}).ok());
  const absl::Status refused = room.Enter("a", {});
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("the queue is full: 5 requests are here, 2 of them run at once"));
  EXPECT_EQ(room.here(), 5);
  EXPECT_EQ(room.waiting(), 5);
  room.GetSlot("a");
  EXPECT_EQ(room.waiting(), 4);
  EXPECT_FALSE(room.Enter("a", {}).ok());
  room.End("a", /*has_slot=*/true);
  EXPECT_FALSE(room.Enter("a", {}).ok()) << "its end has not been told";
  room.Leave(/*made_room=*/false);
  EXPECT_TRUE(room.Enter("a", {}).ok());
}

TEST(WaitingRoom, AnOwnerOverItsShareIsRefusedByItsName) {
  WaitingRoom room(4, 10);
  const EngineShare share = {.max_slots = 1, .max_queue = 2};
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(room.Enter("a", share).ok());
  const absl::Status refused = room.Enter("a", share);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("the share of owner a is used up: 3 of its requests are here, it may have 1 "
                                           "slots (max_slots) and 2 places in the queue (max_queue)"));
  EXPECT_TRUE(room.Enter("b", {}).ok());
  room.GetSlot("a");
  EXPECT_FALSE(room.Enter("a", share).ok());
  room.End("a", /*has_slot=*/true);
  EXPECT_TRUE(room.Enter("a", share).ok());
}

TEST(WaitingRoom, AShareLargerThanTheQueueIsTheQueue) {
  WaitingRoom room(1, 1);
  const EngineShare share = {.max_slots = 1000, .max_queue = 2147483647};
  EXPECT_TRUE(room.Enter("a", share).ok());
  EXPECT_TRUE(room.Enter("a", share).ok());
  EXPECT_THAT(room.Enter("a", share).message(), HasSubstr("the queue is full"));
}

TEST(WaitingRoom, WhoHasLessTakesAPlaceOfWhoHasMost) {
  WaitingRoom room(0, 6);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(room.Enter("flood", {}).ok());
  EXPECT_TRUE(room.Enter("b", {}).ok());
  EXPECT_FALSE(room.Enter("flood", {}).ok());
  EXPECT_THAT(room.making_room(), IsEmpty());
  EXPECT_TRUE(room.Enter("c", {}).ok());
  EXPECT_TRUE(room.Enter("b", {}).ok());
  EXPECT_THAT(room.making_room(), ElementsAre("flood", "flood"));
  // 3, 2 and 1: for c one more makes 2 and leaves 2. Then nobody may go on at another's cost.
  EXPECT_TRUE(room.Enter("c", {}).ok());
  for (const char* owner : {"flood", "b", "c", "flood"}) EXPECT_FALSE(room.Enter(owner, {}).ok()) << owner;
  EXPECT_EQ(room.making_room().size(), 3);
  for (int i = 0; i < 3; ++i) room.MakeRoom("flood");
  EXPECT_THAT(room.making_room(), IsEmpty());
  EXPECT_EQ(room.here(), 9);
  for (int i = 0; i < 3; ++i) room.Leave(/*made_room=*/true);
  EXPECT_EQ(room.here(), 6);
  EXPECT_FALSE(room.Enter("b", {}).ok());
  EXPECT_TRUE(room.Enter("d", {}).ok());
}

TEST(WaitingRoom, PlacesGoByWeight) {
  WaitingRoom room(0, 8);
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(room.Enter("a", {}).ok());
  int entered = 0;
  while (room.Enter("b", {.weight = 3.0}).ok()) ++entered;
  EXPECT_EQ(entered, 6);
}

TEST(WaitingRoom, WhoRunsMakesNoRoom) {
  WaitingRoom room(2, 0);
  EXPECT_TRUE(room.Enter("a", {}).ok());
  EXPECT_TRUE(room.Enter("a", {}).ok());
  room.GetSlot("a");
  room.GetSlot("a");
  EXPECT_FALSE(room.Enter("b", {}).ok());
}

TEST(WaitingRoom, WhoIsToMakeRoomMayEndByItself) {
  WaitingRoom room(0, 2);
  EXPECT_TRUE(room.Enter("a", {}).ok());
  EXPECT_TRUE(room.Enter("a", {}).ok());
  EXPECT_TRUE(room.Enter("b", {}).ok());
  room.End("a", /*has_slot=*/false);
  room.End("a", /*has_slot=*/false);
  EXPECT_THAT(room.making_room(), IsEmpty());
  room.Leave(/*made_room=*/false);
  room.Leave(/*made_room=*/false);
  EXPECT_EQ(room.here(), 1);
  EXPECT_EQ(room.owners().size(), 1);
  EXPECT_TRUE(room.Enter("a", {}).ok());
  EXPECT_FALSE(room.Enter("a", {}).ok());
}

}  // namespace
}  // namespace palimpsest
