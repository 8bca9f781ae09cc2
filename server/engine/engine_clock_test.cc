// The wall clock may be set while requests run.
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

#include "absl/time/clock.h"
#include "base/steady_clock.h"
#include "server/engine/engine.h"
#include "server/engine/engine_testing.h"

namespace {
std::atomic<int64_t> wall_offset_seconds = 0;
}

// In the place of the C library's: the wall clock, as everything in this program sees it, may be set.
extern "C" int clock_gettime(clockid_t clock, timespec* time) noexcept {
  const auto result = static_cast<int>(syscall(SYS_clock_gettime, clock, time));
  if (result == 0 && clock == CLOCK_REALTIME) time->tv_sec += wall_offset_seconds;
  return result;
}

namespace palimpsest::testing {
namespace {

// absl's waits with a timeout end by the system's clock, which this program sees wrongly.
const RequestSink::Finish& Await(const RecordingSink& sink) {
  const absl::Time begin = SteadyNow();
  while (!sink.finished() && SteadyNow() - begin < absl::Minutes(1)) absl::SleepFor(absl::Milliseconds(1));
  return sink.Wait();
}

class EngineClock : public ::testing::TestWithParam<int64_t> {
 protected:
  void TearDown() override { wall_offset_seconds = 0; }
};

TEST_P(EngineClock, SettingItEndsNoRequestAndKeepsNoneAlive) {
  const std::unique_ptr<Engine> engine =
      StartEngine({.threads = 1, .slots = 2, .max_undelivered_tokens = 2, .max_stall = absl::Seconds(5)});
  const absl::Time begin = SteadyNow();
  EngineRequest request = Generate(RandomTokens(3, 1), kEndless);
  request.arrival = begin;
  request.deadline = begin + absl::Hours(1);
  RequestId id = 0;
  const auto running = Submit(*engine, std::move(request), &id);
  auto slow = std::make_shared<RecordingSink>();
  slow->ReadSlowly(0);
  request = Generate(RandomTokens(3, 2), kEndless);
  request.arrival = begin;
  request.sink = slow;
  Submit(*engine, std::move(request));
  running->WaitForTokens(1);
  slow->WaitForTokens(2);

  const absl::Time before = absl::Now();
  wall_offset_seconds = GetParam();
  // absl looks at the system's clock now and then.
  while (absl::AbsDuration(absl::Now() - before) < absl::Hours(1)) {
    ASSERT_LT(SteadyNow() - begin, absl::Minutes(1));
    absl::SleepFor(absl::Milliseconds(1));
  }
  const auto tokens = std::ssize(running->ids());
  running->WaitForTokens(tokens + 20);
  EXPECT_FALSE(running->finished());

  request = Generate(RandomTokens(3, 3), kEndless);
  request.arrival = SteadyNow();
  request.deadline = request.arrival + absl::Milliseconds(50);
  EXPECT_EQ(Await(*Submit(*engine, std::move(request))).status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Await(*slow).status.code(), absl::StatusCode::kAborted);
  EXPECT_GE(SteadyNow() - begin, absl::Seconds(5));
  engine->Cancel(id);
  EXPECT_LT(Await(*running).total_time, absl::Minutes(10));
  EXPECT_GT(running->Wait().total_time, absl::ZeroDuration());
}

INSTANTIATE_TEST_SUITE_P(, EngineClock, ::testing::Values(2 * 3600, -2 * 3600));

}  // namespace
}  // namespace palimpsest::testing
