// What goes wrong around a server: a log that nobody takes, closed descriptors, full disks, files that are none, a
// system without threads to give. It goes on serving, or says why it does not start.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/checkpoints.h"
#include "tests/support/server_process.h"
#include "tests/support/wire.h"

namespace palimpsest::testing {
namespace {

using ::testing::HasSubstr;

// Calls that each make a line of the log of some 250 bytes; all of them must come back.
void Call(ServerProcess& server, int count) {
  Stubs stubs(server.target());
  for (int i = 0; i < count; ++i) {
    v1::TokenizeRequest request;
    request.set_text("It was ");
    v1::TokenizeResponse response;
    grpc::ClientContext context;
    SetTimeout(context, absl::Minutes(1));
    const grpc::Status status = stubs.generation->Tokenize(&context, request, &response);
    ASSERT_TRUE(status.ok()) << "call " << i << ": " << status.error_message();
  }
}

void ExpectStops(ServerProcess& server) {
  server.process().Signal(SIGTERM);
  EXPECT_EQ(server.process().WaitForExit(absl::Minutes(1)), 0);
}

// A named pipe whose two ends are open here, so that whoever writes to it finds a reader.
class Pipe {
 public:
  Pipe() : path_(MakeFolder("pipe") + "/log") {
    EXPECT_EQ(mkfifo(path_.c_str(), 0600), 0);
    fd_ = open(path_.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK);
    EXPECT_GE(fd_, 0);
  }
  ~Pipe() { Close(); }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  void Fill() const {
    const std::string block(4096, '.');
    while (write(fd_, block.data(), block.size()) > 0) {
    }
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int fd_ = -1;
};

TEST(Mishaps, ALogThatNobodyReadsStopsNothing) {
  const Pipe pipe;
  pipe.Fill();
  const auto server = ServerProcess::Start(MakeCheckpoint(), {}, absl::StrCat("exec 2>", pipe.path()));
  ASSERT_NE(server, nullptr);
  Call(*server, kSanitized ? 400 : 1000);
  EXPECT_EQ(CheckHealth(server->target()), Health::kServing);
  ExpectStops(*server);
}

TEST(Mishaps, ALogWhoseReaderHasGoneStopsNothing) {
  Pipe pipe;
  const auto server = ServerProcess::Start(MakeCheckpoint(), {}, absl::StrCat("exec 2>", pipe.path()));
  ASSERT_NE(server, nullptr);
  pipe.Close();
  Call(*server, 20);
  EXPECT_GT(server->Metric("palimpsest_log_lines_dropped_total"), 0);
  ExpectStops(*server);
}

TEST(Mishaps, ALogOnAFullDiskStopsNothing) {
  const auto server = ServerProcess::Start(MakeCheckpoint(), {}, "exec 2>/dev/full");
  ASSERT_NE(server, nullptr);
  Call(*server, 20);
  EXPECT_GT(server->Metric("palimpsest_log_lines_dropped_total"), 0);
  ExpectStops(*server);
}

TEST(Mishaps, ClosedStandardDescriptorsAreNotTakenForConnections) {
  const auto server = ServerProcess::Start(MakeCheckpoint(), {}, "exec 0<&- 1>&- 2>&-");
  ASSERT_NE(server, nullptr);
  for (const int fd : {0, 1, 2}) {
    EXPECT_EQ(std::filesystem::read_symlink(absl::StrCat("/proc/", server->process().pid(), "/fd/", fd)), "/dev/null");
  }
  Call(*server, 20);
  ExpectStops(*server);
}

TEST(Mishaps, ALogAtTheLimitOfAFilesSizeStopsNothing) {
  const std::string log = MakeFolder("limit") + "/log";
  const auto server =
      ServerProcess::Start(MakeCheckpoint(), {}, absl::StrCat("exec 2>", log, "; ulimit -f 8"));  // of 1024 bytes
  ASSERT_NE(server, nullptr);
  Call(*server, 100);
  EXPECT_GT(server->Metric("palimpsest_log_lines_dropped_total"), 0);
  ExpectStops(*server);
}

std::vector<nlohmann::json> LinesOf(const std::string& log) {
  std::vector<nlohmann::json> lines;
  for (const auto line : absl::StrSplit(log, '\n', absl::SkipEmpty())) {
    lines.push_back(nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false));
    EXPECT_TRUE(lines.back().is_object()) << line;
  }
  return lines;
}

TEST(Mishaps, LibrariesLogInTheSameForm) {
  const auto server = ServerProcess::Start(MakeCheckpoint(), {}, "export GRPC_VERBOSITY=debug");
  ASSERT_NE(server, nullptr);
  Call(*server, 3);
  ExpectStops(*server);
  int of_grpc = 0;
  for (const nlohmann::json& line : LinesOf(server->process().Log())) {
    EXPECT_TRUE(line.contains("time") && line.contains("level") && line.contains("event")) << line;
    of_grpc += line.value("source", "") == "grpc" ? 1 : 0;
  }
  EXPECT_GT(of_grpc, 0);
}

TEST(Mishaps, APortInUseIsToldOnce) {
  const std::string checkpoint = MakeCheckpoint();
  const auto server = ServerProcess::Start(checkpoint);
  ASSERT_NE(server, nullptr);
  const std::string port = server->target().substr(server->target().rfind(':') + 1);
  Exit second =
      RunServer({absl::StrCat("--model=test=", checkpoint), absl::StrCat("--port=", port), "--metrics_address="});
  EXPECT_EQ(second.code, 1);
  EXPECT_THAT(second.reason, HasSubstr("cannot be bound"));
  second.log.resize(second.log.rfind("palimpsest-server: "));
  for (const nlohmann::json& line : LinesOf(second.log)) EXPECT_FALSE(line.contains("source")) << line;

  second = RunServer({absl::StrCat("--model=test=", checkpoint), "--port=0",
                      absl::StrCat("--metrics_address=127.0.0.1:", server->metrics_port())});
  EXPECT_EQ(second.code, 1);
  EXPECT_EQ(second.reason,
            absl::StrCat("--metrics_address 127.0.0.1:", server->metrics_port(), " cannot be bound: in use\n"));
}

TEST(Mishaps, APortFileThatCannotBeWrittenIsAReasonNotToStart) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the sanitizer writes a file of its own when a process begins";
#endif
  const std::string folder = MakeFolder("port");
  const Exit exit = RunServer({absl::StrCat("--model=test=", MakeCheckpoint()), "--port=0",
                               "--metrics_address=", absl::StrCat("--port_file=", folder, "/port")},
                              absl::StrCat("exec 2>/dev/null; ulimit -f 0"));
  EXPECT_EQ(exit.code, 1);
  EXPECT_TRUE(std::filesystem::is_empty(folder)) << "it has left something behind";
}

TEST(Mishaps, WhatIsNoFileIsRefusedAtOnce) {
  const std::string folder = MakeFolder("files"), pipe = folder + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const std::string model = absl::StrCat("--model=test=", MakeCheckpoint());
  for (const std::string& path : {folder, pipe}) {
    for (const std::vector<std::string>& flags :
         {std::vector<std::string>{absl::StrCat("--flagfile=", path)},
          std::vector<std::string>{model, absl::StrCat("--tls_cert=", path), absl::StrCat("--tls_key=", path)}}) {
      const Exit exit = RunServer(flags);
      EXPECT_EQ(exit.code, 2) << exit.log;
      EXPECT_THAT(exit.reason, HasSubstr(absl::StrCat(path, ", which cannot be read: not a regular file")));
    }
  }
  for (const char* name : {"tokenizer.model", "model.safetensors", "config.json", "generation_config.json"}) {
    const std::string checkpoint = MakeCheckpoint();
    std::filesystem::remove(checkpoint + "/" + name);
    ASSERT_EQ(mkfifo((checkpoint + "/" + name).c_str(), 0600), 0);
    const Exit exit = RunServer({absl::StrCat("--model=test=", checkpoint), "--port=0", "--metrics_address="});
    EXPECT_EQ(exit.code, 2) << exit.log;
    EXPECT_THAT(exit.reason, HasSubstr(absl::StrCat(name, ": not a regular file")));
  }
}

TEST(Mishaps, ALoopOfLinksIsNoReasonToTryAgain) {
  const std::string root = MakeFolder("root");
  std::filesystem::create_directory_symlink("loop", root + "/loop");
  std::filesystem::copy(MakeCheckpoint(), root + "/looped");
  for (const auto& entry : std::filesystem::directory_iterator(root + "/looped")) {
    std::filesystem::remove(entry.path());
    std::filesystem::create_symlink(entry.path().filename(), entry.path());
  }
  const auto server = ServerProcess::Start(MakeCheckpoint(), {absl::StrCat("--model_root=", root)});
  ASSERT_NE(server, nullptr);
  Stubs stubs(server->target());
  for (const char* path : {"loop", "loop/model", "looped", "looped/config.json"}) {
    v1::LoadModelRequest request;
    request.set_model_id("another");
    request.set_path(path);
    v1::Model model;
    grpc::ClientContext context;
    SetTimeout(context, absl::Minutes(1));
    const grpc::Status status = stubs.models->LoadModel(&context, request, &model);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << path << ": " << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr("Too many levels of symbolic links"));
  }
}

TEST(Mishaps, ASystemWithoutThreadsIsAReasonNotToStart) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer needs more addresses than the limit leaves";
  const std::string model = absl::StrCat("--model=test=", MakeCheckpoint());
  // Each thread's stack takes 1 GiB of addresses, of which there are some: the first thread that does not fit is now
  // one, now another.
  for (const int gibibytes : {1, 2, 3, 4, 5}) {
    const Exit exit = RunServer({model, "--port=0", "--metrics_address="},
                                absl::StrCat("ulimit -s 1048576; ulimit -v ", gibibytes * 1048576 + 524288));
    EXPECT_EQ(exit.code, 1) << gibibytes << " GiB: " << exit.log;
    EXPECT_THAT(exit.reason, HasSubstr("thread")) << exit.log;
  }
}

}  // namespace
}  // namespace palimpsest::testing
