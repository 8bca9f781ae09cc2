#include "server/rpc/request_table.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/quote.h"
#include "base/status_macros.h"
#include "server/errors/errors.h"

namespace palimpsest {
namespace {

bool IsUuid(const std::string& id) {
  if (id.size() != 36) return false;
  for (size_t i = 0; i < id.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash ? id[i] != '-' : !absl::ascii_isxdigit(static_cast<unsigned char>(id[i]))) return false;
  }
  return true;
}

}  // namespace

void RequestTable::SetMaxBytes(int64_t bytes) {
  absl::MutexLock lock(&mu_);
  max_bytes_ = bytes;
}

RequestIdCounts RequestTable::counts() const {
  absl::MutexLock lock(&mu_);
  return {
      .ids = static_cast<int64_t>(entries_.size()), .bytes = bytes_, .max_bytes = max_bytes_, .refusals = refusals_};
}

void RequestTable::DropOld(absl::Time now) {
  while (!due_.empty() && due_.front().time <= now) {
    const auto found = entries_.find(due_.front().key);
    if (found != entries_.end() && found->second.serial == due_.front().serial && found->second.done) {
      bytes_ -= kEntryBytes + static_cast<int64_t>(found->second.answer.size());
      entries_.erase(found);
    }
    due_.pop_front();
  }
}

absl::Status RequestTable::CheckRoom() {
  std::string what;
  absl::string_view reason;
  if (static_cast<int64_t>(entries_.size()) >= max_ids_) {
    what = absl::StrCat(max_ids_, " request ids (--max_request_ids)");
    reason = "REQUEST_ID_LIMIT";
  } else if (bytes_ + kEntryBytes > max_bytes_) {
    what = absl::StrCat(bytes_, " bytes of answers by request id, at most ", max_bytes_, " (--max_request_id_bytes),");
    reason = "REQUEST_ID_BYTES_LIMIT";
  } else {
    return absl::OkStatus();
  }
  ++refusals_;
  const absl::Status full = absl::ResourceExhaustedError(
      absl::StrCat("the server remembers ", what,
                   " of the last ten minutes and has no room for more; retry later, or without a request id"));
  return WithRetryAfter(WithReason(full, reason), absl::Seconds(30));
}

absl::StatusOr<std::string> RequestTable::Once(absl::string_view owner, absl::string_view method,
                                               const std::string& request_id, const std::string& request,
                                               absl::Time now,
                                               const std::function<absl::StatusOr<std::string>()>& act) {
  if (request_id.empty()) return act();
  if (!IsUuid(request_id)) {
    return FieldViolation("request_id", absl::StrCat("is ", DoubleQuoted(request_id), "; accepted: a UUID, as in ",
                                                     "\"8c2d7d9a-3f0e-4b65-9a51-5a7d4be1f2c3\", or nothing"));
  }
  // Neither owners nor methods have spaces.
  const Sha256Digest key = Sha256Of(absl::StrCat(owner, " ", method, " ", absl::AsciiStrToLower(request_id)));
  const Sha256Digest digest = Sha256Of(request);
  uint64_t serial = 0;
  {
    absl::MutexLock lock(&mu_);
    DropOld(now);
    const auto found = entries_.find(key);
    if (found != entries_.end()) {
      const Entry& entry = found->second;
      if (entry.request != digest) {
        return FieldViolation("request_id",
                              absl::StrCat("is ", DoubleQuoted(request_id), ", which came with another request ",
                                           "within the last ten minutes; accepted: a new one"));
      }
      if (!entry.done) {
        return WithReason(absl::AbortedError(absl::StrCat("the call with request_id ", DoubleQuoted(request_id),
                                                          " is still running; retry for its answer")),
                          "REQUEST_RUNNING");
      }
      return entry.answer;
    }
    PALIMPSEST_RETURN_IF_ERROR(CheckRoom());
    serial = ++last_serial_;
    entries_[key] = {.serial = serial, .request = digest, .done = false, .answer = ""};
    bytes_ += kEntryBytes;
  }

  absl::StatusOr<std::string> answer = act();
  absl::MutexLock lock(&mu_);
  if (answer.ok()) {
    Entry& entry = entries_[key];
    entry.done = true;
    entry.answer = *answer;
    entry.answer.shrink_to_fit();
    bytes_ += static_cast<int64_t>(entry.answer.size());
    due_.push_back({now + kKept, key, serial});
  } else {
    entries_.erase(key);
    bytes_ -= kEntryBytes;
  }
  return answer;
}

}  // namespace palimpsest
