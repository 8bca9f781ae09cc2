// The real command line, run by a test against the real server with the bundled checkpoint.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/cpp/client.h"
#include "tests/support/checkpoints.h"
#include "tests/support/server_process.h"

namespace palimpsest {

using testing::BundledCheckpoint;
using testing::ServerProcess;

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class CliE2eTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = ServerProcess::Start(BundledCheckpoint()).release();
    ASSERT_NE(server_, nullptr);
  }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }

  struct Result {
    int exit_code;
    std::string out;
    std::string err;
  };

  // A run of the command line with its output in files: no terminal anywhere.
  class Running {
   public:
    Running(std::vector<std::string> arguments, const std::string& input) {
      stem_ = absl::StrCat(::testing::TempDir(), "cli_e2e_", getpid(), "_", count_++);
      std::ofstream(stem_ + ".in", std::ios::binary) << input;
      arguments.insert(arguments.begin(), PALIMPSEST_CLI_BINARY);
      std::vector<char*> argv;
      for (std::string& argument : arguments) argv.push_back(argument.data());
      argv.push_back(nullptr);
      std::vector<std::string> variables = {absl::StrCat("PALIMPSEST_SERVER=", server_->target())};
      variables.insert(variables.end(), environment_.begin(), environment_.end());
      for (const char* name : {"PATH", "TSAN_OPTIONS", "ASAN_OPTIONS", "LSAN_OPTIONS"}) {
        if (const char* value = getenv(name)) variables.push_back(absl::StrCat(name, "=", value));
      }
      std::vector<char*> environment;
      for (std::string& variable : variables) environment.push_back(variable.data());
      environment.push_back(nullptr);
      posix_spawn_file_actions_t files;
      posix_spawn_file_actions_init(&files);
      posix_spawn_file_actions_addopen(&files, STDIN_FILENO, (stem_ + ".in").c_str(), O_RDONLY, 0);
      posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, (stem_ + ".out").c_str(), O_CREAT | O_WRONLY | O_TRUNC,
                                       0600);
      posix_spawn_file_actions_addopen(&files, STDERR_FILENO, (stem_ + ".err").c_str(), O_CREAT | O_WRONLY | O_TRUNC,
                                       0600);
      EXPECT_EQ(posix_spawn(&pid_, argv[0], &files, nullptr, argv.data(), environment.data()), 0);
      posix_spawn_file_actions_destroy(&files);
    }
    ~Running() {
      if (pid_ > 0) {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
      }
      for (const char* suffix : {".in", ".out", ".err"}) std::remove((stem_ + suffix).c_str());
    }

    void Interrupt() { kill(pid_, SIGINT); }
    std::string OutSoFar() const { return ReadFile(stem_ + ".out"); }

    // The exit code, or 128 + the signal that ended it.
    Result Wait() {
      int status = 0;
      const absl::Time give_up = absl::Now() + absl::Seconds(120);
      while (waitpid(pid_, &status, WNOHANG) == 0) {
        if (absl::Now() > give_up) {
          ADD_FAILURE() << "still running after two minutes";
          kill(pid_, SIGKILL);
          waitpid(pid_, &status, 0);
          break;
        }
        absl::SleepFor(absl::Milliseconds(5));
      }
      pid_ = -1;
      return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), OutSoFar(), ReadFile(stem_ + ".err")};
    }

   private:
    static inline int count_ = 0;
    std::string stem_;
    pid_t pid_ = -1;
  };

  static Result Run(const std::vector<std::string>& arguments, const std::string& input = "") {
    return Running(arguments, input).Wait();
  }
  // Of a run that must succeed.
  static std::string Out(const std::vector<std::string>& arguments, const std::string& input = "") {
    const Result result = Run(arguments, input);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out;
  }
  static std::unique_ptr<client::Client> Connect() { return *client::Client::Connect(server_->target()); }
  static std::string TempFile(const std::string& name, const std::string& content = "") {
    const std::string path = absl::StrCat(::testing::TempDir(), "cli_e2e_", getpid(), "_", name);
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }

  // English enough, with paragraphs, runs of spaces and characters of several bytes.
  static std::string Text(int paragraphs) {
    std::string text;
    for (int i = 0; i < paragraphs; ++i) {
      absl::StrAppend(&text, "The old king asked his ", i % 3, " daughters what they had seen in the wood.\n",
                      "\xe2\x80\x9cNothing,\xe2\x80\x9d said the eldest,  \xe2\x80\x9c"
                      "but trees ",
                      i, " years old.\xe2\x80\x9d\n\n");
    }
    return text;
  }

  static inline ServerProcess* server_ = nullptr;
  static inline std::vector<std::string> environment_;  // NAME=value, for the next runs
};

}  // namespace palimpsest
