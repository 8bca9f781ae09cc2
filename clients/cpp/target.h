// Where a gRPC target lies, and which proxy is on the way.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace palimpsest::client {

// Whether a host, without a port, is this machine: `localhost`, a name below it, or a loopback address.
bool IsLoopbackHost(absl::string_view host);

// Whether all addresses of a gRPC target are this machine: loopback hosts and unix sockets.
bool IsLocalTarget(absl::string_view target);

// A sentence that names the environment's proxy (grpc_proxy, https_proxy, http_proxy, in gRPC's order) through which
// gRPC reaches `target`, and how to go around it; without the proxy's password. Empty: there is none, or no_proxy
// covers the target, or the target is this machine, which is reached without.
std::string ProxyOnTheWay(absl::string_view target);

// The host and port of a proxy's URL, without user and password.
std::string ProxyAddress(absl::string_view url);

}  // namespace palimpsest::client
