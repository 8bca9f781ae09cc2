#include "server/metrics/page_server.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "base/errno_status.h"
#include "base/steady_clock.h"
#include "server/metrics/tls.h"

namespace palimpsest {
namespace {

constexpr size_t kMaxRequestBytes = 16 << 10;
constexpr int kBacklog = 128;

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

struct FreeTls {
  void operator()(SSL* tls) const { SSL_free(tls); }
};
struct FreeAddresses {
  void operator()(addrinfo* addresses) const { freeaddrinfo(addresses); }
};

// What came of an attempt to read or write.
enum class Io { kDone, kWaitToRead, kWaitToWrite, kEnd };

struct Connection {
  Connection(int descriptor, SSL* with_tls, absl::Time until) : fd(descriptor), tls(with_tls), deadline(until) {}

  Io Read(char* buffer, size_t size, size_t& got);
  Io Write(std::string_view bytes, size_t& written);
  Io OfTls(int result);

  Descriptor fd;
  std::unique_ptr<SSL, FreeTls> tls;  // null: plain text
  absl::Time deadline;
  enum { kReading, kWriting, kClosing } phase = kReading;
  std::string request;
  std::string answer;
  size_t sent = 0;
};

Io OfSystem(ssize_t result, Io when_blocked) {
  if (result > 0) return Io::kDone;
  return result < 0 && (errno == EAGAIN || errno == EINTR) ? when_blocked : Io::kEnd;
}

Io Connection::OfTls(int result) {
  const int error = SSL_get_error(tls.get(), result);
  ERR_clear_error();
  return error == SSL_ERROR_WANT_READ ? Io::kWaitToRead : error == SSL_ERROR_WANT_WRITE ? Io::kWaitToWrite : Io::kEnd;
}

Io Connection::Read(char* buffer, size_t size, size_t& got) {
  if (tls != nullptr && phase == kReading) {  // what comes after the answer is not even decrypted
    const int result = SSL_read_ex(tls.get(), buffer, size, &got);
    return result == 1 ? Io::kDone : OfTls(result);
  }
  const ssize_t result = recv(fd.get(), buffer, size, 0);
  got = result > 0 ? static_cast<size_t>(result) : 0;
  return OfSystem(result, Io::kWaitToRead);
}

Io Connection::Write(std::string_view bytes, size_t& written) {
  if (tls != nullptr) {
    const int result = SSL_write_ex(tls.get(), bytes.data(), bytes.size(), &written);
    return result == 1 ? Io::kDone : OfTls(result);
  }
  const ssize_t result = send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  written = result > 0 ? static_cast<size_t>(result) : 0;
  return OfSystem(result, Io::kWaitToWrite);
}

std::string Answer(absl::string_view status, absl::string_view type, const std::string& body, bool with_body = true,
                   absl::string_view header = "") {
  return absl::StrCat("HTTP/1.1 ", status, "\r\nContent-Type: ", type,
                      "; charset=utf-8\r\nContent-Length: ", body.size(), "\r\n", header, "Connection: close\r\n\r\n",
                      with_body ? body : "");
}

std::string Refusal(absl::string_view status, absl::string_view header = "") {
  return Answer(status, "text/plain", absl::StrCat(status, "\n"), /*with_body=*/true, header);
}

struct Address {
  std::string host;
  std::string port;
};

absl::StatusOr<Address> ParseAddress(const std::string& text) {
  const size_t colon = text.rfind(':');
  int32_t port = -1;
  if (colon != std::string::npos && colon > 0 && absl::SimpleAtoi(text.substr(colon + 1), &port) && port >= 0 &&
      port <= 65535) {
    absl::string_view host = absl::string_view(text).substr(0, colon);
    const bool bracketed = absl::ConsumePrefix(&host, "[") && absl::ConsumeSuffix(&host, "]");
    if (!host.empty() && bracketed == absl::StrContains(host, ':')) {
      return Address{std::string(host), absl::StrCat(port)};
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--metrics_address is \"", text, "\"; accepted: host:port, or [address]:port for one of IPv6"));
}

absl::Status CannotBind(const std::string& address, int error) {
  const std::string what = absl::StrCat("--metrics_address ", address, " cannot be bound");
  switch (error) {
    case EADDRINUSE:
      return absl::UnavailableError(absl::StrCat(what, ": in use"));
    case EADDRNOTAVAIL:
      return absl::UnavailableError(absl::StrCat(what, ": not an address of this machine"));
    default:
      return ErrnoStatus(error, what);
  }
}

// Binds and listens; `port` replaces a 0 that was asked for, and becomes the one that was bound.
absl::StatusOr<Descriptor> Listen(const addrinfo& found, const std::string& name, bool both_kinds, int32_t& port) {
  Descriptor listener(socket(found.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (listener.get() < 0) return CannotBind(name, errno);
  const int on = 1, v6_only = both_kinds ? 0 : 1;
  setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_storage address{};
  socklen_t size = found.ai_addrlen;
  std::copy_n(reinterpret_cast<const char*>(found.ai_addr), size, reinterpret_cast<char*>(&address));
  in_port_t& bound_port = found.ai_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                                      : reinterpret_cast<sockaddr_in&>(address).sin_port;
  if (found.ai_family == AF_INET6) setsockopt(listener.get(), IPPROTO_IPV6, IPV6_V6ONLY, &v6_only, sizeof v6_only);
  if (bound_port == 0) bound_port = htons(static_cast<uint16_t>(port));
  if (bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener.get(), kBacklog) != 0 ||
      getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return CannotBind(name, errno);
  }
  port = ntohs(bound_port);
  return listener;
}

absl::StatusOr<std::vector<Descriptor>> ListenOnAll(const std::string& text, int32_t& port) {
  const absl::StatusOr<Address> address = ParseAddress(text);
  if (!address.ok()) return address.status();
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* list = nullptr;
  if (const int error = getaddrinfo(address->host.c_str(), address->port.c_str(), &hints, &list); error != 0) {
    const std::string message = absl::StrCat("--metrics_address is \"", text, "\": ", gai_strerror(error));
    return error == EAI_AGAIN ? absl::UnavailableError(message) : absl::InvalidArgumentError(message);
  }
  const std::unique_ptr<addrinfo, FreeAddresses> found(list);
  std::vector<Descriptor> listeners;
  absl::Status failed;
  for (const addrinfo* next = list; next != nullptr; next = next->ai_next) {
    absl::StatusOr<Descriptor> listener = Listen(*next, text, address->host == "::", port);
    if (listener.ok()) {
      listeners.push_back(*std::move(listener));
    } else {
      failed = listener.status();
    }
  }
  // A machine without IPv6 may have a name with an address of it.
  if (listeners.empty()) return failed;
  return listeners;
}

}  // namespace

class PageServer::Impl {
 public:
  Impl(const PageServerOptions& options, TlsContext tls, std::vector<Descriptor> listeners, int32_t port)
      : options_(options),
        tls_(std::move(tls)),
        listeners_(std::move(listeners)),
        port_(port),
        epoll_(epoll_create1(EPOLL_CLOEXEC)),
        stop_(eventfd(0, EFD_CLOEXEC)) {}
  ~Impl() {
    const uint64_t one = 1;
    (void)!write(stop_.get(), &one, sizeof one);
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Run();
  int32_t port() const { return port_; }

 private:
  void Watch(int fd, uint32_t events, int operation) const;
  void Loop();
  bool IsListener(int fd) const;
  void Accept(int listener);
  void MakeRoom();
  void CloseExpired();
  // Goes on until it has to wait, and watches for that; closes the connection when it is done.
  void Advance(Connection& connection);
  Io Step(Connection& connection);
  std::string Handle(absl::string_view head) const;

  const PageServerOptions options_;
  const TlsContext tls_;  // null: plain text
  const std::vector<Descriptor> listeners_;
  const int32_t port_;
  const Descriptor epoll_;
  const Descriptor stop_;
  std::map<int, Connection> connections_;  // by descriptor; the thread's
  std::thread thread_;
};

absl::Status PageServer::Impl::Run() {
  if (epoll_.get() < 0 || stop_.get() < 0) return ErrnoStatus(errno, "--metrics_address");
  for (const Descriptor& listener : listeners_) Watch(listener.get(), EPOLLIN, EPOLL_CTL_ADD);
  Watch(stop_.get(), EPOLLIN, EPOLL_CTL_ADD);
  // Signals are for others; and a peer that has gone is an error of a write, which OpenSSL cannot ask for by itself.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  absl::Status status;
  try {
    thread_ = std::thread([this] { Loop(); });
  } catch (const std::system_error& error) {
    status = ErrnoStatus(error.code(), "a thread for the metrics cannot be started");
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return status;
}

void PageServer::Impl::Watch(int fd, uint32_t events, int operation) const {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  epoll_ctl(epoll_.get(), operation, fd, &event);
}

bool PageServer::Impl::IsListener(int fd) const {
  return std::any_of(listeners_.begin(), listeners_.end(), [fd](const Descriptor& l) { return l.get() == fd; });
}

void PageServer::Impl::Loop() {
  for (;;) {
    absl::Time next = absl::InfiniteFuture();
    for (const auto& [fd, connection] : connections_) next = std::min(next, connection.deadline);
    const int64_t wait_ms = next == absl::InfiniteFuture() ? -1 : absl::ToInt64Milliseconds(next - SteadyNow()) + 1;
    epoll_event events[64];
    const int count = epoll_wait(epoll_.get(), events, 64, static_cast<int>(std::max<int64_t>(wait_ms, -1)));
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      if (fd == stop_.get()) return;
      if (IsListener(fd)) {
        Accept(fd);
      } else if (const auto found = connections_.find(fd); found != connections_.end()) {
        Advance(found->second);
      }
    }
    CloseExpired();
  }
}

void PageServer::Impl::Accept(int listener) {
  const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) {
    // Out of descriptors or memory: whoever waits goes on waiting, and this thread does not run in circles.
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      absl::SleepFor(absl::Milliseconds(100));
    }
    return;
  }
  if (static_cast<int32_t>(connections_.size()) >= options_.max_connections) MakeRoom();
  SSL* tls = nullptr;
  if (tls_ != nullptr) {
    tls = SSL_new(tls_.get());
    if (tls == nullptr || SSL_set_fd(tls, fd) != 1) {
      SSL_free(tls);
      close(fd);
      return;
    }
    SSL_set_accept_state(tls);
  }
  connections_.erase(fd);
  Connection& connection = connections_.try_emplace(fd, fd, tls, SteadyNow() + options_.timeout).first->second;
  Watch(fd, EPOLLIN, EPOLL_CTL_ADD);
  Advance(connection);
}

void PageServer::Impl::MakeRoom() {
  const auto worse = [](const auto& a, const auto& b) {
    const bool a_reads = a.second.phase == Connection::kReading, b_reads = b.second.phase == Connection::kReading;
    return a_reads != b_reads ? a_reads : a.second.deadline < b.second.deadline;
  };
  if (connections_.empty()) return;
  connections_.erase(std::min_element(connections_.begin(), connections_.end(), worse));
}

void PageServer::Impl::CloseExpired() {
  const absl::Time now = SteadyNow();
  std::erase_if(connections_, [now](const auto& entry) { return entry.second.deadline <= now; });
}

void PageServer::Impl::Advance(Connection& connection) {
  Io io = Io::kDone;
  while (io == Io::kDone) io = Step(connection);
  if (io == Io::kEnd) {
    connections_.erase(connection.fd.get());
  } else {
    Watch(connection.fd.get(), io == Io::kWaitToRead ? EPOLLIN : EPOLLOUT, EPOLL_CTL_MOD);
  }
}

Io PageServer::Impl::Step(Connection& connection) {
  if (connection.phase == Connection::kWriting) {
    size_t written = 0;
    const Io io = connection.Write(std::string_view(connection.answer).substr(connection.sent), written);
    connection.sent += written;
    if (connection.sent < connection.answer.size()) return io;
    // Closing at once would take back what is on its way if the peer has sent more than its request.
    if (connection.tls != nullptr) SSL_shutdown(connection.tls.get());
    ERR_clear_error();
    shutdown(connection.fd.get(), SHUT_WR);
    connection.phase = Connection::kClosing;
    connection.answer = std::string();
    return Io::kDone;
  }
  char buffer[4096];
  size_t got = 0;
  const Io io = connection.Read(buffer, sizeof buffer, got);
  if (io != Io::kDone || connection.phase == Connection::kClosing) return io;
  connection.request.append(buffer, got);
  const size_t end = connection.request.find("\r\n\r\n");
  if (end == std::string::npos && connection.request.size() <= kMaxRequestBytes) return Io::kDone;
  connection.answer = end == std::string::npos ? Refusal("431 Request Header Fields Too Large")
                                               : Handle(absl::string_view(connection.request).substr(0, end));
  connection.phase = Connection::kWriting;
  return Io::kDone;
}

// `head`: the request line and the headers.
std::string PageServer::Impl::Handle(absl::string_view head) const {
  const std::vector<absl::string_view> lines = absl::StrSplit(head, "\r\n");
  const std::vector<absl::string_view> words = absl::StrSplit(lines[0], ' ');
  if (words.size() != 3 || !absl::StartsWith(words[2], "HTTP/1.")) return Refusal("400 Bad Request");
  const absl::string_view path = words[1].substr(0, words[1].find('?'));
  if (path != "/metrics") return Refusal("404 Not Found");
  if (words[0] != "GET" && words[0] != "HEAD") return Refusal("405 Method Not Allowed", "Allow: GET, HEAD\r\n");
  if (options_.authorize) {
    absl::string_view authorization;
    for (absl::string_view line : lines) {
      const size_t colon = line.find(':');
      if (colon == absl::string_view::npos || !absl::EqualsIgnoreCase(line.substr(0, colon), "authorization")) continue;
      authorization = absl::StripAsciiWhitespace(line.substr(colon + 1));
      break;
    }
    if (!options_.authorize({authorization.data(), authorization.size()})) {
      return Refusal("401 Unauthorized", "WWW-Authenticate: Bearer\r\n");
    }
  }
  return Answer("200 OK", "text/plain; version=0.0.4", options_.page(), /*with_body=*/words[0] == "GET");
}

PageServer::PageServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PageServer::~PageServer() = default;

int32_t PageServer::port() const { return impl_->port(); }

absl::StatusOr<std::unique_ptr<PageServer>> PageServer::Start(const PageServerOptions& options) {
  TlsContext tls;
  if (!options.certificate.empty()) {
    absl::StatusOr<TlsContext> made = MakeTlsContext(options.certificate, options.key, options.client_authority);
    if (!made.ok()) return made.status();
    tls = *std::move(made);
  }
  int32_t port = 0;
  absl::StatusOr<std::vector<Descriptor>> listeners = ListenOnAll(options.address, port);
  if (!listeners.ok()) return listeners.status();
  auto impl = std::make_unique<Impl>(options, std::move(tls), *std::move(listeners), port);
  if (absl::Status status = impl->Run(); !status.ok()) return status;
  return std::unique_ptr<PageServer>(new PageServer(std::move(impl)));
}

}  // namespace palimpsest
