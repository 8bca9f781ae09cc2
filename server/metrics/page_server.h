// Serves one page over HTTP: GET /metrics, for Prometheus.
//
// One thread for all connections, none of which it waits for. A connection answers one request and ends; one that does
// not send its request, or does not take the answer, costs nobody else anything and is closed after a while.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace palimpsest {

struct PageServerOptions {
  // "host:port", "[v6]:port"; port 0: any that is free. A name that has several addresses is listened to on all of
  // them, and "[::]" on every address of this machine, of both kinds.
  std::string address = "";
  // PEM texts. Certificate (with its chain) and key: TLS. Client authority as well: who connects must show a
  // certificate that one in it signed.
  std::string certificate = "", key = "", client_authority = "";
  // The value of a request's Authorization header ("Bearer abc", empty if there is none) -> may it have the page?
  // Called by the server's thread. Null: everybody may.
  std::function<bool(std::string_view authorization)> authorize = nullptr;
  // Makes the page; called by the server's thread for each request that is answered.
  std::function<std::string()> page = nullptr;
  // Connections at once. One more takes the place of the one that has had longest to send its request.
  int32_t max_connections = 64;
  // From the connection's beginning to the last byte of its answer.
  absl::Duration timeout = absl::Seconds(10);
};

class PageServer {
 public:
  // INVALID_ARGUMENT: the address or a certificate is none. FAILED_PRECONDITION: the port is in use. NOT_FOUND: the
  // address is none of this machine's. Whatever else the system says when it does not bind (ErrnoStatus).
  static absl::StatusOr<std::unique_ptr<PageServer>> Start(const PageServerOptions& options);
  // Closes all connections.
  ~PageServer();

  int32_t port() const;

 private:
  class Impl;
  explicit PageServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace palimpsest
