// HttpGet against a server of one answer.
#include "clients/cpp/cli/http.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace palimpsest::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kToken[] = "s3cret-Token";

// Answers one request on loopback with `status`, and keeps what came.
class OneAnswer {
 public:
  explicit OneAnswer(const std::string& status) : listener_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(listener_, 1), 0);
    EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    url_ = absl::StrCat("http://127.0.0.1:", ntohs(address.sin_port), "/metrics");
    thread_ = std::thread([this, status] {
      const int connection = accept(listener_, nullptr, nullptr);
      if (connection < 0) return;
      char bytes[4096];
      while (!absl::StrContains(request_, "\r\n\r\n")) {
        const ssize_t count = read(connection, bytes, sizeof(bytes));
        if (count <= 0) break;
        request_.append(bytes, count);
      }
      const std::string answer = absl::StrCat("HTTP/1.1 ", status, "\r\nContent-Length: 2\r\n\r\nok");
      EXPECT_EQ(write(connection, answer.data(), answer.size()), static_cast<ssize_t>(answer.size()));
      close(connection);
    });
  }
  ~OneAnswer() { Request(); }

  const std::string& url() const { return url_; }
  // What was asked; ends the server.
  std::string Request() {
    shutdown(listener_, SHUT_RDWR);
    if (thread_.joinable()) thread_.join();
    if (listener_ >= 0) close(std::exchange(listener_, -1));
    return request_;
  }

 private:
  int listener_;
  std::string url_;
  std::string request_;
  std::thread thread_;
};

TEST(HttpGetTest, ThisMachineIsReachedWithoutTheProxy) {
  for (const char* variable : {"http_proxy", "all_proxy", "ALL_PROXY"}) {
    setenv(variable, "http://127.0.0.1:1", 1);
    OneAnswer server("200 OK");
    const auto body = HttpGet(server.url(), absl::Seconds(20));
    unsetenv(variable);
    ASSERT_TRUE(body.ok()) << body.status();
    EXPECT_EQ(*body, "ok");
    EXPECT_THAT(server.Request(), Not(HasSubstr("Authorization")));
  }
}

TEST(HttpGetTest, AnErrorNamesTheProxyAndNotItsPassword) {
  setenv("http_proxy", "http://user:password@127.0.0.1:1", 1);
  const absl::Status status = HttpGet("http://elsewhere.invalid/metrics", absl::Seconds(20)).status();
  unsetenv("http_proxy");
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(status.ToString(), AllOf(HasSubstr("http://elsewhere.invalid/metrics"),
                                       HasSubstr("127.0.0.1:1 of http_proxy"), Not(HasSubstr("password"))));
}

TEST(HttpGetTest, TheTokenIsSent) {
  OneAnswer server("200 OK");
  EXPECT_TRUE(HttpGet(server.url(), absl::Seconds(20), {.token = kToken}).ok());
  EXPECT_THAT(server.Request(), HasSubstr(absl::StrCat("Authorization: Bearer ", kToken, "\r\n")));
}

TEST(HttpGetTest, TheTokenDoesNotCrossANetworkInPlainText) {
  const absl::Status status = HttpGet("http://elsewhere.invalid/metrics", absl::Seconds(1), {.token = kToken}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(status.ToString(), AllOf(HasSubstr("--allow_insecure_token"), Not(HasSubstr(kToken))));
}

TEST(HttpGetTest, ARefusalHasItsCode) {
  OneAnswer unknown("401 Unauthorized");
  EXPECT_TRUE(absl::IsUnauthenticated(HttpGet(unknown.url(), absl::Seconds(20)).status()));
  OneAnswer forbidden("403 Forbidden");
  EXPECT_TRUE(absl::IsPermissionDenied(HttpGet(forbidden.url(), absl::Seconds(20)).status()));
  OneAnswer broken("500 Oh");
  EXPECT_THAT(std::string(HttpGet(broken.url(), absl::Seconds(20)).status().message()), HasSubstr("HTTP status 500"));
}

TEST(HttpGetTest, WhatIsNoUrlIsRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(HttpGet("", absl::Seconds(1)).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(HttpGet("http://", absl::Seconds(1)).status()));
}

}  // namespace
}  // namespace palimpsest::cli
