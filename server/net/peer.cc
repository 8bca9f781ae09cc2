#include "server/net/peer.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"

namespace palimpsest {
namespace {

// An address of either family: IPv4 ones that came over an IPv6 socket are IPv4.
struct Internet {
  bool v6 = false;
  in_addr four{};
  in6_addr six{};
  uint16_t port = 0;
};

bool Read(const sockaddr_storage& address, Internet& out) {
  if (address.ss_family == AF_INET) {
    sockaddr_in four;
    std::memcpy(&four, &address, sizeof four);
    out = {false, four.sin_addr, {}, ntohs(four.sin_port)};
    return true;
  }
  if (address.ss_family != AF_INET6) return false;
  sockaddr_in6 six;
  std::memcpy(&six, &address, sizeof six);
  out = {true, {}, six.sin6_addr, ntohs(six.sin6_port)};
  if (IN6_IS_ADDR_V4MAPPED(&six.sin6_addr)) {
    out.v6 = false;
    std::memcpy(&out.four, six.sin6_addr.s6_addr + 12, sizeof out.four);
  }
  return true;
}

std::string Text(int family, const void* address) {
  char text[INET6_ADDRSTRLEN] = "";
  inet_ntop(family, address, text, sizeof text);
  return text;
}

}  // namespace

std::string PeerName(const sockaddr_storage& address) {
  Internet internet;
  if (!Read(address, internet)) return "unix";
  return internet.v6 ? absl::StrCat("[", Text(AF_INET6, &internet.six), "]:", internet.port)
                     : absl::StrCat(Text(AF_INET, &internet.four), ":", internet.port);
}

std::string PeerGroup(const sockaddr_storage& address) {
  Internet internet;
  if (!Read(address, internet)) return "unix";
  if (!internet.v6) return Text(AF_INET, &internet.four);
  std::memset(internet.six.s6_addr + 8, 0, 8);
  return absl::StrCat(Text(AF_INET6, &internet.six), "/64");
}

std::string PeerNameFromGrpc(absl::string_view peer) {
  if (absl::StartsWith(peer, "unix")) return "unix";
  if (!absl::ConsumePrefix(&peer, "ipv4:")) absl::ConsumePrefix(&peer, "ipv6:");
  return absl::StrReplaceAll(peer, {{"%5B", "["}, {"%5D", "]"}, {"%25", "%"}});
}

bool IsLoopback(const sockaddr_storage& address) {
  Internet internet;
  if (!Read(address, internet)) return true;  // a unix socket does not leave the machine
  return internet.v6 ? IN6_IS_ADDR_LOOPBACK(&internet.six) : (ntohl(internet.four.s_addr) >> 24) == 127;
}

}  // namespace palimpsest
