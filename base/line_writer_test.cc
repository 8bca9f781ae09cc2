#include "base/line_writer.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace palimpsest {
namespace {

using ::testing::ElementsAre;

constexpr absl::Duration kLong = absl::Minutes(1);

std::string Report(int64_t lines) { return absl::StrCat("lost ", lines); }

class LineWriterTest : public ::testing::Test {
 protected:
  LineWriterTest() {
    EXPECT_EQ(pipe2(ends_, O_CLOEXEC), 0);
    signal(SIGPIPE, SIG_IGN);
  }
  ~LineWriterTest() override {
    CloseReader();
    close(ends_[1]);
  }
  void CloseReader() {
    if (ends_[0] >= 0) close(ends_[0]);
    ends_[0] = -1;
  }
  // Nobody reads, and there is no room any more.
  void FillPipe() {
    const std::string line(4095, '.');
    pollfd room{ends_[1], POLLOUT, 0};
    while (poll(&room, 1, 0) == 1) {
      ASSERT_EQ(write(ends_[1], (line + "\n").data(), 4096), 4096);
      filled_ += 4096;
    }
  }
  // What there is to read until `until` has come.
  std::string ReadUntil(const std::string& until) {
    std::string text;
    char buffer[1 << 16];
    while (text.find(until) == std::string::npos) {
      const ssize_t got = read(ends_[0], buffer, sizeof buffer);
      if (got <= 0) break;
      text.append(buffer, static_cast<size_t>(got));
    }
    return text.substr(filled_);
  }

  int ends_[2] = {-1, -1};
  size_t filled_ = 0;
};

TEST_F(LineWriterTest, WritesLinesInOrder) {
  LineWriter writer(ends_[1], {}, Report);
  writer.Write("one");
  writer.Write(std::string(100'000, 'x'));  // longer than what is written at once
  writer.Write("");
  std::thread reader([&] { EXPECT_EQ(ReadUntil("end\n"), "one\n" + std::string(100'000, 'x') + "\n\nend\n"); });
  writer.Write("end");
  EXPECT_TRUE(writer.Flush(kLong));
  reader.join();
  EXPECT_EQ(writer.dropped(), 0);
}

TEST_F(LineWriterTest, NobodyWaitsForAReaderThatDoesNotRead) {
  FillPipe();
  LineWriter writer(ends_[1], {.lines = 10, .bytes = 1000}, Report);
  for (int i = 0; i < 100; ++i) writer.Write(absl::StrCat("line ", i));
  EXPECT_FALSE(writer.Flush(absl::Milliseconds(10)));
  // What the thread has in its hands does not count as a line of the queue.
  EXPECT_GE(writer.dropped(), 80);
  EXPECT_LE(writer.dropped(), 90);

  // As soon as somebody reads: what was taken, and how much was not.
  const int64_t lost = writer.dropped();
  const std::string text = ReadUntil("lost");
  EXPECT_THAT(text, ::testing::HasSubstr(absl::StrCat("line ", 100 - lost - 1, "\nlost")));
  EXPECT_TRUE(writer.Flush(kLong));
  filled_ = 0;
  writer.Write("after");
  EXPECT_THAT(ReadUntil("after"), ::testing::HasSubstr("after\n"));
  EXPECT_EQ(writer.dropped(), lost);
}

TEST_F(LineWriterTest, BytesAreBoundedToo) {
  FillPipe();
  LineWriter writer(ends_[1], {.lines = 1000, .bytes = 1000}, Report);
  for (int i = 0; i < 100; ++i) writer.Write(std::string(99, 'x'));
  EXPECT_EQ(writer.dropped(), 90);
}

TEST_F(LineWriterTest, EndsWithAReaderThatDoesNotRead) {
  FillPipe();
  LineWriter writer(ends_[1], {}, Report);
  writer.Write("never read");
  EXPECT_FALSE(writer.Flush(absl::ZeroDuration()));
}

TEST_F(LineWriterTest, ANonBlockingDescriptorLosesNothing) {
  fcntl(ends_[1], F_SETFL, O_NONBLOCK);
  LineWriter writer(ends_[1], {.lines = 100'000, .bytes = 10 << 20}, Report);
  for (int i = 0; i < 20'000; ++i) writer.Write(absl::StrCat("line ", i));  // more than a pipe holds
  const std::vector<std::string> lines = absl::StrSplit(ReadUntil("line 19999\n"), '\n');
  ASSERT_EQ(lines.size(), 20'001);
  for (int i = 0; i < 20'000; ++i) ASSERT_EQ(lines[i], absl::StrCat("line ", i));
  EXPECT_EQ(writer.dropped(), 0);
}

TEST_F(LineWriterTest, AReaderThatIsGoneCostsLinesOnly) {
  LineWriter writer(ends_[1], {}, Report);
  CloseReader();
  for (int i = 0; i < 100; ++i) writer.Write("nobody hears");
  EXPECT_TRUE(writer.Flush(kLong));
  EXPECT_EQ(writer.dropped(), 100);
}

TEST_F(LineWriterTest, AFullDiskCostsLinesOnlyUntilThereIsRoomAgain) {
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(full, 0);
  LineWriter writer(full, {}, Report);
  writer.Write("one");
  writer.Write("two");
  EXPECT_TRUE(writer.Flush(kLong));
  EXPECT_EQ(writer.dropped(), 2);
  ASSERT_EQ(dup3(ends_[1], full, O_CLOEXEC), full);
  writer.Write("three");
  EXPECT_TRUE(writer.Flush(kLong));
  EXPECT_EQ(ReadUntil("three\n"), "lost 2\nthree\n");
  EXPECT_EQ(writer.dropped(), 2);
  close(full);
}

TEST_F(LineWriterTest, AClosedDescriptorCostsLinesOnly) {
  const int closed = fcntl(ends_[1], F_DUPFD_CLOEXEC, 500);  // a number that nobody else gets
  close(closed);
  LineWriter writer(closed, {}, Report);
  writer.Write("one");
  EXPECT_TRUE(writer.Flush(kLong));
  EXPECT_EQ(writer.dropped(), 1);
}

TEST_F(LineWriterTest, ManyThreadsWriteWholeLines) {
  LineWriter writer(ends_[1], {}, Report);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&writer, t] {
      for (int i = 0; i < 500; ++i) writer.Write(absl::StrCat(t, " says ", i));
    });
  }
  std::thread reader([&] {
    const std::string text = ReadUntil("end\n");
    std::vector<int> next(4, 0);
    for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      if (line == "end") continue;
      const int t = line[0] - '0';
      ASSERT_EQ(line, absl::StrCat(t, " says ", next.at(t)++));
    }
    EXPECT_THAT(next, ElementsAre(500, 500, 500, 500));
  });
  for (std::thread& thread : threads) thread.join();
  writer.Write("end");
  reader.join();
}

}  // namespace
}  // namespace palimpsest
