// The connections of a gRPC server: accepted by us (server/net/listener.h), spoken on by gRPC, and watched.
//
// gRPC bounds neither how many connections there are nor how many streams a peer begins and resets, nor how long a
// header block is. So what each connection has received is held against what gRPC has made of it (its channelz
// counters), ten times a second, and one that only costs is ended:
//   "resets"  its peer has begun and abandoned more streams than --max_resets_per_second allows;
//   "bytes"   it has sent more than a message may be, and there was neither a message nor a stream in it.
#pragma once

#include <grpcpp/server_builder.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/metrics/metrics.h"
#include "server/net/listener.h"
#include "server/net/rate_by_name.h"
#include "server/rpc/background.h"

namespace palimpsest {

struct ConnectionLimits {
  // Connections open at once. 0: as many as the limit of descriptors leaves room for, at most 4096.
  int64_t max_connections = 0;
  // Of one peer: an IPv4 address, an IPv6 network of 64 bits, or all who come over the unix socket. 0: half of them.
  int64_t max_connections_per_peer = 0;
  // A connection on which no call has run for so long ends; clients make a new one when they need it.
  absl::Duration max_idle = absl::Minutes(10);
  // For TLS and HTTP/2 to be ready to speak.
  absl::Duration handshake_timeout = absl::Seconds(20);
  // Streams that the callers of one peer may reset, or abandon, in a second, over ten seconds. 0: not bounded.
  double max_resets_per_second = 100;
  // Calls that one connection may begin in a second; twice as many may come at once. 0: not bounded.
  double max_calls_per_second = 5000;
};

// Thread-safe after Start.
class Connections {
 public:
  // What is bound waits until Start. The statuses are those of ConnectionsThatFit and Listener::Bind.
  // `most_message_bytes` and `most_streams`: what one message, and a connection, may have.
  static absl::StatusOr<std::unique_ptr<Connections>> Bind(ListenerOptions where, const ConnectionLimits& limits,
                                                           int64_t most_message_bytes, int32_t most_streams,
                                                           Metrics* metrics);
  ~Connections();

  // Makes the server that `builder` builds speak on these connections.
  void AddTo(grpc::ServerBuilder& builder, std::shared_ptr<grpc::ServerCredentials> credentials);
  // Accepts, once the server has started. RESOURCE_EXHAUSTED: no thread for it.
  absl::Status Start();
  // Accepts no more. Those that are open stay.
  void Stop() {
    stopped_ = true;
    listener_->Stop();
  }

  int32_t port() const { return listener_->port(); }
  const ConnectionLimits& limits() const { return limits_; }
  // Listener::Accepting, with a patience of five seconds.
  bool accepting() const;

 private:
  struct Seen;
  Connections(std::unique_ptr<Listener> listener, const ConnectionLimits& limits, int64_t most_message_bytes,
              int32_t most_streams, Metrics* metrics);
  void Check();
  void CheckOne(Seen& seen, int64_t id, const std::string& group, int64_t bytes);
  void FindSockets();
  void Refused(absl::string_view reason, const std::string& peer);
  void Ended(int64_t id, absl::string_view reason, const std::string& peer);

  const std::unique_ptr<Listener> listener_;
  const ConnectionLimits limits_;
  const int64_t most_message_bytes_;
  const int64_t most_streams_;
  Metrics* const metrics_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  // A peer that never stops sending keeps the thread that hands its connection over for as long: gRPC reads there. So
  // it is not the listener's, which goes on to watch, and ends those that flood.
  std::unique_ptr<WorkThreads> handover_;
  std::atomic<bool> stopped_{false};
  // The listener's thread's, all of them.
  RateByName resets_;
  absl::flat_hash_map<int64_t, std::unique_ptr<Seen>> seen_;     // by the listener's id
  absl::flat_hash_map<std::string, int64_t> sockets_;            // gRPC's ids, by PeerName
  absl::flat_hash_map<std::string, int64_t> refused_since_log_;  // by reason
  absl::Time last_log_ = absl::InfinitePast();
};

}  // namespace palimpsest
