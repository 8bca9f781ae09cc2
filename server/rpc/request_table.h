// Answers of creating calls by request id (AIP-155): within ten minutes, the same id with the same request gives the
// same answer and does nothing a second time.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace palimpsest {

// Thread-safe. Time is an argument so that tests are exact.
class RequestTable {
 public:
  static constexpr absl::Duration kKept = absl::Minutes(10);

  explicit RequestTable(int64_t max_ids) : max_ids_(max_ids) {}

  // Runs `act` and remembers its answer, or gives the answer of the earlier call. An error is not remembered: the call
  // did nothing, so it may be tried again. With an empty id it only runs `act`. `request` is the whole request in
  // bytes. INVALID_ARGUMENT: not a UUID, or the id came with another request.  ABORTED: the first call is still
  // running. RESOURCE_EXHAUSTED: `max_ids` are remembered.
  absl::StatusOr<std::string> Once(absl::string_view method, const std::string& request_id, const std::string& request,
                                   absl::Time now, const std::function<absl::StatusOr<std::string>()>& act);

 private:
  struct Entry {
    uint64_t serial = 0;  // tells it from a later entry under the same key
    std::string request_digest;
    bool done = false;
    std::string answer;
  };
  struct Due {
    absl::Time time;
    std::string key;
    uint64_t serial;
  };
  void DropOld(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int64_t max_ids_;
  absl::Mutex mu_;  // not held while `act` runs
  absl::flat_hash_map<std::string, Entry> entries_ ABSL_GUARDED_BY(mu_);
  std::deque<Due> due_ ABSL_GUARDED_BY(mu_);  // soonest first: all are kept equally long
  uint64_t last_serial_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace palimpsest
