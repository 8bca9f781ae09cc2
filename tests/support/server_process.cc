#include "tests/support/server_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "gtest/gtest.h"
#include "tests/support/wire.h"

namespace palimpsest::testing {
namespace {

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The folder of this process's folders.
class Scratch {
 public:
  Scratch() : path_(absl::StrCat(::testing::TempDir(), "palimpsest_e2e_", getpid())) {
    std::filesystem::create_directories(path_);
  }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string path_;
};

std::vector<std::string> Arguments(const std::string& prelude, const std::vector<std::string>& flags) {
  std::vector<std::string> arguments = {PALIMPSEST_SERVER_BINARY};
  if (!prelude.empty()) {
    arguments = {"/bin/bash", "-c", absl::StrCat(prelude, "; exec \"$0\" \"$@\""), PALIMPSEST_SERVER_BINARY};
  }
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return arguments;
}

// GET /metrics from 127.0.0.1; empty if nobody answers.
std::string GetMetrics(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return "";
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string page;
  const std::string request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
      send(fd, request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size())) {
    char buffer[1 << 16];
    for (ssize_t got; (got = recv(fd, buffer, sizeof(buffer), 0)) > 0;) page.append(buffer, got);
  }
  close(fd);
  return page;
}

}  // namespace

std::string MakeFolder(const std::string& name) {
  static Scratch scratch;
  static std::atomic<int> count{0};
  const std::string folder = absl::StrCat(scratch.path_, "/", count.fetch_add(1), "_", name);
  std::filesystem::create_directories(folder);
  return folder;
}

ChildProcess::ChildProcess(const std::vector<std::string>& arguments, const std::string& log_file)
    : log_file_(log_file) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const int log = open(log_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  PALIMPSEST_CHECK(log >= 0);
  const pid_t parent = getpid();
  pid_ = fork();
  PALIMPSEST_CHECK(pid_ >= 0);
  if (pid_ == 0) {
    // Only what is safe after a fork of many threads, until exec.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, STDIN_FILENO);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execvp(argv[0], argv.data());
    _exit(127);
  }
  close(log);
}

ChildProcess::~ChildProcess() {
  if (running()) {
    Signal(SIGKILL);
    WaitForExit(absl::Minutes(1));
  }
}

void ChildProcess::Signal(int signal) const { kill(pid_, signal); }

std::optional<int> ChildProcess::WaitForExit(absl::Duration timeout) {
  const absl::Time give_up = absl::Now() + timeout;
  while (!exit_code_.has_value()) {
    int status = 0;
    const pid_t done = waitpid(pid_, &status, WNOHANG);
    PALIMPSEST_CHECK(done >= 0);
    if (done == pid_) {
      exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    } else if (absl::Now() >= give_up) {
      return std::nullopt;
    } else {
      absl::SleepFor(absl::Milliseconds(5));
    }
  }
  return exit_code_;
}

std::string ChildProcess::Log() const { return ReadFile(log_file_); }

std::unique_ptr<ServerProcess> ServerProcess::Start(const std::string& checkpoint,
                                                    const std::vector<std::string>& flags, const std::string& prelude) {
  const std::string folder = MakeFolder("server");
  std::vector<std::string> arguments =
      Arguments(prelude, {"--host=127.0.0.1", "--port=0", "--metrics_address=127.0.0.1:0",
                          absl::StrCat("--port_file=", folder, "/port"),
                          absl::StrCat("--metrics_port_file=", folder, "/metrics_port")});
  if (!checkpoint.empty()) arguments.push_back(absl::StrCat("--model=test=", checkpoint));
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  std::unique_ptr<ServerProcess> server(new ServerProcess());
  server->process_ = std::make_unique<ChildProcess>(arguments, folder + "/log");

  const absl::Time give_up = absl::Now() + absl::Minutes(2);
  while (absl::Now() < give_up && server->process_->running()) {
    // The ports are written once the server is ready, the one of the metrics last.
    int port = 0;
    if (absl::SimpleAtoi(ReadFile(folder + "/metrics_port"), &server->metrics_port_) &&
        absl::SimpleAtoi(ReadFile(folder + "/port"), &port)) {
      server->target_ = absl::StrCat("127.0.0.1:", port);
      if (CheckHealth(server->target_) == Health::kServing) return server;
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
  ADD_FAILURE() << "the server did not start: " << absl::StrJoin(arguments, " ") << "\n" << server->process_->Log();
  return nullptr;
}

double ServerProcess::Metric(const std::string& family, const std::string& label) const {
  double sum = 0;
  bool found = false;
  const std::string page = GetMetrics(metrics_port_);
  for (absl::string_view line : absl::StrSplit(page, absl::ByAnyChar("\r\n"), absl::SkipEmpty())) {
    if (!absl::ConsumePrefix(&line, family) || line.empty() || (line[0] != '{' && line[0] != ' ')) continue;
    const size_t space = line.rfind(' ');
    double value = 0;
    if (!absl::StrContains(line.substr(0, space), label) || !absl::SimpleAtod(line.substr(space + 1), &value)) continue;
    sum += value;
    found = true;
  }
  return found ? sum : -1;
}

Exit RunServer(const std::vector<std::string>& flags, const std::string& prelude) {
  const std::vector<std::string> arguments = Arguments(prelude, flags);
  ChildProcess process(arguments, MakeFolder("run") + "/log");
  const std::optional<int> code = process.WaitForExit(absl::Minutes(1));
  if (!code.has_value()) {
    ADD_FAILURE() << "still runs: " << absl::StrJoin(arguments, " ") << "\n" << process.Log();
    return {-1, process.Log(), ""};
  }
  Exit exit{*code, process.Log(), ""};
  // The log of events goes the same way, and names every flag.
  constexpr std::string_view kPrefix = "palimpsest-server: ";
  if (const size_t at = exit.log.rfind(kPrefix); at != std::string::npos) {
    exit.reason = exit.log.substr(at + kPrefix.size());
  }
  return exit;
}

}  // namespace palimpsest::testing
