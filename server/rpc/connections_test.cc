// What comes over a server's connections below the level of calls: floods of streams and frames, handshakes that do not
// end, too many calls, unix sockets.
#include "server/rpc/connections.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/rpc/call_rate.h"
#include "server/rpc/testing/test_server.h"

namespace palimpsest::testing {
namespace {

using ::testing::HasSubstr;

std::string Frame(int type, int flags, uint32_t stream, const std::string& payload) {
  const auto byte = [](size_t value) { return static_cast<char>(value & 255); };
  const char head[] = {
      byte(payload.size() >> 16), byte(payload.size() >> 8), byte(payload.size()), byte(type),  byte(flags),
      byte(stream >> 24),         byte(stream >> 16),        byte(stream >> 8),    byte(stream)};
  return absl::StrCat(absl::string_view(head, sizeof head), payload);
}

std::string Literal(const std::string& name, const std::string& value) {
  return absl::StrCat(std::string(1, '\0'), std::string(1, static_cast<char>(name.size())), name,
                      std::string(1, static_cast<char>(value.size())), value);
}

constexpr int kHeaders = 1, kReset = 3, kSettings = 4, kContinuation = 9;
constexpr int kEndHeaders = 4;

// The headers of a Tokenize call, without compression state.
std::string CallHeaders() {
  return Literal(":method", "POST") + Literal(":scheme", "http") +
         Literal(":path", "/palimpsest.v1.GenerationService/Tokenize") + Literal(":authority", "x") +
         Literal("content-type", "application/grpc") + Literal("te", "trailers");
}

// A client that says what it likes.
class RawClient {
 public:
  explicit RawClient(int port, const char* from = "127.0.0.1") : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    inet_pton(AF_INET, from, &address.sin_addr);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    address.sin_port = htons(static_cast<uint16_t>(port));
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~RawClient() { close(fd_); }

  void Begin() { EXPECT_TRUE(Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(kSettings, 0, 0, ""))); }
  // Reads away what comes, so that the server is never kept from writing. False: the connection has ended.
  bool Send(const std::string& bytes) {
    char away[4096];
    while (recv(fd_, away, sizeof away, MSG_DONTWAIT) > 0) {
    }
    for (size_t sent = 0; sent < bytes.size();) {
      const ssize_t part = send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (part < 0) return false;
      sent += part;
    }
    return true;
  }
  // Until the connection ends.
  void AwaitEnd() {
    char away[4096];
    while (recv(fd_, away, sizeof away, 0) > 0) {
    }
  }

 private:
  const int fd_;
};

grpc::Status Tokenize(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  v1::TokenizeRequest request;
  request.set_text("x");
  v1::TokenizeResponse response;
  return v1::GenerationService::NewStub(channel)->Tokenize(&context, request, &response);
}

double Ended(TestServer& server, const std::string& reason) {
  return server.Metric("palimpsest_connections_ended_total{reason=\"" + reason + "\"}");
}

// Streams begun and reset at once, until the server ends the connection. Returns how many there were, up to `most`.
int64_t ResetFlood(RawClient& client, int64_t most) {
  const std::string headers = CallHeaders();
  uint32_t stream = 1;
  int64_t resets = 0;
  while (resets < most) {
    std::string bytes;
    for (int i = 0; i < 50; ++i, stream += 2, ++resets) {
      bytes += Frame(kHeaders, kEndHeaders, stream, headers) + Frame(kReset, 0, stream, std::string("\0\0\0\x8", 4));
    }
    if (!client.Send(bytes)) break;
  }
  return resets;
}

TEST(ConnectionsTest, AFloodOfResetsEndsItsConnectionAndNoOther) {
  TestServer server([](ServerOptions& options) {
    options.connections.max_resets_per_second = 20;
    options.limits.max_streams_per_connection = 100;
  });
  EXPECT_TRUE(Tokenize(server.channel()).ok());
  RawClient client(server.server().port(), "127.0.0.2");
  client.Begin();
  constexpr int64_t kMost = 10'000'000;
  EXPECT_LT(ResetFlood(client, kMost), kMost);
  EXPECT_EQ(server.AwaitMetric("palimpsest_connections_ended_total{reason=\"resets\"}", 1), 1);
  EXPECT_TRUE(Tokenize(server.channel()).ok());
  // Its peer has to wait before it may come again.
  RawClient again(server.server().port(), "127.0.0.2");
  again.AwaitEnd();
  EXPECT_EQ(server.AwaitMetric("palimpsest_connections_refused_total{reason=\"peer\"}", 1), 1);
  EXPECT_TRUE(Tokenize(server.channel()).ok());
}

TEST(ConnectionsTest, AFewResetsEndNothing) {
  TestServer server;
  RawClient client(server.server().port());
  client.Begin();
  EXPECT_EQ(ResetFlood(client, 500), 500);
  // They have been looked at: the flood is over 4096 bytes, and ticks go by.
  absl::SleepFor(absl::Milliseconds(500));
  EXPECT_TRUE(client.Send(Frame(kSettings, 0, 0, "")));
  EXPECT_EQ(Ended(server, "resets"), 0);
}

TEST(ConnectionsTest, AHeaderBlockWithoutEndEndsItsConnection) {
  TestServer server([](ServerOptions& options) { options.limits.max_message_bytes = 1 << 20; });
  RawClient client(server.server().port());
  client.Begin();
  ASSERT_TRUE(client.Send(Frame(kHeaders, 0, 1, CallHeaders())));
  std::string more;
  for (int i = 0; i < 60; ++i) more += Literal(absl::StrCat("x", i), std::string(100, 'y'));
  const std::string frame = Frame(kContinuation, 0, 1, more);
  int64_t sent = 0;
  constexpr int64_t kMost = int64_t{1} << 30;
  while (sent < kMost && client.Send(frame)) sent += static_cast<int64_t>(frame.size());
  EXPECT_LT(sent, kMost);
  EXPECT_EQ(server.AwaitMetric("palimpsest_connections", 0), 0);
  EXPECT_TRUE(Tokenize(server.channel()).ok());
}

TEST(ConnectionsTest, FramesThatAreNeitherCallsNorMessagesEndTheirConnection) {
  TestServer server([](ServerOptions& options) { options.limits.max_message_bytes = 1 << 20; });
  RawClient client(server.server().port());
  client.Begin();
  std::string settings;
  for (int i = 0; i < 500; ++i) settings += Frame(kSettings, 0, 0, "");
  int64_t sent = 0;
  constexpr int64_t kMost = int64_t{1} << 30;
  while (sent < kMost && client.Send(settings)) sent += static_cast<int64_t>(settings.size());
  EXPECT_LT(sent, kMost);
  EXPECT_EQ(server.AwaitMetric("palimpsest_connections_ended_total{reason=\"bytes\"}", 1), 1);
  EXPECT_TRUE(Tokenize(server.channel()).ok());
}

TEST(ConnectionsTest, LargeMessagesEndNothing) {
  TestServer server([](ServerOptions& options) {
    options.limits.max_message_bytes = 2 << 20;
    options.limits.max_prompt_bytes = 10;
  });
  // Twenty times what may come without a message in it. They are refused, which costs little, and are messages all the
  // same.
  v1::TokenizeRequest request;
  request.set_text(std::string(1 << 20, 'x'));
  for (int i = 0; i < 120; ++i) {
    grpc::ClientContext context;
    v1::TokenizeResponse response;
    // UNAVAILABLE: its connection was ended.
    EXPECT_EQ(server.generation().Tokenize(&context, request, &response).error_code(),
              grpc::StatusCode::RESOURCE_EXHAUSTED);
  }
  EXPECT_EQ(Ended(server, "bytes"), 0);
}

TEST(ConnectionsTest, HandshakesEndInTime) {
  TestServer server([](ServerOptions& options) { options.connections.handshake_timeout = absl::Milliseconds(200); });
  RawClient silent(server.server().port());
  RawClient half(server.server().port());
  ASSERT_TRUE(half.Send("PRI * HTTP/2.0\r\n\r\nSM\r\n"));
  silent.AwaitEnd();
  half.AwaitEnd();
  EXPECT_TRUE(Tokenize(server.channel()).ok());
}

TEST(ConnectionsTest, IdleConnectionsEndAndClientsComeAgain) {
  TestServer server([](ServerOptions& options) { options.connections.max_idle = absl::Seconds(1); });
  EXPECT_TRUE(Tokenize(server.channel()).ok());
  RawClient client(server.server().port());
  client.Begin();
  client.AwaitEnd();
  EXPECT_EQ(server.AwaitMetric("palimpsest_connections", 0), 0);
  EXPECT_TRUE(Tokenize(server.channel()).ok());
}

TEST(ConnectionsTest, TooManyAreRefusedAndCounted) {
  TestServer server([](ServerOptions& options) {
    options.connections.max_connections = 8;
    options.connections.max_connections_per_peer = 4;
  });
  EXPECT_TRUE(Tokenize(server.channel()).ok());
  {
    std::vector<std::unique_ptr<RawClient>> flood;
    for (int i = 0; i < 20; ++i) flood.push_back(std::make_unique<RawClient>(server.server().port(), "127.0.0.2"));
    const std::string refused = "palimpsest_connections_refused_total{reason=\"max_connections_per_peer\"}";
    EXPECT_EQ(server.AwaitMetric(refused, 16), 16);
    EXPECT_EQ(server.Metric("palimpsest_connections"), 5);
    EXPECT_EQ(server.Metric("palimpsest_connections_max"), 8);
    EXPECT_TRUE(Tokenize(server.channel()).ok());
  }
  EXPECT_EQ(server.AwaitMetric("palimpsest_connections", 1), 1);
}

TEST(ConnectionsTest, CallsBeyondTheRateAreRefusedBeforeAnyWork) {
  TestServer server([](ServerOptions& options) { options.connections.max_calls_per_second = 5; });
  grpc::Status refused;
  for (int i = 0; i < 1000 && refused.ok(); ++i) refused = Tokenize(server.channel());
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(), HasSubstr("--max_calls_per_second"));
  EXPECT_EQ(DetailsOf(refused).reason, "CALL_RATE");
  EXPECT_GT(DetailsOf(refused).retry_seconds, 0);
  // Another connection has a rate of its own.
  grpc::ChannelArguments own;
  own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  EXPECT_TRUE(Tokenize(grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", server.server().port()),
                                                 grpc::InsecureChannelCredentials(), own))
                  .ok());
}

TEST(ConnectionsTest, AUnixSocketServesBesideTcpOrAlone) {
  TemporaryFolder folder;
  const std::string path = folder.path() + "/socket";
  TestServer both([&](ServerOptions& options) { options.unix_socket = path; });
  EXPECT_TRUE(Tokenize(both.channel()).ok());
  EXPECT_TRUE(Tokenize(grpc::CreateChannel("unix:" + path, grpc::InsecureChannelCredentials())).ok());

  const std::string second = folder.path() + "/alone";
  TestServer alone([&](ServerOptions& options) {
    options.unix_socket = second;
    options.port = -1;
  });
  EXPECT_EQ(alone.server().port(), -1);
  EXPECT_TRUE(Tokenize(grpc::CreateChannel("unix:" + second, grpc::InsecureChannelCredentials())).ok());
}

TEST(ConnectionsTest, APublicAddressNeedsAWord) {
  TemporaryFolder folder;
  ServerOptions options = TestServer::DefaultOptions(folder.path());
  options.models.clear();
  options.host = "0.0.0.0";
  const absl::Status refused = Server::Start(options).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(refused.message(), HasSubstr("--insecure_public"));
}

}  // namespace
}  // namespace palimpsest::testing
