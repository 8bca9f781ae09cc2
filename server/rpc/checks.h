// The one place where requests are checked: what is accepted, and the words for what is not.
//
// Each check adds what is wrong to `violations` and fills in what it read, which means something only if nothing was
// wrong. Fields are named as in the proto.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "palimpsest/v1/generation.pb.h"
#include "server/engine/request.h"
#include "server/errors/errors.h"
#include "server/rpc/limits.h"

namespace google::protobuf {
class Duration;
}

namespace palimpsest {

// "sessions/{id}" -> id. `collection` is "sessions", "snapshots" or "models".
void CheckName(absl::string_view field, absl::string_view collection, const std::string& name, std::string* id,
               Violations& violations);
// As CheckName, but may be empty.
void CheckOptionalName(absl::string_view field, absl::string_view collection, const std::string& name, std::string* id,
                       Violations& violations);
// An id to be (IsResourceId); `dots`: of a model.
void CheckNewId(absl::string_view field, const std::string& id, bool dots, Violations& violations);

// Zero: InfiniteDuration.
void CheckTtl(absl::string_view field, const google::protobuf::Duration& ttl, absl::Duration* read,
              Violations& violations);
// The number of entries of a page.
void CheckPageSize(int32_t page_size, int32_t* read, Violations& violations);

// Sampling, stop criteria and what is reported, into `request`. Ids that need the vocabulary are left to CheckIds.
void CheckSampling(const v1::SamplingParams& params, SamplingSettings* read, Violations& violations);
void CheckStop(const v1::StopCriteria& stop, const Limits& limits, EngineRequest* read, Violations& violations);
void CheckTopLogprobs(int32_t top, Violations& violations);
// Of an input of `tokens` tokens.
void CheckScoreLast(int32_t score_last, int64_t tokens, int64_t* read, Violations& violations);
// At most 64 printable characters of ASCII, none of them a space: fit for a header.
bool IsCallId(const std::string& id);
void CheckCallId(const std::string& id, Violations& violations);
// All of `ids` in [0, vocabulary); the first that is not is told.
template <class Ids>
void CheckIds(absl::string_view field, const Ids& ids, int32_t vocabulary, Violations& violations);
void AddIdViolation(absl::string_view field, int64_t index, int64_t id, int32_t vocabulary, Violations& violations);

// RESOURCE_EXHAUSTED: over the limit.
absl::Status CheckPromptBytes(absl::string_view field, size_t bytes, const Limits& limits);
absl::Status CheckPromptTokens(absl::string_view field, size_t tokens, const Limits& limits);

template <class Ids>
void CheckIds(absl::string_view field, const Ids& ids, int32_t vocabulary, Violations& violations) {
  int64_t index = 0;
  for (const auto id : ids) {
    if (id < 0 || id >= vocabulary) return AddIdViolation(field, index, id, vocabulary, violations);
    ++index;
  }
}

}  // namespace palimpsest
