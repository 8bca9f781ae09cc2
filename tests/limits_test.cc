// The real server where the system gives it little: few descriptors, few threads, no end to its drain.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/checkpoints.h"
#include "tests/support/server_process.h"
#include "tests/support/wire.h"

namespace palimpsest::testing {
namespace {

using ::testing::HasSubstr;

// A connection on which nothing is said.
class IdleConnection {
 public:
  explicit IdleConnection(const std::string& target, const char* from)
      : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    inet_pton(AF_INET, from, &address.sin_addr);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    int port = 0;
    EXPECT_TRUE(absl::SimpleAtoi(target.substr(target.rfind(':') + 1), &port));
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    address.sin_port = htons(static_cast<uint16_t>(port));
    (void)connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address);
  }
  ~IdleConnection() { close(fd_); }
  IdleConnection(const IdleConnection&) = delete;
  IdleConnection& operator=(const IdleConnection&) = delete;

 private:
  const int fd_;
};

void Answers(const std::string& target) {
  Stubs stubs(target);
  v1::GenerateRequest request;
  request.set_text("It was");
  request.mutable_stop()->set_max_tokens(2);
  request.mutable_stop()->set_ignore_end_of_text(true);
  EXPECT_EQ(GenerateOk(stubs, request).tokens.size(), 2);
}

// Of the process, from now on.
void LimitDescriptors(pid_t pid, rlim_t most) {
  rlimit limit{};
  ASSERT_EQ(prlimit(pid, RLIMIT_NOFILE, nullptr, &limit), 0);
  limit.rlim_cur = most;
  ASSERT_EQ(prlimit(pid, RLIMIT_NOFILE, &limit, nullptr), 0);
}

TEST(DescriptorsTest, AFloodOfConnectionsLeavesOthersServedAndPasses) {
  // It raises the soft limit to the hard one, which is as small.
  const auto server =
      ServerProcess::Start(MakeCheckpoint(), {"--handshake_timeout=1h"}, "prlimit --pid $$ --nofile=80:80");
  ASSERT_NE(server, nullptr);
  {
    std::deque<IdleConnection> flood;
    for (int i = 0; i < 200; ++i) flood.emplace_back(server->target(), "127.0.0.2");
    Answers(server->target());
    EXPECT_GT(server->Metric("palimpsest_connections_refused_total", "max_connections_per_peer"), 100);
    // From everywhere: nobody else gets in, but who is in stays.
    for (int i = 0; i < 200; ++i) flood.emplace_back(server->target(), absl::StrCat("127.0.1.", i).c_str());
    EXPECT_GT(server->Metric("palimpsest_connections_refused_total", "max_connections"), 0);
    EXPECT_EQ(server->Metric("palimpsest_connections"), server->Metric("palimpsest_connections_max"));
  }
  while (server->Metric("palimpsest_connections") > 0) absl::SleepFor(absl::Milliseconds(10));
  Answers(server->target());
  EXPECT_TRUE(server->process().running());
}

TEST(DescriptorsTest, TheSoftLimitIsRaised) {
  const auto server = ServerProcess::Start(MakeCheckpoint(), {}, "prlimit --pid $$ --nofile=64:4096");
  ASSERT_NE(server, nullptr);
  EXPECT_GT(server->Metric("palimpsest_connections_max"), 1000);
}

TEST(DescriptorsTest, HealthTellsWhileNobodyCanConnect) {
  const auto server = ServerProcess::Start(MakeCheckpoint());
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());
  rlimit before{};
  ASSERT_EQ(prlimit(server->process().pid(), RLIMIT_NOFILE, nullptr, &before), 0);
  absl::Notification serving, not_serving, serving_again;
  std::vector<Health> healths;
  grpc::ClientContext watch;
  SetTimeout(watch, absl::Minutes(2));
  std::thread watcher([&] {
    WatchHealth(stubs.channel, watch, [&](Health health) {
      healths.push_back(health);
      if (healths.size() == 1) serving.Notify();
      if (healths.size() == 2) not_serving.Notify();
      if (healths.size() == 3) serving_again.Notify();
    });
  });
  EXPECT_TRUE(serving.WaitForNotificationWithTimeout(absl::Minutes(1)));
  LimitDescriptors(server->process().pid(), 3);
  IdleConnection waiting(server->target(), "127.0.0.2");
  EXPECT_TRUE(not_serving.WaitForNotificationWithTimeout(absl::Minutes(1)));
  LimitDescriptors(server->process().pid(), before.rlim_cur);
  EXPECT_TRUE(serving_again.WaitForNotificationWithTimeout(absl::Minutes(1)));
  watch.TryCancel();
  watcher.join();
  EXPECT_THAT(healths, ::testing::ElementsAre(Health::kServing, Health::kNotServing, Health::kServing));
  Answers(server->target());
  EXPECT_THAT(server->process().Log(), HasSubstr("connections are not accepted"));
}

TEST(DescriptorsTest, TooFewEndTheStartWithTheNumbers) {
  const Exit none =
      RunServer({"--model_root=/tmp", "--port=0", "--metrics_address="}, "prlimit --pid $$ --nofile=24:24");
  EXPECT_EQ(none.code, 1) << none.log;
  EXPECT_THAT(none.reason, HasSubstr("24 descriptors"));
  const Exit wanted = RunServer({"--model_root=/tmp", "--port=0", "--metrics_address=", "--max_connections=500"},
                                "prlimit --pid $$ --nofile=256:256");
  EXPECT_EQ(wanted.code, 2) << wanted.log;
  EXPECT_THAT(wanted.reason, HasSubstr("--max_connections is 500"));
}

TEST(PortTest, OneInUseIsOneLine) {
  const auto server = ServerProcess::Start(MakeCheckpoint());
  ASSERT_NE(server, nullptr);
  const std::string port = server->target().substr(server->target().rfind(':') + 1);
  const Exit second = RunServer({"--model_root=/tmp", "--port=" + port, "--metrics_address="});
  EXPECT_EQ(second.code, 1);
  EXPECT_THAT(second.reason, HasSubstr("cannot be bound"));
  // The configuration, and the error; none of the libraries' lines.
  const std::vector<std::string> lines = absl::StrSplit(second.log, '\n', absl::SkipEmpty());
  EXPECT_EQ(lines.size(), 2) << second.log;
}

TEST(PortTest, APublicAddressNeedsAWord) {
  for (const char* host : {"0.0.0.0", "::"}) {
    const Exit refused =
        RunServer({"--model_root=/tmp", "--port=0", "--metrics_address=", absl::StrCat("--host=", host)});
    EXPECT_EQ(refused.code, 2) << refused.log;
    EXPECT_THAT(refused.reason, HasSubstr("--insecure_public"));
    EXPECT_THAT(refused.reason, HasSubstr("--tls_client_ca"));
  }
}

// The limit counts the threads of all processes of a user, and does not hold for root: so root takes a user that nobody
// else is, who may still read the server's file.
std::string WithThreads(int most) {
  const std::string limit = absl::StrCat("ulimit -u ", most);
  if (getuid() != 0) return limit;
  return absl::StrCat("exec setpriv --reuid=54321 --inh-caps=+dac_read_search --ambient-caps=+dac_read_search ",
                      "prlimit --nproc=", most, ":", most, " \"$0\" \"$@\"");
}

TEST(ThreadsTest, TooFewEndTheStartWithTheLimit) {
  for (const int most : {1, 2, 3, 5, 9, 14, 17, 18}) {
    const Exit exit = RunServer({"--model_root=/", "--port=0", "--metrics_address="}, WithThreads(most));
    EXPECT_EQ(exit.code, 1) << most << ": " << exit.log;
    EXPECT_THAT(exit.reason, HasSubstr(absl::StrCat("RLIMIT_NPROC ", most)));
  }
}

TEST(HardStopTest, ADrainThatDoesNotEndIsEnded) {
  const auto server = ServerProcess::Start(
      MakeCheckpoint(), {"--log_format=json", "--grace=100ms", "--lame_duck=0", "--hard_stop=500ms"});
  ASSERT_NE(server, nullptr);
  // Its first thread, which drains, stands still, as if something it waits for never came.
  const pid_t pid = server->process().pid();
  ASSERT_EQ(ptrace(PTRACE_SEIZE, pid, nullptr, nullptr), 0);
  ASSERT_EQ(ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr), 0);
  int status = 0;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  ASSERT_TRUE(WIFSTOPPED(status));
  server->process().Signal(SIGTERM);
  EXPECT_EQ(server->process().WaitForExit(absl::Minutes(1)), 1);
  EXPECT_THAT(server->process().Log(), HasSubstr("still not stopped 600ms after the signal"));
}

}  // namespace
}  // namespace palimpsest::testing
