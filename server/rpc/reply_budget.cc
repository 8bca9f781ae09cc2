#include "server/rpc/reply_budget.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/status.h"

namespace palimpsest {

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
  {
    absl::MutexLock lock(&mu_);
    const auto found = by_connection_.find(connection);
    const int64_t own = found == by_connection_.end() ? 0 : found->second;
    if (bytes_ + bytes <= max_bytes_ && own + bytes <= max_bytes_ / 2) {
      bytes_ += bytes;
      by_connection_[connection] += bytes;
      Hold taken;
      taken.budget_ = this;
      taken.connection_ = connection;
      taken.bytes_ = bytes;
      *hold = std::move(taken);
      return absl::OkStatus();
    }
    if (bytes <= max_bytes_ / 2) {
      const bool this_one = own + bytes > max_bytes_ / 2;
      return WithRetryAfter(
          WithReason(absl::ResourceExhaustedError(
                         absl::StrCat(this_one ? own : bytes_, " bytes of answers wait to be read",
                                      this_one ? " on this connection, which may have " : " in all, and there may be ",
                                      this_one ? max_bytes_ / 2 : max_bytes_, ", so this one of ", bytes,
                                      " bytes is not made (--max_reply_bytes); read what was asked for, then retry")),
                     "REPLIES_UNREAD"),
          absl::Seconds(1));
    }
  }
  return WithoutRetry(
      WithReason(absl::ResourceExhaustedError(absl::StrCat("the answer has ", bytes, " bytes; accepted: at most ",
                                                           max_bytes_ / 2, ", half of --max_reply_bytes")),
                 "ANSWER_TOO_LONG"));
}

void ReplyBudget::Give(const std::string& connection, int64_t bytes) {
  absl::MutexLock lock(&mu_);
  bytes_ -= bytes;
  const auto found = by_connection_.find(connection);
  found->second -= bytes;
  if (found->second == 0) by_connection_.erase(found);
}

int64_t ReplyBudget::bytes() const {
  absl::MutexLock lock(&mu_);
  return bytes_;
}

}  // namespace palimpsest
