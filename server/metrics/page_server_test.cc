#include "server/metrics/page_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/metrics/tls.h"

namespace palimpsest {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kGet[] = "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n";

// A client's end of a connection to loopback.
class Caller {
 public:
  explicit Caller(int32_t port, int family = AF_INET) : fd_(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in v4{};
    v4.sin_family = AF_INET;
    v4.sin_port = htons(static_cast<uint16_t>(port));
    v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sockaddr_in6 v6{};
    v6.sin6_family = AF_INET6;
    v6.sin6_port = v4.sin_port;
    v6.sin6_addr = in6addr_loopback;
    connected_ = (family == AF_INET ? connect(fd_, reinterpret_cast<sockaddr*>(&v4), sizeof v4)
                                    : connect(fd_, reinterpret_cast<sockaddr*>(&v6), sizeof v6)) == 0;
  }
  Caller(Caller&& other) noexcept : fd_(std::exchange(other.fd_, -1)), connected_(other.connected_) {}
  ~Caller() {
    if (fd_ >= 0) close(fd_);
  }

  bool connected() const { return connected_; }
  int fd() const { return fd_; }
  void Send(const std::string& text) const { (void)send(fd_, text.data(), text.size(), MSG_NOSIGNAL); }
  // All that comes until the other end closes.
  std::string Receive() const {
    std::string text;
    char buffer[1 << 16];
    for (ssize_t got; (got = recv(fd_, buffer, sizeof buffer, 0)) > 0;) text.append(buffer, static_cast<size_t>(got));
    return text;
  }
  std::string Ask(const std::string& text) const {
    Send(text);
    return Receive();
  }

 private:
  int fd_;
  bool connected_ = false;
};

std::unique_ptr<PageServer> Start(PageServerOptions options) {
  if (options.address.empty()) options.address = "127.0.0.1:0";
  if (!options.page) options.page = [] { return std::string("a 1\n"); };
  absl::StatusOr<std::unique_ptr<PageServer>> server = PageServer::Start(options);
  EXPECT_TRUE(server.ok()) << server.status();
  return server.ok() ? *std::move(server) : nullptr;
}

TEST(PageServer, ServesThePage) {
  const auto server = Start({});
  EXPECT_EQ(Caller(server->port()).Ask(kGet),
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: 4\r\n"
            "Connection: close\r\n\r\na 1\n");
  EXPECT_THAT(Caller(server->port()).Ask("GET /metrics?name=a HTTP/1.0\r\n\r\n"), EndsWith("\r\n\r\na 1\n"));
  EXPECT_THAT(Caller(server->port()).Ask("HEAD /metrics HTTP/1.1\r\n\r\n"),
              EndsWith("Content-Length: 4\r\nConnection: close\r\n\r\n"));
}

TEST(PageServer, RefusesWhatIsNotAskedOfIt) {
  const auto server = Start({});
  const std::pair<std::string, std::string> rows[] = {
      {"GET / HTTP/1.1\r\n\r\n", "404"},
      {"POST /metrics HTTP/1.1\r\n\r\n", "405"},
      {"GET /metrics\r\n\r\n", "400"},
      {"\r\n\r\n", "400"},
      {std::string("\0\xff\x16\x03\x01 x y\r\n\r\n", 13), "400"},
      {"GET /metrics HTTP/1.1\r\nx: " + std::string(100'000, 'x'), "431"},
  };
  for (const auto& [request, code] : rows) {
    EXPECT_THAT(Caller(server->port()).Ask(request), StartsWith("HTTP/1.1 " + code)) << request.substr(0, 60);
  }
}

TEST(PageServer, HalfRequestsStopNobody) {
  const auto server = Start({.max_connections = 8});
  std::vector<Caller> silent;
  for (int i = 0; i < 100; ++i) {
    silent.emplace_back(server->port());
    silent.back().Send("GET /met");
    EXPECT_THAT(Caller(server->port()).Ask(kGet), EndsWith("a 1\n"));
  }
  // Those that were there first had to go.
  EXPECT_EQ(silent.front().Receive(), "");
}

TEST(PageServer, ARequestInPiecesIsOne) {
  const auto server = Start({});
  const Caller caller(server->port());
  for (const char byte : std::string(kGet)) caller.Send(std::string(1, byte));
  EXPECT_THAT(caller.Receive(), EndsWith("a 1\n"));
}

TEST(PageServer, AnswersThatNobodyReadsStopNobody) {
  const std::string large(8 << 20, 'x');  // more than the system keeps for a connection
  const auto server = Start({.page = [&large] { return large; }});
  const Caller slow(server->port());
  slow.Send(kGet);
  pollfd begun{slow.fd(), POLLIN, 0};
  ASSERT_EQ(poll(&begun, 1, 60'000), 1);
  EXPECT_EQ(Caller(server->port()).Ask(kGet).size(), slow.Receive().size());
}

TEST(PageServer, AConnectionEndsWhenItsTimeIsOver) {
  const auto server = Start({.timeout = absl::Milliseconds(50)});
  const Caller silent(server->port());
  EXPECT_EQ(silent.Receive(), "");
}

TEST(PageServer, AsksWhoMayReadIt) {
  const auto server = Start({.authorize = [](std::string_view value) { return value == "Bearer good"; }});
  const auto with = [](const std::string& header) {
    return "GET /metrics HTTP/1.1\r\nHost: here\r\n" + header + "\r\n";
  };
  EXPECT_THAT(Caller(server->port()).Ask(with("")),
              AllOf(StartsWith("HTTP/1.1 401"), HasSubstr("WWW-Authenticate: Bearer")));
  EXPECT_THAT(Caller(server->port()).Ask(with("Authorization: Bearer bad\r\n")), StartsWith("HTTP/1.1 401"));
  EXPECT_THAT(Caller(server->port()).Ask(with("authorization:  Bearer good \r\n")), StartsWith("HTTP/1.1 200"));
  // The first one counts.
  EXPECT_THAT(Caller(server->port()).Ask(with("Authorization: x\r\nAuthorization: Bearer good\r\n")),
              StartsWith("HTTP/1.1 401"));
}

TEST(PageServer, AddressesOfBothKinds) {
  if (!Caller(Start({.address = "127.0.0.1:0"})->port()).connected()) GTEST_FAIL();
  PageServerOptions options{.address = "[::1]:0", .page = [] { return std::string("a 1\n"); }};
  const absl::StatusOr<std::unique_ptr<PageServer>> v6 = PageServer::Start(options);
  if (!v6.ok()) GTEST_SKIP() << "this machine has no IPv6: " << v6.status();
  EXPECT_THAT(Caller((*v6)->port(), AF_INET6).Ask(kGet), EndsWith("a 1\n"));
  EXPECT_FALSE(Caller((*v6)->port(), AF_INET).connected());
  // All of one kind, and all of both.
  const auto both = Start({.address = "localhost:0"});
  EXPECT_THAT(Caller(both->port(), AF_INET).Ask(kGet), EndsWith("a 1\n"));
}

TEST(PageServer, WhatCannotBeBoundSaysWhy) {
  const auto server = Start({});
  const auto refusal = [](const std::string& address) { return PageServer::Start({.address = address}).status(); };
  const std::string taken = absl::StrCat("127.0.0.1:", server->port());
  EXPECT_EQ(refusal(taken).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(refusal(taken).message(), "--metrics_address " + taken + " cannot be bound: in use");
  // An address for documentation, which no machine has.
  EXPECT_EQ(refusal("192.0.2.1:0").message(),
            "--metrics_address 192.0.2.1:0 cannot be bound: not an address of this machine");
  for (const char* text : {"", ":", ":1", "9464", "x:", "x:y", "127.0.0.1:65536", "127.0.0.1:-1", "::1:9464", "[::1]",
                           "[::1:9464", "[127.0.0.1]:1", "[]:1"}) {
    EXPECT_EQ(refusal(text).code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(refusal(text).message()), HasSubstr(absl::StrCat("--metrics_address is \"", text, "\"")));
  }
}

// A certificate that signs itself, and its key.
struct Identity {
  std::string certificate, key;
};
Identity MakeIdentity(const char* name) {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = X509_new();
  X509_set_version(certificate, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
  X509_set_pubkey(certificate, key);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name), -1, -1, 0);
  X509_set_issuer_name(certificate, X509_get_subject_name(certificate));
  X509_EXTENSION* authority = X509V3_EXT_conf_nid(nullptr, nullptr, NID_basic_constraints, "CA:TRUE");
  X509_add_ext(certificate, authority, -1);
  X509_EXTENSION_free(authority);
  X509_sign(certificate, key, EVP_sha256());
  const auto text = [](const auto& write) {
    BIO* bio = BIO_new(BIO_s_mem());
    write(bio);
    char* data = nullptr;
    std::string pem(data, 0);
    const long size = BIO_get_mem_data(bio, &data);
    pem.assign(data, static_cast<size_t>(size));
    BIO_free(bio);
    return pem;
  };
  Identity identity;
  identity.certificate = text([&](BIO* bio) { PEM_write_bio_X509(bio, certificate); });
  identity.key = text([&](BIO* bio) { PEM_write_bio_PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr); });
  X509_free(certificate);
  EVP_PKEY_free(key);
  return identity;
}

// What the server answers over TLS; "" if it hangs up.
std::string AskOverTls(int32_t port, const std::string& authority, const Identity* own) {
  signal(SIGPIPE, SIG_IGN);
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  const auto read = [](const std::string& pem) { return BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())); };
  BIO* bio = read(authority);
  X509* trusted = PEM_read_bio_X509(bio, nullptr, nullptr, nullptr);
  X509_STORE_add_cert(SSL_CTX_get_cert_store(context), trusted);
  X509_free(trusted);
  BIO_free(bio);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
  if (own != nullptr) {
    bio = read(own->certificate);
    X509* certificate = PEM_read_bio_X509(bio, nullptr, nullptr, nullptr);
    SSL_CTX_use_certificate(context, certificate);
    X509_free(certificate);
    BIO_free(bio);
    bio = read(own->key);
    EVP_PKEY* key = PEM_read_bio_PrivateKey(bio, nullptr, nullptr, nullptr);
    SSL_CTX_use_PrivateKey(context, key);
    EVP_PKEY_free(key);
    BIO_free(bio);
  }
  const Caller caller(port);
  SSL* tls = SSL_new(context);
  SSL_set_fd(tls, caller.fd());
  std::string text;
  if (SSL_connect(tls) == 1 && SSL_write(tls, kGet, sizeof(kGet) - 1) > 0) {
    char buffer[4096];
    for (int got; (got = SSL_read(tls, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(got));
  }
  SSL_free(tls);
  SSL_CTX_free(context);
  return text;
}

TEST(PageServer, Tls) {
  const Identity identity = MakeIdentity("server");
  const std::string large(1 << 20, 'x');
  const auto server =
      Start({.certificate = identity.certificate, .key = identity.key, .page = [&large] { return large; }});
  EXPECT_THAT(AskOverTls(server->port(), identity.certificate, nullptr), EndsWith("\r\n\r\n" + large));
  EXPECT_EQ(AskOverTls(server->port(), MakeIdentity("other").certificate, nullptr), "");
  // Plain text is not answered in plain text.
  EXPECT_EQ(Caller(server->port()).Ask(kGet).find("HTTP"), std::string::npos);
}

TEST(PageServer, MutualTls) {
  const Identity identity = MakeIdentity("server"), known = MakeIdentity("prometheus"), unknown = MakeIdentity("x");
  const auto server = Start({.certificate = identity.certificate,
                             .key = identity.key,
                             .client_authority = identity.certificate + known.certificate});
  EXPECT_THAT(AskOverTls(server->port(), identity.certificate, &known), EndsWith("a 1\n"));
  EXPECT_EQ(AskOverTls(server->port(), identity.certificate, &unknown), "");
  EXPECT_EQ(AskOverTls(server->port(), identity.certificate, nullptr), "");
}

TEST(Tls, WhatCannotBeUsedIsNamed) {
  const Identity identity = MakeIdentity("a"), other = MakeIdentity("b");
  const auto refusal = [](const std::string& certificate, const std::string& key, const std::string& authority) {
    const absl::Status status = MakeTlsContext(certificate, key, authority).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(refusal("nonsense", identity.key, ""), StartsWith("--tls_cert holds no certificate"));
  EXPECT_THAT(refusal(identity.certificate, "nonsense", ""), StartsWith("--tls_key holds no key"));
  EXPECT_THAT(refusal(identity.certificate, other.key, ""), StartsWith("--tls_key is not the key"));
  EXPECT_THAT(refusal(identity.certificate, identity.key, "nonsense"), StartsWith("--tls_client_ca holds no"));
}

}  // namespace
}  // namespace palimpsest
