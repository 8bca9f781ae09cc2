// The real server as a child process on loopback, with ports of its own choice.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace palimpsest::testing {

// A program that was started; killed, if it still runs, when this goes or when the test's process ends. Thread-safe but
// for WaitForExit, which one thread calls.
class ChildProcess {
 public:
  // Starts `arguments[0]`, looked for as a shell does; what it prints goes to `log_file`. Aborts if it cannot be
  // started.
  ChildProcess(const std::vector<std::string>& arguments, const std::string& log_file);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int signal) const;
  // The exit code, or 128 + the signal that ended it; nothing if it still runs after `timeout`.
  std::optional<int> WaitForExit(absl::Duration timeout);
  bool running() { return !WaitForExit(absl::ZeroDuration()).has_value(); }
  // All that it has printed.
  std::string Log() const;

 private:
  const std::string log_file_;
  pid_t pid_ = -1;
  std::optional<int> exit_code_;
};

// A server that answers. `flags` come after the ones that choose host, ports and files, and win.
class ServerProcess {
 public:
  // Serves `checkpoint` as "test"; empty: the flags say what. Returns once health says SERVING. Fails the test, with
  // the log, and returns null when that takes over two minutes or the server ends before. `prelude`: commands of a
  // shell that becomes the server after them: limits, redirections, variables.
  static std::unique_ptr<ServerProcess> Start(const std::string& checkpoint, const std::vector<std::string>& flags = {},
                                              const std::string& prelude = "");

  const std::string& target() const { return target_; }
  int metrics_port() const { return metrics_port_; }
  ChildProcess& process() { return *process_; }
  // A value of /metrics: the sum over all samples of the family whose labels contain `label`; -1 if there is none.
  double Metric(const std::string& family, const std::string& label = "") const;

 private:
  ServerProcess() = default;
  std::string target_;
  int metrics_port_ = 0;
  std::unique_ptr<ChildProcess> process_;
};

// Runs the server, after `prelude` as above, with these flags alone until it ends by itself; fails the test if it does
// not within a minute.
struct Exit {
  int code = -1;
  std::string log;     // all that it printed
  std::string reason;  // what its last words were, after "palimpsest-server: "
};
Exit RunServer(const std::vector<std::string>& flags, const std::string& prelude = "");

// A fresh folder under the test's temporary folder; it is deleted when the process ends.
std::string MakeFolder(const std::string& name);

// Whether this test, and so the server beside it, was built with a sanitizer: then it is slower and takes more memory.
constexpr bool kSanitized =
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    true;
#else
    false;
#endif

}  // namespace palimpsest::testing
