// What an error tells a caller beside its code and its message (AIP-193): ErrorInfo (domain "palimpsest.dev"), and
// BadRequest, ResourceInfo and RetryInfo where they apply.
//
// Between the rooms an error is an absl::Status. The functions here attach details to it as payloads, which are
// messages of google.rpc under their type URLs. A plain status from the engine or a store is fine, too: WithDefaults
// adds what follows from the code alone.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace palimpsest {

// Sets the machine-readable reason, UPPER_SNAKE. `metadata` holds what varies.
absl::Status WithReason(absl::Status status, absl::string_view reason,
                        std::vector<std::pair<std::string, std::string>> metadata = {});
// Says when a retry may be worth it; without, WithDefaults gives RESOURCE_EXHAUSTED and UNAVAILABLE one second and
// ABORTED a tenth.
absl::Status WithRetryAfter(absl::Status status, absl::Duration delay);
// A retry of the same call cannot help.
absl::Status WithoutRetry(absl::Status status);
// Names the missing thing, "sessions/x".
absl::Status WithResource(absl::Status status, absl::string_view type, absl::string_view name);

// Collects what is wrong with a request, so that a caller hears of all of it at once.
class Violations {
 public:
  // `field` as in the proto, with dots; `what` goes on from it: "is 200; accepted: 0 to 100".
  void Add(absl::string_view field, absl::string_view what);
  bool empty() const { return fields_.empty(); }
  // OK when empty. INVALID_ARGUMENT with BadRequest otherwise; the first eight are told.
  absl::Status ToStatus() const;

 private:
  std::vector<std::pair<std::string, std::string>> fields_;
};
// One violation as a status.
absl::Status FieldViolation(absl::string_view field, absl::string_view what);

// Adds a reason and a time to retry where there are none yet and the code has some. Call it last.
absl::Status WithDefaults(absl::Status status);

// "INVALID_ARGUMENT"; the name of a code in logs and metrics.
absl::string_view CodeName(absl::StatusCode code);

}  // namespace palimpsest
