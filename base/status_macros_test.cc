#include "base/status_macros.h"

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"

namespace palimpsest {
namespace {

template <typename A, typename B>
absl::Status First(const std::pair<A, B>&) {
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<int>> Made(int value) {
  if (value < 0) return absl::OutOfRangeError("below zero");
  return std::make_unique<int>(value);
}

absl::Status Check(const absl::Status& status, int* after) {
  PALIMPSEST_RETURN_IF_ERROR(status);
  PALIMPSEST_RETURN_IF_ERROR(First(std::pair<int, int>(1, 2)));
  ++*after;
  return absl::OkStatus();
}

// In a function of the other kind, and twice in one scope.
absl::StatusOr<int> Sum(int a, int b) {
  PALIMPSEST_ASSIGN_OR_RETURN(const std::unique_ptr<int> first, Made(a));
  std::unique_ptr<int> second;
  PALIMPSEST_ASSIGN_OR_RETURN(second, Made(b));
  return *first + *second;
}

TEST(ReturnIfError, GoesOnWhenItIsOk) {
  int after = 0;
  EXPECT_TRUE(Check(absl::OkStatus(), &after).ok());
  EXPECT_EQ(after, 1);
}

TEST(ReturnIfError, ReturnsTheStatusAsItIs) {
  int after = 0;
  absl::Status status = absl::DataLossError("damaged");
  status.SetPayload("type", absl::Cord("detail"));
  EXPECT_EQ(Check(status, &after), status);
  EXPECT_EQ(after, 0);
}

TEST(ReturnIfError, IsOneStatement) {
  const auto run = [](bool check) -> absl::Status {
    if (check)
      PALIMPSEST_RETURN_IF_ERROR(absl::NotFoundError("not there"));
    else
      return absl::AbortedError("else");
    return absl::OkStatus();
  };
  EXPECT_EQ(run(true).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(run(false).code(), absl::StatusCode::kAborted);
}

TEST(AssignOrReturn, MovesTheValueOut) { EXPECT_EQ(*Sum(2, 3), 5); }

TEST(AssignOrReturn, ReturnsTheFirstError) {
  EXPECT_EQ(Sum(-1, 3).status(), absl::OutOfRangeError("below zero"));
  EXPECT_EQ(Sum(2, -3).status(), absl::OutOfRangeError("below zero"));
}

TEST(AssignOrReturn, EvaluatesOnce) {
  int calls = 0;
  const auto run = [&calls]() -> absl::StatusOr<int> {
    const auto next = [&calls]() -> absl::StatusOr<int> { return ++calls; };
    PALIMPSEST_ASSIGN_OR_RETURN(const int value, next());
    return value;
  };
  EXPECT_EQ(*run(), 1);
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace palimpsest
