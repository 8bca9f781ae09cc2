// What a connection brings: any bytes, in up to eight parts, each counted, with a moment for the server to answer
// before the next. Afterwards the server answers others.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <vector>

#include "base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/fuzzed_server.h"

namespace palimpsest::fuzz {
namespace {

// A connection that never waits for long: a server may well say nothing, or close.
class Connection {
 public:
  explicit Connection(int port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    PALIMPSEST_CHECK(fd_ >= 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    PALIMPSEST_CHECK(connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  }
  ~Connection() { close(fd_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // False once the server has closed.
  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent >= 0) {
        bytes.remove_prefix(static_cast<size_t>(sent));
      } else if (errno == EAGAIN) {
        pollfd ready{fd_, POLLOUT, 0};
        if (poll(&ready, 1, kPatience) == 0) return true;  // it does not read: its own limit on what it keeps
      } else if (errno != EINTR) {
        return false;
      }
    }
    return true;
  }

  // Reads what there is, until there has been nothing for `wait` milliseconds. False once the server has closed.
  bool Drain(int wait) {
    char buffer[4096];
    for (;;) {
      pollfd ready{fd_, POLLIN, 0};
      if (poll(&ready, 1, wait) <= 0) return true;
      if (recv(fd_, buffer, sizeof buffer, MSG_DONTWAIT) <= 0) return false;
    }
  }

  // Says that no more is coming, and waits for the server to close, too.
  void Finish() {
    shutdown(fd_, SHUT_WR);
    Drain(kPatience);
  }

 private:
  static constexpr int kPatience = 2000;

  const int fd_;
};

}  // namespace

void Run(std::string_view input) {
  FuzzedServer& server = FuzzedServer::Get();
  Input in(input);
  {
    Connection connection(server.port());
    for (int part = 0; part < 8 && !in.empty(); ++part) {
      const int doublings = in.Byte() % 16;
      if (!connection.Send(Repeated(in.Counted(), doublings, size_t{1} << 18)) || !connection.Drain(1)) break;
    }
    connection.Finish();
  }
  server.ExpectWell();
}

}  // namespace palimpsest::fuzz
