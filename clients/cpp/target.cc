#include "clients/cpp/target.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace palimpsest::client {
namespace {

constexpr absl::string_view kSchemes[] = {"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock"};

struct Parsed {
  bool socket = false;             // of this machine, not of a network
  std::vector<std::string> hosts;  // without ports
};

std::string HostOf(absl::string_view address) {
  if (absl::ConsumePrefix(&address, "[")) return std::string(address.substr(0, address.find(']')));
  const bool has_port = std::count(address.begin(), address.end(), ':') == 1;
  return std::string(has_port ? address.substr(0, address.find(':')) : address);
}

Parsed Parse(absl::string_view target) {
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(target, absl::MaxSplits(':', 1));
  const bool has_scheme = absl::StrContains(target, ":") &&
                          std::find(std::begin(kSchemes), std::end(kSchemes), parts.first) != std::end(kSchemes);
  absl::string_view rest = has_scheme ? parts.second : target;
  Parsed parsed;
  parsed.socket = has_scheme && (absl::StartsWith(parts.first, "unix") || parts.first == "vsock");
  if (absl::ConsumePrefix(&rest, "//")) {  // dns://authority/host:port
    const size_t slash = rest.find('/');
    rest = slash == absl::string_view::npos ? "" : rest.substr(slash + 1);
  }
  const std::string addresses = absl::StrReplaceAll(rest, {{"%5B", "["}, {"%5b", "["}, {"%5D", "]"}, {"%5d", "]"}});
  for (const absl::string_view address : absl::StrSplit(addresses, ',')) parsed.hosts.push_back(HostOf(address));
  return parsed;
}

// The first of the variables that is set to something.
const char* FirstSet(std::initializer_list<const char*> variables) {
  for (const char* variable : variables) {
    const char* value = std::getenv(variable);
    if (value != nullptr && *value != '\0') return variable;
  }
  return nullptr;
}

}  // namespace

bool IsLoopbackHost(absl::string_view host) {
  const std::string name = absl::AsciiStrToLower(absl::StripSuffix(host, "."));
  if (name == "localhost" || absl::EndsWith(name, ".localhost")) return true;
  in_addr four;
  if (inet_pton(AF_INET, name.c_str(), &four) == 1) return ntohl(four.s_addr) >> 24 == 127;
  in6_addr six;
  return inet_pton(AF_INET6, name.c_str(), &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
}

bool IsLocalTarget(absl::string_view target) {
  const Parsed parsed = Parse(target);
  return parsed.socket || std::all_of(parsed.hosts.begin(), parsed.hosts.end(), &IsLoopbackHost);
}

std::string ProxyOnTheWay(absl::string_view target) {
  const char* const variable = FirstSet({"grpc_proxy", "https_proxy", "http_proxy"});
  if (variable == nullptr || IsLocalTarget(target)) return "";
  const std::string host = Parse(target).hosts.front();
  if (const char* const exceptions = FirstSet({"no_grpc_proxy", "no_proxy"}); exceptions != nullptr) {
    for (const absl::string_view entry : absl::StrSplit(std::getenv(exceptions), ',')) {
      const absl::string_view end = absl::StripAsciiWhitespace(entry);
      if (!end.empty() && absl::EndsWithIgnoreCase(host, end)) return "";
    }
  }
  return absl::StrCat("the way leads through the proxy ", ProxyAddress(std::getenv(variable)), " of ", variable,
                      "; to go around it, add ", host, " to no_proxy");
}

std::string ProxyAddress(absl::string_view url) {
  if (const size_t scheme = url.find("://"); scheme != absl::string_view::npos) url.remove_prefix(scheme + 3);
  url = url.substr(0, url.find('/'));
  if (const size_t user = url.rfind('@'); user != absl::string_view::npos) url.remove_prefix(user + 1);
  return std::string(url);
}

}  // namespace palimpsest::client
