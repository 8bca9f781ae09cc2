// The parts of this room that need no server: request ids, page tokens, error details.
#include <gmock/gmock.h>
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/support/status.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "server/rpc/background.h"
#include "server/rpc/page_token.h"
#include "server/rpc/reply_budget.h"
#include "server/rpc/request_table.h"
#include "server/rpc/status.h"
#include "server/rpc/testing/test_server.h"

namespace palimpsest {
namespace {

using ::palimpsest::testing::DetailsOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Lt;
using ::testing::Not;
using ::testing::SizeIs;

std::string Uuid(int number) { return absl::StrCat("8c2d7d9a-3f0e-4b65-9a51-5a7d4be1", 1000 + number); }

class RequestTableTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::string> Once(const std::string& id, const std::string& request, absl::Time now) {
    return table_.Once("me", "Create", id, request, now,
                       [&]() -> absl::StatusOr<std::string> { return absl::StrCat("answer ", ++runs_); });
  }
  RequestTable table_{3, 1 << 20};
  int runs_ = 0;
  const absl::Time start_ = absl::FromUnixSeconds(1'000'000);
};

TEST_F(RequestTableTest, TheSameIdGivesTheSameAnswerForTenMinutes) {
  EXPECT_EQ(*Once(Uuid(1), "request", start_), "answer 1");
  EXPECT_EQ(*Once(Uuid(1), "request", start_ + absl::Minutes(10) - absl::Seconds(1)), "answer 1");
  EXPECT_EQ(runs_, 1);
  EXPECT_EQ(*Once(Uuid(1), "request", start_ + absl::Minutes(10)), "answer 2");
}

TEST_F(RequestTableTest, LettersOfTheIdMayBeOfEitherCase) {
  std::string upper = Uuid(1);
  for (char& c : upper) c = static_cast<char>(std::toupper(c));
  EXPECT_EQ(*Once(Uuid(1), "request", start_), "answer 1");
  EXPECT_EQ(*Once(upper, "request", start_), "answer 1");
}

TEST_F(RequestTableTest, WithoutAnIdNothingIsRemembered) {
  EXPECT_EQ(*Once("", "request", start_), "answer 1");
  EXPECT_EQ(*Once("", "request", start_), "answer 2");
}

TEST_F(RequestTableTest, AnotherRequestUnderTheSameIdIsRefused) {
  ASSERT_TRUE(Once(Uuid(1), "request", start_).ok());
  EXPECT_EQ(Once(Uuid(1), "another", start_).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Once("no uuid", "request", start_).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(runs_, 1);
}

TEST_F(RequestTableTest, AFailureIsNotRemembered) {
  const auto fail = [] { return absl::StatusOr<std::string>(absl::NotFoundError("gone")); };
  EXPECT_EQ(table_.Once("me", "Create", Uuid(1), "request", start_, fail).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(*Once(Uuid(1), "request", start_), "answer 1");
}

TEST_F(RequestTableTest, AnIdWhoseCallIsRunningIsAborted) {
  absl::Status inner;
  const auto act = [&]() -> absl::StatusOr<std::string> {
    inner = Once(Uuid(1), "request", start_).status();
    return std::string("outer");
  };
  EXPECT_EQ(*table_.Once("me", "Create", Uuid(1), "request", start_, act), "outer");
  EXPECT_EQ(inner.code(), absl::StatusCode::kAborted);
}

TEST_F(RequestTableTest, AFullTableRefusesNewIdsAndForgetsNoneTooEarly) {
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Once(Uuid(i), "request", start_ + absl::Seconds(i)).ok());
  EXPECT_EQ(Once(Uuid(9), "request", start_ + absl::Minutes(5)).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(*Once(Uuid(0), "request", start_ + absl::Minutes(5)), "answer 1");
  EXPECT_EQ(*Once(Uuid(9), "request", start_ + absl::Minutes(10)), "answer 4");
}

TEST_F(RequestTableTest, MethodsDoNotShareIds) {
  EXPECT_EQ(*Once(Uuid(1), "request", start_), "answer 1");
  const auto other = [] { return absl::StatusOr<std::string>("fork"); };
  EXPECT_EQ(*table_.Once("me", "Fork", Uuid(1), "request", start_, other), "fork");
}

TEST_F(RequestTableTest, OwnersDoNotShareIds) {
  EXPECT_EQ(*Once(Uuid(1), "request", start_), "answer 1");
  const auto other = [] { return absl::StatusOr<std::string>("another's"); };
  EXPECT_EQ(*table_.Once("you", "Create", Uuid(1), "another request", start_, other), "another's");
}

TEST(RequestTableBytes, AreBoundedAndComeBack) {
  const absl::Time start = absl::FromUnixSeconds(1'000'000);
  RequestTable table(1000, 4 * RequestTable::kEntryBytes);
  const auto once = [&](int id, size_t bytes, absl::Time now) {
    return table.Once("me", "Fork", Uuid(id), "request", now,
                      [bytes]() -> absl::StatusOr<std::string> { return std::string(bytes, 'x'); });
  };
  const auto fail = [] { return absl::StatusOr<std::string>(absl::NotFoundError("gone")); };
  EXPECT_FALSE(table.Once("me", "Fork", Uuid(1), "request", start, fail).ok());
  EXPECT_EQ(table.counts().bytes, 0);
  ASSERT_TRUE(once(1, 10, start).ok());
  ASSERT_TRUE(once(2, RequestTable::kEntryBytes, start + absl::Minutes(1)).ok());
  const absl::Status refused = once(3, 10, start + absl::Minutes(2)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("--max_request_id_bytes"));
  EXPECT_EQ(DetailsOf(ToGrpc(refused)).reason, "REQUEST_ID_BYTES_LIMIT");
  EXPECT_EQ(DetailsOf(ToGrpc(refused)).retry_seconds, 30);
  EXPECT_EQ(table.counts().refusals, 1);
  // What is remembered stays so, and without an id nothing is refused.
  EXPECT_EQ(once(2, 1, start + absl::Minutes(2))->size(), RequestTable::kEntryBytes);
  const auto done = [] { return absl::StatusOr<std::string>("done"); };
  EXPECT_TRUE(table.Once("me", "Fork", "", "request", start + absl::Minutes(2), done).ok());
  EXPECT_TRUE(once(3, 10, start + absl::Minutes(10)).ok());
  table.SetMaxBytes(1);
  EXPECT_FALSE(once(4, 10, start + absl::Minutes(20)).ok()) << "not even an empty answer fits";
  table.SetMaxBytes(1 << 20);
  EXPECT_TRUE(once(4, 10, start + absl::Minutes(20)).ok());
  EXPECT_EQ(table.counts().ids, 1);
  EXPECT_EQ(table.counts().bytes, RequestTable::kEntryBytes + 10);
}

TEST(PageTokens, LeadBackToTheLastId) {
  const PageTokens tokens;
  EXPECT_EQ(*tokens.Read("sessions", tokens.Make("sessions", "abc")), "abc");
  EXPECT_EQ(*tokens.Read("sessions", ""), "");
}

TEST(PageTokens, OfAnotherListOrServerOrWithAnyBitChangedAreRefused) {
  const PageTokens tokens;
  const PageTokens other;
  const std::string token = tokens.Make("sessions", "abc");
  EXPECT_FALSE(tokens.Read("snapshots", token).ok());
  EXPECT_FALSE(other.Read("sessions", token).ok());
  for (size_t i = 0; i < token.size(); ++i) {
    std::string changed = token;
    changed[i] = changed[i] == 'A' ? 'B' : 'A';
    EXPECT_FALSE(tokens.Read("sessions", changed).ok()) << i;
    EXPECT_FALSE(tokens.Read("sessions", token.substr(0, i)).ok() && i > 0) << i;
  }
  EXPECT_FALSE(tokens.Read("sessions", std::string(10'000, 'A')).ok());
}

TEST(Status, CarriesAReasonEvenIfNobodyGaveOne) {
  const grpc::Status status = ToGrpc(absl::DataLossError("damaged"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_EQ(status.error_message(), "damaged");
  EXPECT_EQ(DetailsOf(status).reason, "DATA_DAMAGED");
  EXPECT_EQ(DetailsOf(status).domain, "palimpsest.dev");
  EXPECT_EQ(DetailsOf(status).retry_seconds, -1);
}

TEST(Status, SaysWhenToRetryUnlessItCannotHelp) {
  EXPECT_EQ(DetailsOf(ToGrpc(absl::ResourceExhaustedError("full"))).retry_seconds, 1);
  EXPECT_EQ(DetailsOf(ToGrpc(absl::UnavailableError("draining"))).retry_seconds, 1);
  EXPECT_NEAR(DetailsOf(ToGrpc(absl::AbortedError("busy"))).retry_seconds, 0.1, 1e-9);
  EXPECT_EQ(DetailsOf(ToGrpc(WithRetryAfter(absl::AbortedError("busy"), absl::Seconds(5)))).retry_seconds, 5);
  EXPECT_EQ(DetailsOf(ToGrpc(WithoutRetry(absl::ResourceExhaustedError("too long")))).retry_seconds, -1);
}

TEST(ReplyBudget, OneConnectionMayHaveHalfOfIt) {
  ReplyBudget budget(1000);
  ReplyBudget::Hold first, second, third;
  EXPECT_TRUE(budget.Take("a", 500, &first).ok());
  const absl::Status own = budget.Take("a", 1, &second);
  EXPECT_EQ(own.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(DetailsOf(ToGrpc(own)).reason, "REPLIES_UNREAD");
  EXPECT_EQ(DetailsOf(ToGrpc(own)).retry_seconds, 1);
  EXPECT_TRUE(budget.Take("b", 500, &second).ok());
  EXPECT_EQ(DetailsOf(ToGrpc(budget.Take("c", 1, &third))).reason, "REPLIES_UNREAD");
  EXPECT_EQ(budget.counts().bytes, 1000);
  first = ReplyBudget::Hold();
  EXPECT_TRUE(budget.Take("c", 1, &third).ok());
  EXPECT_EQ(budget.counts().bytes, 501);
}

TEST(ReplyBudget, EmptyAnswersMayComeAndGoInAnyOrder) {
  ReplyBudget budget(1000);
  {
    ReplyBudget::Hold empty, full, other;
    EXPECT_TRUE(budget.Take("a", 0, &empty).ok());
    EXPECT_TRUE(budget.Take("a", 10, &full).ok());
    EXPECT_TRUE(budget.Take("a", 0, &other).ok());
    full = ReplyBudget::Hold();
  }
  EXPECT_EQ(budget.counts().bytes, 0);
}

TEST(ReplyBudget, WhatIsLongerThanHalfNeedNotBeTriedAgain) {
  ReplyBudget budget(1000);
  ReplyBudget::Hold hold;
  const grpc::Status status = ToGrpc(budget.Take("a", 501, &hold));
  EXPECT_EQ(DetailsOf(status).reason, "ANSWER_TOO_LONG");
  EXPECT_EQ(DetailsOf(status).retry_seconds, -1);
}

class WorkThreadsTest : public ::testing::Test {
 protected:
  // Takes the one thread until `go_on_`.
  void Occupy(WorkThreads& threads) {
    absl::Notification begun;
    ASSERT_TRUE(threads
                    .Run("first",
                         [&] {
                           begun.Notify();
                           go_on_.WaitForNotification();
                         })
                    .ok());
    begun.WaitForNotification();
  }
  absl::Notification go_on_;
};

TEST_F(WorkThreadsTest, RefuseWhatTheyHaveNoRoomForAndDoWhatTheyTook) {
  std::atomic<int> done = 0;
  const auto work = [&done] { ++done; };
  {
    WorkThreads threads(1, 8);
    Occupy(threads);
    // A connection may have a quarter of the queue.
    for (const char* connection : {"a", "a", "b", "b", "c", "c", "d", "d"}) {
      EXPECT_TRUE(threads.Run(connection, work).ok()) << connection;
    }
    for (const char* connection : {"a", "e"}) {
      const absl::Status status = threads.Run(connection, work);
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
      EXPECT_EQ(DetailsOf(ToGrpc(status)).reason, "WORK_QUEUE_FULL");
    }
    go_on_.Notify();
  }
  EXPECT_EQ(done, 8);
}

TEST_F(WorkThreadsTest, ConnectionsTakeTurns) {
  std::string order;
  {
    WorkThreads threads(1, 400);
    Occupy(threads);
    for (int i = 0; i < 5; ++i) EXPECT_TRUE(threads.Run("many", [&order] { order += 'm'; }).ok());
    EXPECT_TRUE(threads.Run("few", [&order] { order += 'f'; }).ok());
    EXPECT_TRUE(threads.Run("other", [&order] { order += 'o'; }).ok());
    EXPECT_TRUE(threads.Run("few", [&order] { order += 'f'; }).ok());
    go_on_.Notify();
  }
  EXPECT_EQ(order, "mfomfmmm");
}

TEST(Status, NamesTheMissingResource) {
  const grpc::Status status =
      ToGrpc(WithReason(WithResource(absl::NotFoundError("no"), "palimpsest.dev/Session", "sessions/x"), "GONE"));
  EXPECT_EQ(DetailsOf(status).resource, "sessions/x");
  EXPECT_EQ(DetailsOf(status).reason, "GONE");
}

TEST(Status, FitsIntoTheMetadataThatClientsTakeWhateverWasSent) {
  Violations violations;
  for (int i = 0; i < 1000; ++i) violations.Add(std::string(1000, 'f'), std::string(1000, 'w'));
  const grpc::Status status = ToGrpc(violations.ToStatus());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(status).fields, SizeIs(8));
  EXPECT_THAT(status.error_message(), SizeIs(Lt(1000)));
  // The details travel in base64.
  EXPECT_LT(status.error_message().size() + status.error_details().size() * 4 / 3, 8192);
}

}  // namespace
}  // namespace palimpsest
