#include "server/errors/errors.h"

#include <google/rpc/error_details.pb.h>

#include <algorithm>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/types/optional.h"

namespace palimpsest {
namespace {

constexpr absl::string_view kTypePrefix = "type.googleapis.com/";
constexpr absl::string_view kNoRetry = "palimpsest.dev/no_retry";
constexpr absl::string_view kDomain = "palimpsest.dev";
// All of an error travels in the trailing metadata, of which a client takes 8 KiB.
constexpr size_t kMaxViolations = 8;
constexpr size_t kMaxViolationBytes = 200;

template <class Detail>
std::string UrlOf() {
  return absl::StrCat(kTypePrefix, Detail::descriptor()->full_name());
}

template <class Detail>
void Attach(absl::Status& status, const Detail& detail) {
  status.SetPayload(UrlOf<Detail>(), absl::Cord(detail.SerializeAsString()));
}

std::string Cut(absl::string_view text, size_t limit) {
  if (text.size() <= limit) return std::string(text);
  return absl::StrCat(text.substr(0, limit - 3), "...");
}

absl::string_view DefaultReason(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kCancelled:
      return "CANCELLED";
    case absl::StatusCode::kInvalidArgument:
      return "BAD_REQUEST";
    case absl::StatusCode::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case absl::StatusCode::kNotFound:
      return "RESOURCE_NOT_FOUND";
    case absl::StatusCode::kAlreadyExists:
      return "NAME_TAKEN";
    case absl::StatusCode::kPermissionDenied:
      return "NOT_PERMITTED";
    case absl::StatusCode::kResourceExhausted:
      return "LIMIT_REACHED";
    case absl::StatusCode::kFailedPrecondition:
      return "PRECONDITION_FAILED";
    case absl::StatusCode::kAborted:
      return "RESOURCE_BUSY";
    case absl::StatusCode::kDataLoss:
      return "DATA_DAMAGED";
    case absl::StatusCode::kUnavailable:
      return "SERVER_UNAVAILABLE";
    case absl::StatusCode::kUnimplemented:
      return "NOT_IMPLEMENTED";
    default:
      return "INTERNAL_ERROR";
  }
}

absl::Duration DefaultRetry(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
      return absl::Seconds(1);
    case absl::StatusCode::kAborted:
      return absl::Milliseconds(100);
    default:
      return absl::ZeroDuration();
  }
}

}  // namespace

absl::Status WithReason(absl::Status status, absl::string_view reason,
                        std::vector<std::pair<std::string, std::string>> metadata) {
  if (status.ok()) return status;
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(std::string(kDomain));
  for (auto& [key, value] : metadata) (*info.mutable_metadata())[key] = std::move(value);
  Attach(status, info);
  return status;
}

absl::Status WithRetryAfter(absl::Status status, absl::Duration delay) {
  if (status.ok()) return status;
  google::rpc::RetryInfo info;
  const int64_t nanos = absl::ToInt64Nanoseconds(delay);
  info.mutable_retry_delay()->set_seconds(nanos / 1'000'000'000);
  info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  Attach(status, info);
  return status;
}

absl::Status WithoutRetry(absl::Status status) {
  if (!status.ok()) status.SetPayload(kNoRetry, absl::Cord());
  return status;
}

absl::Status WithResource(absl::Status status, absl::string_view type, absl::string_view name) {
  if (status.ok()) return status;
  google::rpc::ResourceInfo info;
  info.set_resource_type(std::string(type));
  info.set_resource_name(std::string(name));
  info.set_description(Cut(status.message(), kMaxViolationBytes));
  Attach(status, info);
  return status;
}

void Violations::Add(absl::string_view field, absl::string_view what) {
  fields_.emplace_back(Cut(field, kMaxViolationBytes), Cut(what, kMaxViolationBytes));
}

absl::Status Violations::ToStatus() const {
  if (fields_.empty()) return absl::OkStatus();
  google::rpc::BadRequest detail;
  std::string message;
  const size_t told = std::min(fields_.size(), kMaxViolations);
  for (size_t i = 0; i < told; ++i) {
    const auto& [field, what] = fields_[i];
    auto* violation = detail.add_field_violations();
    violation->set_field(field);
    violation->set_description(what);
    absl::StrAppend(&message, i == 0 ? "" : ". Also: ", field, " ", what);
  }
  if (told < fields_.size()) absl::StrAppend(&message, ". And ", fields_.size() - told, " more");
  absl::Status status = absl::InvalidArgumentError(message);
  Attach(status, detail);
  return WithReason(std::move(status), "BAD_REQUEST", {{"field", fields_[0].first}});
}

absl::Status FieldViolation(absl::string_view field, absl::string_view what) {
  Violations violations;
  violations.Add(field, what);
  return violations.ToStatus();
}

absl::Status WithDefaults(absl::Status status) {
  if (status.ok()) return status;
  const absl::StatusCode code = status.code();
  if (!status.GetPayload(UrlOf<google::rpc::ErrorInfo>())) status = WithReason(std::move(status), DefaultReason(code));
  const absl::Duration retry = DefaultRetry(code);
  const bool no_retry = status.ErasePayload(kNoRetry);
  if (!no_retry && retry > absl::ZeroDuration() && !status.GetPayload(UrlOf<google::rpc::RetryInfo>())) {
    status = WithRetryAfter(std::move(status), retry);
  }
  return status;
}

absl::string_view CodeName(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return "OK";
    case absl::StatusCode::kCancelled:
      return "CANCELLED";
    case absl::StatusCode::kUnknown:
      return "UNKNOWN";
    case absl::StatusCode::kInvalidArgument:
      return "INVALID_ARGUMENT";
    case absl::StatusCode::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case absl::StatusCode::kNotFound:
      return "NOT_FOUND";
    case absl::StatusCode::kAlreadyExists:
      return "ALREADY_EXISTS";
    case absl::StatusCode::kPermissionDenied:
      return "PERMISSION_DENIED";
    case absl::StatusCode::kResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case absl::StatusCode::kFailedPrecondition:
      return "FAILED_PRECONDITION";
    case absl::StatusCode::kAborted:
      return "ABORTED";
    case absl::StatusCode::kOutOfRange:
      return "OUT_OF_RANGE";
    case absl::StatusCode::kUnimplemented:
      return "UNIMPLEMENTED";
    case absl::StatusCode::kInternal:
      return "INTERNAL";
    case absl::StatusCode::kUnavailable:
      return "UNAVAILABLE";
    case absl::StatusCode::kDataLoss:
      return "DATA_LOSS";
    case absl::StatusCode::kUnauthenticated:
      return "UNAUTHENTICATED";
    default:
      return "UNKNOWN";
  }
}

}  // namespace palimpsest
