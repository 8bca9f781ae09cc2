// Accepts connections, over TCP and a unix socket, bounds them, and hands them to whoever speaks on them.
//
// The listener keeps a duplicate of each connection's descriptor. So it learns when the connection has ended (whoever
// has the other one shuts it down before closing it), counts what is open, and can end a connection itself. A
// connection therefore costs two descriptors.
//
// One thread of its own accepts and watches. It never dies of a lack of descriptors: what cannot be taken is refused,
// and connections are taken again as soon as there is room.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace palimpsest {

struct ListenerOptions {
  // A name or an address; "0.0.0.0" and "::" are all of this machine's, of both families.
  std::string host = "127.0.0.1";
  int32_t port = 0;  // 0: any free one; -1: no TCP
  // If not empty, addresses that others can reach are refused with this reason.
  std::string why_loopback_only = "";
  // Path of a unix socket. Empty: none. A socket that a process left there is replaced, nothing else is.
  std::string unix_socket = "";
  // Who may connect to it: the permissions of the socket's file.
  int32_t unix_socket_mode = 0600;

  int64_t max_connections = 1024;
  int64_t max_connections_per_peer = 512;  // of one PeerGroup (peer.h)
};

// What happens to connections. Called on the listener's thread, one at a time; set before Start.
struct ListenerEvents {
  // A connection that was accepted. Takes `fd`, which does not block; it must be shut down before it is closed.
  std::function<void(int fd, int listener_fd)> on_connection;
  // Whether connections of this peer group are refused for now, for what earlier ones have done.
  std::function<bool(const std::string& group)> refuse;
  // One was refused, for one of Listener::kRefusals.
  std::function<void(absl::string_view reason, const std::string& peer)> on_refused;
  // One has ended: "closed" by either side, or the reason that End was given.
  std::function<void(int64_t id, absl::string_view reason, const std::string& peer)> on_ended;
  // Called about every `tick`.
  std::function<void()> on_tick;
  absl::Duration tick = absl::Milliseconds(100);
};

// Thread-safe.
class Listener {
 public:
  // Too many in all; too many of this peer; the peer is refused for now; no descriptors are left.
  static constexpr const char* kRefusals[] = {"max_connections", "max_connections_per_peer", "peer", "descriptors"};

  // What a connection is to those who watch over it.
  struct Connection {
    int64_t id = 0;
    const std::string& peer;     // PeerName
    const std::string& group;    // PeerGroup
    int64_t bytes_received = 0;  // by the system from the peer; 0 where it does not say: a unix socket
  };

  // Binds and listens; what comes waits until Start. INVALID_ARGUMENT: an option, with its name.  UNAVAILABLE: an
  // address cannot be bound.
  static absl::StatusOr<std::unique_ptr<Listener>> Bind(const ListenerOptions& options);
  // Stops. Connections are left as they are.
  ~Listener();

  // RESOURCE_EXHAUSTED: no thread or descriptors for it.
  absl::Status Start(ListenerEvents events);
  // Listens no more: when it returns, no connection will come. Those that are open stay, and are still watched. Waits
  // for the thread, but not for ever, should it be stuck.
  void Stop();

  // Ends the thread: no event is reported any more. Not while another thread calls Stop.
  void Finish();

  // -1: no TCP.
  int32_t port() const { return port_; }
  const ListenerOptions& options() const { return options_; }
  int64_t connections() const;
  // `visit` must not call this object.
  void Visit(const std::function<void(const Connection& connection)>& visit) const;
  // Ends a connection, if it is still there, with `reason`, which must be a constant.
  void End(int64_t id, const char* reason);

  // Whether connections are being accepted: the thread has turned within `patience`, every socket still listens, and
  // no lack of descriptors has lasted that long. True before Start and after Stop.
  bool Accepting(absl::Duration patience) const;

 private:
  struct Socket {
    int fd = -1;
    bool paused = false;  // taken out of the epoll set until the next tick
  };
  struct Watched {
    int fd = -1;  // the duplicate
    std::string peer;
    std::string group;
    const char* end_reason = "closed";
  };

  explicit Listener(const ListenerOptions& options) : options_(options) {}
  absl::Status BindTcp();
  absl::Status BindUnix();
  // Binds and listens; 0, or an errno.
  int BindOne(const sockaddr_storage& address, socklen_t size);
  void Run();
  void Accept(Socket& socket);
  void Take(const Socket& socket, int fd, const sockaddr_storage& address);
  void Refuse(int fd, absl::string_view reason, const std::string& peer);
  void RefuseWithSpare(Socket& socket);
  // Whether the lack of descriptors is over.
  void LookForRoom();
  void Pause(Socket& socket, bool paused);
  void Reap(int64_t id);
  void CloseSockets();
  void Beat();

  const ListenerOptions options_;
  int32_t port_ = -1;
  std::vector<Socket> sockets_;              // the thread's after Start
  std::pair<uint64_t, uint64_t> unix_file_;  // device and inode of the socket that we made; 0: none
  ListenerEvents events_;
  int epoll_ = -1;
  int wake_ = -1;   // an eventfd: something is asked of the thread
  int spare_ = -1;  // given up for a moment so that a connection can be refused when there are no descriptors
  std::thread thread_;
  std::atomic<bool> stop_listening_{false};
  absl::Notification sockets_closed_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> broken_{false};        // a socket no longer listens
  std::atomic<int64_t> beat_{0};           // steady nanoseconds of the thread's last turn
  std::atomic<int64_t> starved_since_{0};  // the same, of the first refusal for want of descriptors in a row; 0: none

  mutable absl::Mutex mu_;
  absl::flat_hash_map<int64_t, Watched> watched_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<std::string, int64_t> by_group_ ABSL_GUARDED_BY(mu_);
  int64_t next_id_ ABSL_GUARDED_BY(mu_) = 1 << 16;  // below it are sockets, in the epoll set
};

}  // namespace palimpsest
