// The one server of a fuzzing process, small, on loopback, with calls of it that carry any bytes.
#pragma once

#include <grpcpp/support/status.h>

#include <string>
#include <vector>

#include "server/rpc/testing/test_server.h"

namespace palimpsest::fuzz {

// It has the model "tiny", the session "kept" and the snapshot "kept". Used by one thread.
class FuzzedServer {
 public:
  // Started by the first call; lives until the process ends.
  static FuzzedServer& Get();

  int port() { return server_.server().port(); }

  // Sends each of `messages`, then that there are no more, and reads all that comes. A call that does not end within a
  // minute ends the process.
  grpc::Status Call(const std::string& method, const std::vector<std::string>& messages);

  // Puts models, sessions and snapshots back to what they were.
  void Restore();

  // A call by somebody else gets what it always got, or the process ends.
  void ExpectWell();

 private:
  FuzzedServer();
  bool HasModel();
  void KeepSession();
  void KeepSnapshot();

  testing::TestServer server_;
  std::vector<int32_t> canary_;
};

}  // namespace palimpsest::fuzz
