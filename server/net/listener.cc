#include "server/net/listener.h"

#include <fcntl.h>
#include <linux/tcp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/net/peer.h"

namespace palimpsest {
namespace {

constexpr uint64_t kWake = 1 << 15;
// Connections taken from one socket before the thread looks at the others and at those that have ended.
constexpr int kAcceptAtOnce = 64;
constexpr absl::Duration kStopPatience = absl::Seconds(5);

int64_t SteadyNanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::string ErrorText(int error) { return std::generic_category().message(error); }

absl::Status Unbound(absl::string_view what, int error) {
  return absl::UnavailableError(
      absl::StrCat(what, " cannot be bound: in use, or not an address of this machine (", ErrorText(error), ")"));
}

// Whether the errno of accept says that there is no room, rather than that this one connection has gone.
bool IsLackOfRoom(int error) { return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM; }
bool IsBroken(int error) { return error == EBADF || error == EINVAL || error == ENOTSOCK || error == EOPNOTSUPP; }

int OpenSpare() { return open("/dev/null", O_RDONLY | O_CLOEXEC); }

// The peer is told at once, and nothing of the connection stays behind here.
void CloseWithReset(int fd) {
  const linger none{.l_onoff = 1, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
  close(fd);
}

using Address = std::pair<sockaddr_storage, socklen_t>;

absl::StatusOr<std::vector<Address>> Resolve(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), nullptr, &hints, &found); error != 0) {
    return absl::UnavailableError(
        absl::StrCat("--host is no address, and no name that is known (", gai_strerror(error), ")"));
  }
  std::vector<Address> addresses;
  for (const addrinfo* it = found; it != nullptr; it = it->ai_next) {
    if (it->ai_family != AF_INET && it->ai_family != AF_INET6) continue;
    std::memcpy(&addresses.emplace_back(sockaddr_storage{}, it->ai_addrlen).first, it->ai_addr, it->ai_addrlen);
  }
  freeaddrinfo(found);
  if (addresses.empty()) return absl::UnavailableError("--host has no address");
  return addresses;
}

// The port stands at the same place in the addresses of both families.
static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port));
void SetPort(sockaddr_storage& address, uint16_t port) {
  const uint16_t network = htons(port);
  std::memcpy(reinterpret_cast<char*>(&address) + offsetof(sockaddr_in, sin_port), &network, sizeof network);
}
uint16_t PortOf(const sockaddr_storage& address) {
  uint16_t network = 0;
  std::memcpy(&network, reinterpret_cast<const char*>(&address) + offsetof(sockaddr_in, sin_port), sizeof network);
  return ntohs(network);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Listener>> Listener::Bind(const ListenerOptions& options) {
  std::unique_ptr<Listener> listener(new Listener(options));
  if (options.port < 0 && options.unix_socket.empty()) {
    return absl::InvalidArgumentError("--port is -1 (no TCP) without --unix_socket; accepted: one of them, or both");
  }
  if (options.port >= 0) {
    if (absl::Status status = listener->BindTcp(); !status.ok()) return status;
  }
  if (!options.unix_socket.empty()) {
    if (absl::Status status = listener->BindUnix(); !status.ok()) return status;
  }
  return listener;
}

void Listener::Finish() {
  if (!thread_.joinable()) return;
  stop_ = true;
  (void)eventfd_write(wake_, 1);
  thread_.join();
}

Listener::~Listener() {
  Finish();
  CloseSockets();
  for (const int fd : {epoll_, wake_, spare_}) {
    if (fd >= 0) close(fd);
  }
  absl::MutexLock lock(&mu_);
  for (const auto& [id, watched] : watched_) close(watched.fd);
}

int Listener::BindOne(const sockaddr_storage& address, socklen_t size) {
  const int fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return errno;
  const int on = 1, off = 0;
  if (address.ss_family != AF_UNIX) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (address.ss_family == AF_INET6) {
    // All addresses are those of both families; one address is itself alone.
    sockaddr_in6 six;
    std::memcpy(&six, &address, sizeof six);
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, IN6_IS_ADDR_UNSPECIFIED(&six.sin6_addr) ? &off : &on, sizeof on);
  }
  const auto* const generic = reinterpret_cast<const sockaddr*>(&address);
  if (bind(fd, generic, size) != 0 ||
      (address.ss_family == AF_UNIX &&
       chmod(options_.unix_socket.c_str(), static_cast<mode_t>(options_.unix_socket_mode)) != 0) ||
      listen(fd, SOMAXCONN) != 0) {
    const int error = errno;
    close(fd);
    return error;
  }
  sockets_.push_back({fd, false});
  return 0;
}

absl::Status Listener::BindTcp() {
  std::string host = options_.host;
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  const bool all = host == "0.0.0.0" || host == "::";
  const std::string name = absl::StrCat(
      "port ", host.find(':') == std::string::npos ? host : absl::StrCat("[", host, "]"), ":", options_.port);
  absl::StatusOr<std::vector<Address>> addresses = Resolve(host);
  if (!addresses.ok()) {
    return absl::UnavailableError(absl::StrCat(name, " cannot be bound: ", addresses.status().message()));
  }
  // "::" listens on both families; where the machine has no IPv6, "0.0.0.0" is all there is.
  if (all) addresses = std::vector<Address>{(*Resolve("::"))[0], (*Resolve("0.0.0.0"))[0]};
  port_ = options_.port;
  int error = EADDRNOTAVAIL;
  for (auto& [address, size] : *addresses) {
    if (!options_.why_loopback_only.empty() && !IsLoopback(address)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--host is \"", options_.host, "\", which others can reach: ", options_.why_loopback_only));
    }
    // The second address of a name gets the port that the first one was given.
    SetPort(address, static_cast<uint16_t>(port_));
    const int failed = BindOne(address, size);
    // A name such as localhost may have an address of a family that this machine does not have.
    if (failed == EAFNOSUPPORT || failed == EADDRNOTAVAIL) continue;
    if (failed != 0) return Unbound(name, failed);
    error = 0;
    sockaddr_storage bound{};
    socklen_t bound_size = sizeof bound;
    if (getsockname(sockets_.back().fd, reinterpret_cast<sockaddr*>(&bound), &bound_size) == 0) port_ = PortOf(bound);
    if (all) break;
  }
  return error == 0 ? absl::OkStatus() : Unbound(name, error);
}

absl::Status Listener::BindUnix() {
  const std::string& path = options_.unix_socket;
  sockaddr_storage address{};
  auto* const local = reinterpret_cast<sockaddr_un*>(&address);
  local->sun_family = AF_UNIX;
  if (path.size() >= sizeof local->sun_path) {
    return absl::InvalidArgumentError(absl::StrCat("--unix_socket is a path of ", path.size(),
                                                   " bytes; accepted: up to ", sizeof local->sun_path - 1));
  }
  std::memcpy(local->sun_path, path.data(), path.size());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  struct stat file {};
  if (lstat(path.c_str(), &file) == 0) {
    if (!S_ISSOCK(file.st_mode)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--unix_socket is ", path, ", where there is a file that is not a socket; accepted: a path where ",
          "there is nothing, or a socket that nobody listens on"));
    }
    // One that somebody listens on is theirs; a process that was killed has left the other.
    const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const bool left =
        probe >= 0 && connect(probe, reinterpret_cast<const sockaddr*>(&address), size) != 0 && errno == ECONNREFUSED;
    if (probe >= 0) close(probe);
    if (!left) return absl::UnavailableError(absl::StrCat("unix socket ", path, " cannot be bound: in use"));
    (void)unlink(path.c_str());
  }
  if (const int error = BindOne(address, size); error != 0) {
    return absl::UnavailableError(absl::StrCat("unix socket ", path, " cannot be bound: ", ErrorText(error)));
  }
  if (lstat(path.c_str(), &file) == 0) unix_file_ = {file.st_dev, file.st_ino};
  return absl::OkStatus();
}

absl::Status Listener::Start(ListenerEvents events) {
  events_ = std::move(events);
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  wake_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  spare_ = OpenSpare();
  bool watching = epoll_ >= 0 && wake_ >= 0 && spare_ >= 0;
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kWake}};
  watching = watching && epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &event) == 0;
  for (size_t i = 0; i < sockets_.size(); ++i) {
    event.data.u64 = i;
    watching = watching && epoll_ctl(epoll_, EPOLL_CTL_ADD, sockets_[i].fd, &event) == 0;
  }
  if (!watching) return absl::ResourceExhaustedError(absl::StrCat("connections cannot be watched: ", ErrorText(errno)));
  Beat();
  try {
    thread_ = std::thread([this] { Run(); });
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(absl::StrCat("no thread for connections: ", error.what()));
  }
  return absl::OkStatus();
}

void Listener::Stop() {
  stop_listening_ = true;
  if (!thread_.joinable()) return CloseSockets();
  (void)eventfd_write(wake_, 1);
  (void)sockets_closed_.WaitForNotificationWithTimeout(kStopPatience);
}

int64_t Listener::connections() const {
  absl::MutexLock lock(&mu_);
  return static_cast<int64_t>(watched_.size());
}

void Listener::Visit(const std::function<void(const Connection& connection)>& visit) const {
  absl::MutexLock lock(&mu_);
  for (const auto& [id, watched] : watched_) {
    tcp_info info{};
    socklen_t size = sizeof info;
    const bool told = getsockopt(watched.fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0;
    visit({id, watched.peer, watched.group, told ? static_cast<int64_t>(info.tcpi_bytes_received) : 0});
  }
}

void Listener::End(int64_t id, const char* reason) {
  absl::MutexLock lock(&mu_);
  const auto it = watched_.find(id);
  if (it == watched_.end()) return;
  it->second.end_reason = reason;
  // The other descriptor's owner learns of it as it would of a peer that has gone, and the thread, too, and reaps.
  // Disconnecting drops what the system has received and nobody has read, which for a flood is the most of it; a unix
  // socket cannot do that.
  sockaddr nowhere{};
  nowhere.sa_family = AF_UNSPEC;
  if (connect(it->second.fd, &nowhere, sizeof nowhere) != 0) (void)shutdown(it->second.fd, SHUT_RDWR);
}

bool Listener::Accepting(absl::Duration patience) const {
  const int64_t beat = beat_;
  if (beat == 0 || stop_listening_) return true;
  const int64_t now = SteadyNanoseconds();
  const int64_t longest = absl::ToInt64Nanoseconds(patience);
  const int64_t starved_since = starved_since_;
  return !broken_ && now - beat < longest && (starved_since == 0 || now - starved_since < longest);
}

void Listener::Run() {
  const int64_t tick = absl::ToInt64Nanoseconds(events_.tick);
  int64_t next_tick = SteadyNanoseconds() + tick;
  epoll_event happened[64];
  while (!stop_) {
    const int64_t left = std::clamp<int64_t>(next_tick - SteadyNanoseconds(), 0, tick);
    const int count = epoll_wait(epoll_, happened, std::size(happened), static_cast<int>(left / 1'000'000 + 1));
    Beat();
    for (int i = 0; i < count; ++i) {
      const uint64_t what = happened[i].data.u64;
      if (what == kWake) {
        eventfd_t ignored = 0;
        (void)eventfd_read(wake_, &ignored);
      } else if (what < kWake) {
        if (!stop_listening_) Accept(sockets_[what]);
      } else if ((happened[i].events & EPOLLHUP) != 0) {
        Reap(static_cast<int64_t>(what));
      }
    }
    if (stop_listening_) CloseSockets();
    if (SteadyNanoseconds() < next_tick) continue;
    next_tick = SteadyNanoseconds() + tick;
    for (Socket& socket : sockets_) {
      if (socket.paused) Pause(socket, false);
    }
    if (starved_since_ != 0) LookForRoom();
    if (events_.on_tick) events_.on_tick();
  }
}

void Listener::Accept(Socket& socket) {
  for (int i = 0; i < kAcceptAtOnce; ++i) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    const int fd = accept4(socket.fd, reinterpret_cast<sockaddr*>(&address), &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      starved_since_ = 0;
      Take(socket, fd, address);
    } else if (errno == EAGAIN) {
      return;
    } else if (IsLackOfRoom(errno)) {
      return RefuseWithSpare(socket);
    } else if (IsBroken(errno)) {
      broken_ = true;
      return Pause(socket, true);
    }
    // Anything else was the fault of that one connection, which has gone.
  }
}

void Listener::RefuseWithSpare(Socket& socket) {
  int64_t never = 0;
  starved_since_.compare_exchange_strong(never, SteadyNanoseconds());
  if (spare_ >= 0) close(spare_);
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  const int fd = accept4(socket.fd, reinterpret_cast<sockaddr*>(&address), &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) Refuse(fd, "descriptors", PeerName(address));
  spare_ = OpenSpare();
  // Without this, a connection that cannot even be refused would keep the thread turning.
  Pause(socket, true);
}

void Listener::LookForRoom() {
  if (spare_ < 0) spare_ = OpenSpare();
  const int probe = OpenSpare();
  if (probe >= 0) close(probe);
  if (spare_ >= 0 && probe >= 0) starved_since_ = 0;
}

void Listener::Take(const Socket& socket, int fd, const sockaddr_storage& address) {
  Watched watched{-1, PeerName(address), PeerGroup(address)};
  if (events_.refuse && events_.refuse(watched.group)) return Refuse(fd, "peer", watched.peer);
  sockaddr_storage ignored{};
  socklen_t size = sizeof ignored;
  // One that has gone again is nobody's; gRPC would write a line about it.
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&ignored), &size) != 0) {
    close(fd);
    return;
  }
  const char* refusal = nullptr;
  int64_t id = 0;
  {
    absl::MutexLock lock(&mu_);
    const auto group = by_group_.find(watched.group);
    if (static_cast<int64_t>(watched_.size()) >= options_.max_connections) {
      refusal = "max_connections";
    } else if (group != by_group_.end() && group->second >= options_.max_connections_per_peer) {
      refusal = "max_connections_per_peer";
    } else if (watched.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0); watched.fd < 0) {
      refusal = "descriptors";
    } else {
      id = next_id_++;
      // That it has ended is always told; nothing else is asked for, or every packet would wake this thread.
      epoll_event event{.events = EPOLLET, .data = {.u64 = static_cast<uint64_t>(id)}};
      if (epoll_ctl(epoll_, EPOLL_CTL_ADD, watched.fd, &event) != 0) {
        close(watched.fd);
        refusal = "descriptors";
      } else {
        ++by_group_[watched.group];
        watched_.emplace(id, watched);
      }
    }
  }
  if (refusal != nullptr) return Refuse(fd, refusal, watched.peer);
  const int on = 1;
  if (address.ss_family != AF_UNIX) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  events_.on_connection(fd, socket.fd);
}

void Listener::Refuse(int fd, absl::string_view reason, const std::string& peer) {
  CloseWithReset(fd);
  if (events_.on_refused) events_.on_refused(reason, peer);
}

void Listener::Pause(Socket& socket, bool paused) {
  socket.paused = paused && !broken_;
  const auto index = static_cast<uint64_t>(&socket - sockets_.data());
  epoll_event event{.events = paused ? 0u : EPOLLIN, .data = {.u64 = index}};
  (void)epoll_ctl(epoll_, EPOLL_CTL_MOD, socket.fd, &event);
}

void Listener::Reap(int64_t id) {
  Watched watched;
  {
    absl::MutexLock lock(&mu_);
    const auto it = watched_.find(id);
    if (it == watched_.end()) return;
    watched = std::move(it->second);
    watched_.erase(it);
    if (const auto group = by_group_.find(watched.group); --group->second == 0) by_group_.erase(group);
    close(watched.fd);
  }
  if (events_.on_ended) events_.on_ended(id, watched.end_reason, watched.peer);
}

void Listener::CloseSockets() {
  if (sockets_closed_.HasBeenNotified()) return;
  for (const Socket& socket : sockets_) close(socket.fd);
  sockets_.clear();
  // Another process may have made one of the same name since.
  struct stat file {};
  if (unix_file_.second != 0 && lstat(options_.unix_socket.c_str(), &file) == 0 && file.st_dev == unix_file_.first &&
      file.st_ino == unix_file_.second) {
    (void)unlink(options_.unix_socket.c_str());
  }
  sockets_closed_.Notify();
}

void Listener::Beat() { beat_ = SteadyNanoseconds(); }

}  // namespace palimpsest
