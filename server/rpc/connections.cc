#include "server/rpc/connections.h"

#include <grpc/grpc.h>
#include <grpc/support/alloc.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/steady_clock.h"
#include "server/net/descriptors.h"
#include "server/net/peer.h"

namespace palimpsest {
namespace {

// Connections that have received less than this since they were last looked at are not asked about: it is room for
// some hundred resets, which count when they are found.
constexpr int64_t kLookEvery = 4096;
// What a connection may send beside messages and streams: window updates, settings, pings, a TLS handshake.
constexpr int64_t kOtherBytes = int64_t{4} << 20;
constexpr absl::Duration kLogEvery = absl::Seconds(10);
// Threads that hand connections to gRPC, and connections that may wait for them.
constexpr int32_t kHandoverThreads = 4;
constexpr int32_t kHandoverQueue = 4096;
constexpr absl::Duration kPatience = absl::Seconds(5);
// How long a rate of resets is averaged over.
constexpr double kResetSeconds = 10;

using Json = nlohmann::json;

// Takes the text that gRPC has made.
Json Parsed(char* text) {
  if (text == nullptr) return {};
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  gpr_free(text);
  return json;
}

// What `path` names, or null.
const Json& At(const Json& json, std::initializer_list<const char*> path) {
  static const Json& none = *new Json;
  const Json* at = &json;
  for (const char* key : path) {
    const auto it = at->is_object() ? at->find(key) : at->end();
    if (!at->is_object() || it == at->end()) return none;
    at = &*it;
  }
  return *at;
}

// 64-bit integers are text in the JSON form of a proto, and left out when they are 0.
int64_t Number(const Json& json, std::initializer_list<const char*> path) {
  const Json& value = At(json, path);
  int64_t number = 0;
  if (value.is_string()) (void)absl::SimpleAtoi(value.get_ref<const std::string&>(), &number);
  return number;
}

// What gRPC has made of what came on a connection.
struct Streams {
  int64_t begun = 0;
  int64_t answered = 0;   // ended with our trailers
  int64_t abandoned = 0;  // ended without
  int64_t messages = 0;
};

bool ReadStreams(int64_t socket, Streams& streams) {
  const Json json = Parsed(grpc_channelz_get_socket(socket));
  const Json& data = At(json, {"socket", "data"});
  if (!data.is_object()) return false;  // it has gone
  streams = {Number(data, {"streamsStarted"}), Number(data, {"streamsSucceeded"}), Number(data, {"streamsFailed"}),
             Number(data, {"messagesReceived"})};
  return true;
}

}  // namespace

struct Connections::Seen {
  int64_t socket = 0;  // gRPC's id; 0: not known yet
  int64_t bytes = 0;   // received when it was last looked at
  Streams streams;     // then
  int64_t bytes_at_progress = 0;
};

absl::StatusOr<std::unique_ptr<Connections>> Connections::Bind(ListenerOptions where, const ConnectionLimits& limits,
                                                               int64_t most_message_bytes, int32_t most_streams,
                                                               Metrics* metrics) {
  PALIMPSEST_ASSIGN_OR_RETURN(const int64_t fit, ConnectionsThatFit(limits.max_connections));
  ConnectionLimits resolved = limits;
  resolved.max_connections = fit;
  if (resolved.max_connections_per_peer == 0) resolved.max_connections_per_peer = std::max<int64_t>(1, fit / 2);
  where.max_connections = resolved.max_connections;
  where.max_connections_per_peer = resolved.max_connections_per_peer;
  PALIMPSEST_ASSIGN_OR_RETURN(std::unique_ptr<Listener> listener, Listener::Bind(where));
  return std::unique_ptr<Connections>(
      new Connections(std::move(listener), resolved, most_message_bytes, most_streams, metrics));
}

Connections::Connections(std::unique_ptr<Listener> listener, const ConnectionLimits& limits, int64_t most_message_bytes,
                         int32_t most_streams, Metrics* metrics)
    : listener_(std::move(listener)),
      limits_(limits),
      most_message_bytes_(most_message_bytes),
      most_streams_(most_streams),
      metrics_(metrics),
      // A client that goes with all its streams has done nothing wrong.
      resets_(limits.max_resets_per_second, kResetSeconds * limits.max_resets_per_second + most_streams) {
  handover_ = std::make_unique<WorkThreads>(kHandoverThreads, kHandoverQueue);
  // The counters are gRPC's, and must be there as long as this asks for them.
  grpc_init();
  metrics_->SetConnections([listener = listener_.get()] { return listener->connections(); }, limits_.max_connections);
}

Connections::~Connections() {
  metrics_->SetConnections(nullptr, 0);
  listener_->Finish();  // its thread calls this object, and so do these
  handover_.reset();
  grpc_shutdown();
}

void Connections::AddTo(grpc::ServerBuilder& builder, std::shared_ptr<grpc::ServerCredentials> credentials) {
  const auto milliseconds = [](absl::Duration duration) {
    return static_cast<int>(std::clamp<int64_t>(absl::ToInt64Milliseconds(duration), 1, INT32_MAX));
  };
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, milliseconds(limits_.handshake_timeout));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, milliseconds(limits_.max_idle));
  builder.AddChannelArgument(GRPC_ARG_ENABLE_CHANNELZ, 1);
  acceptor_ = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, std::move(credentials));
}

absl::Status Connections::Start() {
  ListenerEvents events;
  events.on_connection = [this](int fd, int listener_fd) {
    const auto refuse = [fd] {
      shutdown(fd, SHUT_RDWR);
      close(fd);
    };
    const absl::Status accepted = handover_->Run(absl::StrCat(fd), [this, fd, listener_fd, refuse] {
      if (stopped_) return refuse();
      grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
      connection.fd = fd;
      connection.listener_fd = listener_fd;
      acceptor_->HandleNewConnection(&connection);
    });
    if (!accepted.ok()) refuse();
  };
  events.refuse = [this](const std::string& group) { return resets_.InDebt(group, SteadyNow()); };
  events.on_refused = [this](absl::string_view reason, const std::string& peer) { Refused(reason, peer); };
  events.on_ended = [this](int64_t id, absl::string_view reason, const std::string& peer) { Ended(id, reason, peer); };
  events.on_tick = [this] { Check(); };
  return listener_->Start(std::move(events));
}

bool Connections::accepting() const { return listener_->Accepting(kPatience); }

void Connections::Check() {
  struct Due {
    int64_t id;
    std::string group;
    std::string peer;
    int64_t bytes;
  };
  std::vector<Due> due;
  listener_->Visit([this, &due](const Listener::Connection& connection) {
    std::unique_ptr<Seen>& seen = seen_[connection.id];
    if (seen == nullptr) seen = std::make_unique<Seen>();
    if (connection.bytes_received - seen->bytes < kLookEvery) return;
    due.push_back({connection.id, connection.group, connection.peer, connection.bytes_received});
  });
  bool looked = false;
  for (const Due& connection : due) {
    Seen& seen = *seen_[connection.id];
    if (seen.socket == 0) {
      if (!std::exchange(looked, true)) FindSockets();
      const auto it = sockets_.find(connection.peer);
      if (it != sockets_.end()) seen.socket = it->second;
    }
    CheckOne(seen, connection.id, connection.group, connection.bytes);
  }
}

void Connections::CheckOne(Seen& seen, int64_t id, const std::string& group, int64_t bytes) {
  Streams streams;
  // Without a socket, gRPC is still shaking hands.
  if (seen.socket != 0 && !ReadStreams(seen.socket, streams)) return;
  const bool progress = streams.begun != seen.streams.begun || streams.messages != seen.streams.messages;
  if (progress) seen.bytes_at_progress = bytes;
  // Those that are open beyond what may be are reset, too, and gRPC has not got round to them yet.
  const int64_t open = std::clamp<int64_t>(streams.begun - streams.answered - streams.abandoned, 0, most_streams_);
  streams.abandoned = streams.begun - streams.answered - open;
  const int64_t abandoned = streams.abandoned - seen.streams.abandoned;
  seen.bytes = bytes;
  seen.streams = streams;
  if (!resets_.Spend(group, static_cast<double>(abandoned), SteadyNow())) {
    listener_->End(id, "resets");
  } else if (bytes - seen.bytes_at_progress > kOtherBytes + open * most_message_bytes_) {
    listener_->End(id, "bytes");
  }
}

void Connections::FindSockets() {
  sockets_.clear();
  const Json servers = Parsed(grpc_channelz_get_servers(0));
  for (const Json& server : At(servers, {"server"})) {
    const int64_t id = Number(server, {"ref", "serverId"});
    for (int64_t next = 0;;) {
      const Json page = Parsed(grpc_channelz_get_server_sockets(id, next, 0));
      for (const Json& socket : At(page, {"socketRef"})) {
        // "chttp2 ipv4:192.0.2.1:4567"
        const std::string name = socket.value("name", "");
        const int64_t socket_id = Number(socket, {"socketId"});
        sockets_[PeerNameFromGrpc(absl::string_view(name).substr(name.find(' ') + 1))] = socket_id;
        next = socket_id + 1;
      }
      if (At(page, {"end"}) == true || !At(page, {"socketRef"}).is_array() || At(page, {"socketRef"}).empty()) break;
    }
  }
}

void Connections::Refused(absl::string_view reason, const std::string& peer) {
  metrics_->CountConnectionRefused(reason);
  ++refused_since_log_[std::string(reason)];
  const absl::Time now = SteadyNow();
  if (now - last_log_ < kLogEvery) return;
  last_log_ = now;
  std::vector<std::pair<std::string, std::string>> values = {{"last_peer", peer}};
  for (const auto& [why, count] : refused_since_log_) values.emplace_back(why, absl::StrCat(count));
  refused_since_log_.clear();
  LogWarning("connections were refused", values);
}

void Connections::Ended(int64_t id, absl::string_view reason, const std::string& peer) {
  seen_.erase(id);
  metrics_->CountConnectionEnded(reason);
  if (reason != "closed") LogWarning("a connection was ended", {{"reason", std::string(reason)}, {"peer", peer}});
}

}  // namespace palimpsest
