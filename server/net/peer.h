// Who is at the other end of a connection, as the logs and the bounds know it.
#pragma once

#include <sys/socket.h>

#include <string>

#include "absl/strings/string_view.h"

namespace palimpsest {

// "192.0.2.1:4567", "[2001:db8::1]:4567", or "unix" for all who come over a unix socket. An IPv4 address that came over
// an IPv6 socket is written as IPv4.
std::string PeerName(const sockaddr_storage& address);

// What bounds per peer are counted by: the address without its port, of an IPv6 address the network of 64 bits, which
// is what one customer has: "192.0.2.1", "2001:db8::/64", "unix".
std::string PeerGroup(const sockaddr_storage& address);

// A peer as gRPC writes it ("ipv4:192.0.2.1:4567", "ipv6:%5B2001:db8::1%5D:4567", "unix:") in the form of PeerName.
std::string PeerNameFromGrpc(absl::string_view peer);

bool IsLoopback(const sockaddr_storage& address);

}  // namespace palimpsest
