// Answers of creating calls by owner and request id (AIP-155): within ten minutes, the same id with the same request
// gives the same answer and does nothing a second time.
//
// What is full refuses new ids; it never forgets old ones early. A caller that sends an id relies on nothing being
// done twice: forgetting would break that without a word, at the retry that it was sent for. A refusal is heard, costs
// nothing, and can be tried again, or without an id.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/sha256.h"
#include "server/metrics/metrics.h"

namespace palimpsest {

// Thread-safe. Time, a steady one, is an argument so that tests are exact.
class RequestTable {
 public:
  static constexpr absl::Duration kKept = absl::Minutes(10);
  // What an id takes beside its answer: SHA-256 of its key and of its request, and the tables.
  static constexpr int64_t kEntryBytes = 256;

  // At most `max_ids` ids, and `max_bytes` of kEntryBytes each and their answers. How long an answer is, only the call
  // tells, and what it has done cannot be undone: the calls that run when the bytes are used up may go over them, each
  // by its answer.
  RequestTable(int64_t max_ids, int64_t max_bytes) : max_ids_(max_ids), max_bytes_(max_bytes) {}

  // Runs `act` and remembers its answer, or gives the answer of the owner's earlier call. An error is not remembered:
  // the call did nothing, so it may be tried again. With an empty id it only runs `act`. `request` is the whole request
  // in bytes. INVALID_ARGUMENT: not a UUID, or the id came with another request.  ABORTED: the first call is still
  // running.  RESOURCE_EXHAUSTED: the table is full.
  absl::StatusOr<std::string> Once(absl::string_view owner, absl::string_view method, const std::string& request_id,
                                   const std::string& request, absl::Time now,
                                   const std::function<absl::StatusOr<std::string>()>& act);

  // From now on, in place of what it was made with. Answers over it stay until their time.
  void SetMaxBytes(int64_t bytes);

  RequestIdCounts counts() const;

 private:
  struct Entry {
    uint64_t serial = 0;  // tells it from a later entry under the same key
    Sha256Digest request;
    bool done = false;
    std::string answer;
  };
  struct Due {
    absl::Time time;
    Sha256Digest key;
    uint64_t serial;
  };
  void DropOld(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // RESOURCE_EXHAUSTED: there is no room for one more.
  absl::Status CheckRoom() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int64_t max_ids_;
  mutable absl::Mutex mu_;  // not held while `act` runs
  int64_t max_bytes_ ABSL_GUARDED_BY(mu_);
  int64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t refusals_ ABSL_GUARDED_BY(mu_) = 0;
  absl::flat_hash_map<Sha256Digest, Entry> entries_ ABSL_GUARDED_BY(mu_);
  std::deque<Due> due_ ABSL_GUARDED_BY(mu_);  // soonest first: all are kept equally long
  uint64_t last_serial_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace palimpsest
