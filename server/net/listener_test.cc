// Connections over real sockets on loopback: bounds, ends, lack of descriptors, unix sockets; and the arithmetic.
#include "server/net/listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/net/descriptors.h"
#include "server/net/peer.h"
#include "server/net/rate_by_name.h"

namespace palimpsest {
namespace {

using ::testing::HasSubstr;

// A socket of the test's; closed when it goes.
class Client {
 public:
  explicit Client(int fd) : fd_(fd) {}
  ~Client() { Close(); }
  Client(Client&& other) noexcept : fd_(std::exchange(other.fd_, -1)), connected_(other.connected_) {}

  // Not connected yet.
  static Client Tcp(const char* from = "127.0.0.1") {
    Client client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    inet_pton(AF_INET, from, &address.sin_addr);
    EXPECT_EQ(bind(client.fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    return client;
  }
  void Connect(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    address.sin_port = htons(static_cast<uint16_t>(port));
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  static Client Unix(const std::string& path) {
    Client client(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    client.connected_ = connect(client.fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    return client;
  }

  bool connected() const { return connected_; }
  void Send(absl::string_view text) { EXPECT_EQ(send(fd_, text.data(), text.size(), MSG_NOSIGNAL), text.size()); }
  // What comes next; empty once the other side has gone.
  std::string Receive() {
    char text[64];
    const ssize_t got = recv(fd_, text, sizeof text, 0);
    return got > 0 ? std::string(text, got) : "";
  }
  void Close() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }

 private:
  int fd_;
  bool connected_ = false;
};

// A listener whose connections say hello and stay open until the peer, or the listener, ends them.
class Greeter {
 public:
  explicit Greeter(ListenerOptions options, std::function<void(ListenerEvents&)> change = {}) {
    absl::StatusOr<std::unique_ptr<Listener>> bound = Listener::Bind(options);
    EXPECT_TRUE(bound.ok()) << bound.status();
    listener_ = *std::move(bound);
    ListenerEvents events;
    events.tick = absl::Milliseconds(5);
    events.on_connection = [this](int fd, int) {
      (void)send(fd, "hello", 5, MSG_NOSIGNAL);
      open_.push_back(fd);
    };
    events.on_refused = [this](absl::string_view reason, const std::string&) { Count(reason); };
    events.on_ended = [this](int64_t, absl::string_view reason, const std::string&) { Count(reason); };
    // What gRPC does when a peer has gone.
    events.on_tick = [this] {
      std::erase_if(open_, [](int fd) {
        char byte;
        if (recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 0) return false;
        shutdown(fd, SHUT_RDWR);
        close(fd);
        return true;
      });
    };
    if (change) change(events);
    EXPECT_TRUE(listener_->Start(events).ok());
  }
  ~Greeter() {
    listener_.reset();
    for (const int fd : open_) close(fd);
  }

  Listener& listener() { return *listener_; }
  int port() { return listener_->port(); }
  Client Connect(const char* from = "127.0.0.1") {
    Client client = Client::Tcp(from);
    client.Connect(port());
    return client;
  }
  void Count(absl::string_view reason) {
    absl::MutexLock lock(&mu_);
    ++counts_[std::string(reason)];
  }
  int64_t CountOf(const std::string& reason) {
    absl::MutexLock lock(&mu_);
    return counts_[reason];
  }
  void AwaitConnections(int64_t count) {
    while (listener_->connections() != count) absl::SleepFor(absl::Milliseconds(1));
  }
  void AwaitCount(const std::string& reason, int64_t count) {
    while (CountOf(reason) < count) absl::SleepFor(absl::Milliseconds(1));
  }

 private:
  std::unique_ptr<Listener> listener_;
  std::vector<int> open_;  // the listener's thread's
  absl::Mutex mu_;
  std::map<std::string, int64_t> counts_;
};

TEST(ListenerTest, TakesConnectionsAndCountsThem) {
  Greeter greeter({});
  Client one = greeter.Connect();
  Client two = greeter.Connect();
  EXPECT_EQ(one.Receive(), "hello");
  EXPECT_EQ(two.Receive(), "hello");
  EXPECT_EQ(greeter.listener().connections(), 2);
  one.Close();
  greeter.AwaitConnections(1);
  greeter.AwaitCount("closed", 1);
  EXPECT_EQ(greeter.CountOf("max_connections"), 0);
}

TEST(ListenerTest, RefusesBeyondTheBoundAndTakesAgain) {
  Greeter greeter({.max_connections = 3, .max_connections_per_peer = 3});
  std::deque<Client> clients;
  for (int i = 0; i < 10; ++i) clients.push_back(greeter.Connect());
  int served = 0;
  for (Client& client : clients) served += client.Receive() == "hello" ? 1 : 0;
  EXPECT_EQ(served, 3);
  greeter.AwaitCount("max_connections", 7);
  clients.clear();
  greeter.AwaitConnections(0);
  EXPECT_EQ(greeter.Connect().Receive(), "hello");
}

TEST(ListenerTest, OnePeerCannotTakeThePlacesOfOthers) {
  Greeter greeter({.max_connections = 10, .max_connections_per_peer = 2});
  std::deque<Client> flood;
  for (int i = 0; i < 20; ++i) flood.push_back(greeter.Connect("127.0.0.1"));
  greeter.AwaitCount("max_connections_per_peer", 18);
  EXPECT_EQ(greeter.Connect("127.0.0.2").Receive(), "hello");
}

TEST(ListenerTest, RefusesPeersThatAreToBeRefused) {
  Greeter greeter({}, [](ListenerEvents& events) {
    events.refuse = [](const std::string& group) { return group == "127.0.0.3"; };
  });
  EXPECT_EQ(greeter.Connect("127.0.0.3").Receive(), "");
  EXPECT_EQ(greeter.Connect("127.0.0.4").Receive(), "hello");
  EXPECT_EQ(greeter.CountOf("peer"), 1);
}

TEST(ListenerTest, EndsAConnection) {
  Greeter greeter({});
  Client client = greeter.Connect();
  EXPECT_EQ(client.Receive(), "hello");
  client.Send("12345");
  int64_t id = 0;
  int64_t bytes = 0;
  while (bytes == 0) {
    greeter.listener().Visit([&](const Listener::Connection& connection) {
      id = connection.id;
      bytes = connection.bytes_received;
      EXPECT_EQ(connection.group, "127.0.0.1");
      EXPECT_THAT(connection.peer, ::testing::StartsWith("127.0.0.1:"));
    });
  }
  EXPECT_EQ(bytes, 5);
  greeter.listener().End(id, "resets");
  EXPECT_EQ(client.Receive(), "");
  greeter.AwaitCount("resets", 1);
  EXPECT_EQ(greeter.listener().connections(), 0);
  greeter.listener().End(id, "resets");  // has gone: nothing happens
}

// The soft limit of descriptors, put back at the end.
class DescriptorLimit {
 public:
  explicit DescriptorLimit(rlim_t limit) {
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit lower{limit, before_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &lower);
  }
  ~DescriptorLimit() { setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_;
};

// The next descriptor that would be given out.
rlim_t NextDescriptor() {
  const int fd = open("/dev/null", O_RDONLY);
  close(fd);
  return static_cast<rlim_t>(fd);
}

TEST(ListenerTest, OutlivesALackOfDescriptors) {
  Greeter greeter({});
  {
    Client late = Client::Tcp();
    DescriptorLimit limit(NextDescriptor());
    late.Connect(greeter.port());
    EXPECT_EQ(late.Receive(), "") << "taken without a descriptor";
    greeter.AwaitCount("descriptors", 1);
  }
  EXPECT_EQ(greeter.Connect().Receive(), "hello");
}

TEST(ListenerTest, SaysThatItCannotAcceptWhileThatLasts) {
  Greeter greeter({});
  Client waiting = Client::Tcp();
  {
    // The spare descriptor, once given up, cannot be had again either.
    DescriptorLimit limit(3);
    waiting.Connect(greeter.port());
    while (greeter.listener().Accepting(absl::Milliseconds(500))) absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(waiting.Receive(), "hello") << "it waited, and was taken when there was room";
  while (!greeter.listener().Accepting(absl::Milliseconds(500))) absl::SleepFor(absl::Milliseconds(1));
}

TEST(ListenerTest, SaysThatItsThreadIsStuck) {
  absl::Notification go_on;
  Greeter greeter({}, [&go_on](ListenerEvents& events) {
    events.on_connection = [&go_on](int fd, int) {
      go_on.WaitForNotification();
      shutdown(fd, SHUT_RDWR);
      close(fd);
    };
  });
  EXPECT_TRUE(greeter.listener().Accepting(absl::Minutes(1)));
  Client client = greeter.Connect();
  while (greeter.listener().Accepting(absl::Milliseconds(500))) absl::SleepFor(absl::Milliseconds(1));
  go_on.Notify();
  while (!greeter.listener().Accepting(absl::Milliseconds(500))) absl::SleepFor(absl::Milliseconds(1));
}

TEST(ListenerTest, StopsListeningAndKeepsWhatIsOpen) {
  Greeter greeter({});
  Client client = greeter.Connect();
  EXPECT_EQ(client.Receive(), "hello");
  greeter.listener().Stop();
  EXPECT_FALSE(greeter.Connect().connected());
  EXPECT_EQ(greeter.listener().connections(), 1);
  client.Close();
  greeter.AwaitConnections(0);
}

TEST(ListenerTest, APortInUseIsNotShared) {
  Greeter greeter({});
  const auto second = Listener::Bind({.port = greeter.port()});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(second.status().message(),
              HasSubstr(absl::StrCat("port 127.0.0.1:", greeter.port(), " cannot be bound")));
  EXPECT_EQ(Listener::Bind({.host = "203.0.113.9"}).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Listener::Bind({.host = "no.such.host.invalid"}).status().code(), absl::StatusCode::kUnavailable);
}

TEST(ListenerTest, BindsNamesAndBothFamilies) {
  for (const char* host : {"localhost", "::1", "[::1]", "::", "0.0.0.0"}) {
    const auto bound = Listener::Bind({.host = host});
    // A machine may have no IPv6; then the error says so.
    if (!bound.ok()) {
      EXPECT_THAT(host, HasSubstr(":")) << bound.status();
      continue;
    }
    EXPECT_GT((*bound)->port(), 0) << host;
  }
  const auto everywhere = Listener::Bind({.host = "::"});
  Client client = Client::Tcp();
  if (everywhere.ok()) client.Connect((*everywhere)->port());
  EXPECT_EQ(client.connected(), everywhere.ok()) << "IPv4 reaches a socket of both families";
}

TEST(ListenerTest, BindsPublicAddressesOnlyWhenTold) {
  for (const char* host : {"0.0.0.0", "::", "203.0.113.9"}) {
    const auto bound = Listener::Bind({.host = host, .why_loopback_only = "because"});
    EXPECT_EQ(bound.status().code(), absl::StatusCode::kInvalidArgument) << host;
    EXPECT_THAT(bound.status().message(), HasSubstr("others can reach: because"));
  }
  EXPECT_TRUE(Listener::Bind({.host = "localhost", .why_loopback_only = "because"}).ok());
  EXPECT_TRUE(Listener::Bind({.host = "127.0.0.7", .why_loopback_only = "because"}).ok());
}

class UnixSocketTest : public ::testing::Test {
 protected:
  UnixSocketTest() : folder_(absl::StrCat(::testing::TempDir(), "listener_", getpid())) {
    std::filesystem::create_directories(folder_);
  }
  ~UnixSocketTest() override { std::filesystem::remove_all(folder_); }
  const std::string folder_;
  const std::string path_ = folder_ + "/socket";
};

TEST_F(UnixSocketTest, ServesAndCleansUp) {
  {
    Greeter greeter({.port = -1, .unix_socket = path_, .unix_socket_mode = 0620});
    EXPECT_EQ(greeter.port(), -1);
    struct stat file {};
    ASSERT_EQ(stat(path_.c_str(), &file), 0);
    EXPECT_EQ(file.st_mode & 0777, 0620u);
    EXPECT_EQ(Client::Unix(path_).Receive(), "hello");
    // Somebody listens: it is not taken away from them.
    const auto second = Listener::Bind({.port = -1, .unix_socket = path_});
    EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(second.status().message(), HasSubstr("in use"));
    EXPECT_EQ(Client::Unix(path_).Receive(), "hello");
    greeter.AwaitCount("closed", 2);
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(UnixSocketTest, ReplacesWhatAProcessLeftAndNothingElse) {
  const int left = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path_.data(), path_.size());
  ASSERT_EQ(bind(left, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  close(left);  // the file stays
  { Greeter greeter({.port = -1, .unix_socket = path_}); }
  std::ofstream(path_) << "precious";
  const auto bound = Listener::Bind({.port = -1, .unix_socket = path_});
  EXPECT_EQ(bound.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(bound.status().message(), HasSubstr("not a socket"));
  EXPECT_EQ(std::filesystem::file_size(path_), 8);
}

TEST_F(UnixSocketTest, WrongPathsAreToldByName) {
  EXPECT_EQ(Listener::Bind({.port = -1}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Listener::Bind({.port = -1, .unix_socket = std::string(200, 'x')}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Listener::Bind({.port = -1, .unix_socket = folder_ + "/none/socket"}).status().code(),
            absl::StatusCode::kUnavailable);
}

sockaddr_storage Address(int family, const char* text, uint16_t port) {
  sockaddr_storage address{};
  if (family == AF_INET) {
    auto* four = reinterpret_cast<sockaddr_in*>(&address);
    *four = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {}, .sin_zero = {}};
    inet_pton(AF_INET, text, &four->sin_addr);
  } else {
    auto* six = reinterpret_cast<sockaddr_in6*>(&address);
    *six = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_flowinfo = 0, .sin6_addr = {}, .sin6_scope_id = 0};
    inet_pton(AF_INET6, text, &six->sin6_addr);
  }
  return address;
}

TEST(PeerTest, NamesAndGroups) {
  const struct {
    int family;
    const char* address;
    const char* name;
    const char* group;
    const char* grpc;
    bool loopback;
  } cases[] = {
      {AF_INET, "192.0.2.1", "192.0.2.1:99", "192.0.2.1", "ipv4:192.0.2.1:99", false},
      {AF_INET, "127.8.0.1", "127.8.0.1:99", "127.8.0.1", "ipv4:127.8.0.1:99", true},
      {AF_INET6, "2001:db8:1:2:3::4", "[2001:db8:1:2:3::4]:99", "2001:db8:1:2::/64", "ipv6:%5B2001:db8:1:2:3::4%5D:99",
       false},
      {AF_INET6, "::ffff:192.0.2.1", "192.0.2.1:99", "192.0.2.1", "ipv4:192.0.2.1:99", false},
      {AF_INET6, "::ffff:127.0.0.1", "127.0.0.1:99", "127.0.0.1", "ipv4:127.0.0.1:99", true},
      {AF_INET6, "::1", "[::1]:99", "::/64", "ipv6:%5B::1%5D:99", true},
  };
  for (const auto& want : cases) {
    const sockaddr_storage address = Address(want.family, want.address, 99);
    EXPECT_EQ(PeerName(address), want.name);
    EXPECT_EQ(PeerGroup(address), want.group);
    EXPECT_EQ(PeerNameFromGrpc(want.grpc), want.name);
    EXPECT_EQ(IsLoopback(address), want.loopback) << want.address;
  }
  EXPECT_EQ(PeerNameFromGrpc("unix:"), "unix");
}

TEST(ConnectionsThatFitTest, LeavesRoomForFiles) {
  EXPECT_EQ(*ConnectionsThatFit(0, 1 << 20, 20), kMostConnectionsByDefault);
  EXPECT_EQ(*ConnectionsThatFit(0, 1024, 24), (1024 - 24 - 16 - 128) / 2);
  EXPECT_EQ(*ConnectionsThatFit(0, 64, 4), (64 - 4 - 16 - 16) / 2);
  EXPECT_EQ(*ConnectionsThatFit(10'000, 1 << 20, 20), 10'000);
  EXPECT_EQ(ConnectionsThatFit(1000, 1024, 24).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ConnectionsThatFit(0, 32, 24).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(RateByNameTest, BurstsAndRefills) {
  RateByName rate(10, 20);
  const absl::Time start = absl::UnixEpoch();
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(rate.Take("a", start));
  EXPECT_FALSE(rate.Take("a", start));
  EXPECT_TRUE(rate.Take("b", start));
  EXPECT_EQ(rate.UntilNext("a", start), absl::Milliseconds(100));
  EXPECT_TRUE(rate.Take("a", start + absl::Milliseconds(100)));
  EXPECT_FALSE(rate.Take("a", start + absl::Milliseconds(100)));
}

TEST(RateByNameTest, ADebtIsPaidByTime) {
  RateByName rate(10, 20);
  const absl::Time start = absl::UnixEpoch();
  EXPECT_TRUE(rate.Spend("a", 20, start));
  EXPECT_FALSE(rate.InDebt("a", start));
  EXPECT_FALSE(rate.Spend("a", 30, start));
  EXPECT_TRUE(rate.InDebt("a", start + absl::Milliseconds(2900)));
  EXPECT_FALSE(rate.InDebt("a", start + absl::Seconds(3)));
}

TEST(RateByNameTest, ForgetsThoseThatAreEven) {
  RateByName rate(10, 20);
  for (int i = 0; i < 100'000; ++i) rate.Take(absl::StrCat(i), absl::UnixEpoch() + absl::Seconds(i));
  EXPECT_LT(rate.names(), 2000);
  RateByName unbounded(0, 0);
  EXPECT_TRUE(unbounded.Take("a", absl::UnixEpoch()));
  EXPECT_TRUE(unbounded.Spend("a", 1e9, absl::UnixEpoch()));
  EXPECT_EQ(unbounded.names(), 0);
}

}  // namespace
}  // namespace palimpsest
