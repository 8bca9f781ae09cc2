#include "server/rpc/reply_budget.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/errors/errors.h"

namespace palimpsest {
namespace {

absl::Status Unread(int64_t waiting, const char* where, int64_t most, int64_t bytes) {
  return WithRetryAfter(WithReason(absl::ResourceExhaustedError(
                                       absl::StrCat(waiting, " bytes of prompts and answers are kept ", where, " ",
                                                    most, ", so there is no room for this one's ", bytes,
                                                    " (--max_reply_bytes); read what was asked for, then retry")),
                                   "REPLIES_UNREAD"),
                        absl::Seconds(1));
}

}  // namespace

ReplyBudget::Hold::Hold(Hold&& other) noexcept
    : budget_(std::exchange(other.budget_, nullptr)),
      connection_(std::move(other.connection_)),
      bytes_(std::exchange(other.bytes_, 0)) {}

ReplyBudget::Hold& ReplyBudget::Hold::operator=(Hold&& other) noexcept {
  if (this == &other) return *this;
  if (budget_ != nullptr) budget_->Give(connection_, bytes_);
  budget_ = std::exchange(other.budget_, nullptr);
  connection_ = std::move(other.connection_);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

ReplyBudget::Hold::~Hold() {
  if (budget_ != nullptr) budget_->Give(connection_, bytes_);
}

absl::Status ReplyBudget::Take(const std::string& connection, int64_t bytes, Hold* hold) {
  if (bytes == 0) return absl::OkStatus();  // nothing to count, nor to give back
  Hold taken;
  {
    absl::MutexLock lock(&mu_);
    const int64_t most = max_bytes_ / 2;
    const auto found = by_connection_.find(connection);
    const int64_t own = found == by_connection_.end() ? 0 : found->second;
    if (bytes > most) {
      return WithoutRetry(
          WithReason(absl::ResourceExhaustedError(absl::StrCat("the answer has ", bytes, " bytes; accepted: at most ",
                                                               most, ", half of --max_reply_bytes")),
                     "ANSWER_TOO_LONG"));
    }
    if (own + bytes > most) return Unread(own, "on this connection, which may have", most, bytes);
    if (bytes_ + bytes > max_bytes_) return Unread(bytes_, "in all, and there may be", max_bytes_, bytes);
    bytes_ += bytes;
    by_connection_[connection] += bytes;
    taken.budget_ = this;
    taken.connection_ = connection;
    taken.bytes_ = bytes;
  }
  *hold = std::move(taken);  // outside the lock, which giving back what it held takes
  return absl::OkStatus();
}

void ReplyBudget::Give(const std::string& connection, int64_t bytes) {
  absl::MutexLock lock(&mu_);
  bytes_ -= bytes;
  const auto found = by_connection_.find(connection);
  found->second -= bytes;
  if (found->second == 0) by_connection_.erase(found);
}

void ReplyBudget::SetMaxBytes(int64_t max_bytes) {
  absl::MutexLock lock(&mu_);
  max_bytes_ = max_bytes;
}

ReplyBudget::Counts ReplyBudget::counts() const {
  absl::MutexLock lock(&mu_);
  return {bytes_, max_bytes_};
}

}  // namespace palimpsest
