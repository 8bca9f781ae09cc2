#include "server/rpc/request_table.h"

#include <openssl/sha.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/rpc/status.h"

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

std::string Digest(const std::string& bytes) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

}  // namespace

void RequestTable::DropOld(absl::Time now) {
  while (!due_.empty() && due_.front().time <= now) {
    const auto found = entries_.find(due_.front().key);
    if (found != entries_.end() && found->second.serial == due_.front().serial && found->second.done) {
      entries_.erase(found);
    }
    due_.pop_front();
  }
}

absl::StatusOr<std::string> RequestTable::Once(absl::string_view method, const std::string& request_id,
                                               const std::string& request, absl::Time now,
                                               const std::function<absl::StatusOr<std::string>()>& act) {
  if (request_id.empty()) return act();
  if (!IsUuid(request_id)) {
    return FieldViolation("request_id", absl::StrCat("is ", Quoted(request_id), "; accepted: a UUID, as in ",
                                                     "\"8c2d7d9a-3f0e-4b65-9a51-5a7d4be1f2c3\", or nothing"));
  }
  const std::string key = absl::StrCat(method, " ", absl::AsciiStrToLower(request_id));
  const std::string digest = Digest(request);
  uint64_t serial = 0;
  {
    absl::MutexLock lock(&mu_);
    DropOld(now);
    const auto found = entries_.find(key);
    if (found != entries_.end()) {
      const Entry& entry = found->second;
      if (entry.request_digest != digest) {
        return FieldViolation("request_id",
                              absl::StrCat("is ", Quoted(request_id), ", which came with another request ",
                                           "within the last ten minutes; accepted: a new one"));
      }
      if (!entry.done) {
        return WithReason(absl::AbortedError(absl::StrCat("the call with request_id ", Quoted(request_id),
                                                          " is still running; retry for its answer")),
                          "REQUEST_RUNNING");
      }
      return entry.answer;
    }
    if (static_cast<int64_t>(entries_.size()) >= max_ids_) {
      return WithRetryAfter(WithReason(absl::ResourceExhaustedError(
                                           absl::StrCat("the server remembers ", max_ids_, " request ids of the ",
                                                        "last ten minutes (--max_request_ids) and has no room ",
                                                        "for more; retry later, or without one")),
                                       "REQUEST_ID_LIMIT"),
                            absl::Seconds(30));
    }
    serial = ++last_serial_;
    entries_[key] = Entry{serial, digest, false, ""};
  }

  absl::StatusOr<std::string> answer = act();
  absl::MutexLock lock(&mu_);
  if (answer.ok()) {
    Entry& entry = entries_[key];
    entry.done = true;
    entry.answer = *answer;
    due_.push_back({now + kKept, key, serial});
  } else {
    entries_.erase(key);
  }
  return answer;
}

}  // namespace palimpsest
