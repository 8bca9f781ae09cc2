// Memory for answers that are made and not yet read, and for the prompts of those that are being made. What a client
// asks for and then does not read stays in this process, where nothing else bounds it: gRPC counts what comes in, and
// HTTP/2 lets the reader decide what goes out.
#pragma once

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace palimpsest {

// Counts bytes against a bound, for all connections together; one connection may have half of it. Thread-safe.
class ReplyBudget {
 public:
  // Bytes that are counted until the object goes. Movable. The budget must outlive it.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept;
    Hold& operator=(Hold&& other) noexcept;
    ~Hold();
    int64_t bytes() const { return bytes_; }

   private:
    friend class ReplyBudget;
    ReplyBudget* budget_ = nullptr;
    std::string connection_;
    int64_t bytes_ = 0;
  };

  explicit ReplyBudget(int64_t max_bytes) : max_bytes_(max_bytes) {}
  // From now on; what is counted already stays.
  void SetMaxBytes(int64_t max_bytes) ABSL_LOCKS_EXCLUDED(mu_);

  // `connection`: gRPC's name of the peer, one for each connection. RESOURCE_EXHAUSTED (REPLIES_UNREAD): there is no
  // room; worth a retry unless the answer alone is too long.
  absl::Status Take(const std::string& connection, int64_t bytes, Hold* hold) ABSL_LOCKS_EXCLUDED(mu_);

  struct Counts {
    int64_t bytes = 0;
    int64_t max_bytes = 0;
  };
  Counts counts() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Give(const std::string& connection, int64_t bytes) ABSL_LOCKS_EXCLUDED(mu_);

  mutable absl::Mutex mu_;
  int64_t max_bytes_ ABSL_GUARDED_BY(mu_);
  int64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  absl::flat_hash_map<std::string, int64_t> by_connection_ ABSL_GUARDED_BY(mu_);  // those with any
};

}  // namespace palimpsest
