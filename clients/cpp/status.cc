#include "clients/cpp/status.h"

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "clients/cpp/client.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace palimpsest::client {
namespace {

constexpr absl::string_view kPayload = "type.googleapis.com/google.rpc.Status";

// The first detail of type Detail, if there is one.
template <typename Detail>
std::optional<Detail> FindDetail(const google::rpc::Status& status) {
  Detail detail;
  for (const google::protobuf::Any& any : status.details()) {
    if (any.Is<Detail>() && any.UnpackTo(&detail)) return detail;
  }
  return std::nullopt;
}

std::optional<google::rpc::Status> Payload(const absl::Status& status) {
  const auto bytes = status.GetPayload(kPayload);
  google::rpc::Status proto;
  if (!bytes || !proto.ParseFromString(std::string(*bytes))) return std::nullopt;
  return proto;
}

absl::Duration ToDuration(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

}  // namespace

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  std::string message = status.error_message();
  google::rpc::Status details;
  const bool has_details = !status.error_details().empty() && details.ParseFromString(status.error_details());
  if (has_details) {
    if (const auto bad = FindDetail<google::rpc::BadRequest>(details)) {
      for (const auto& violation : bad->field_violations()) {
        if (message.find(violation.description()) != std::string::npos &&
            message.find(violation.field()) != std::string::npos) {
          continue;
        }
        absl::StrAppend(&message, "\n  ", violation.field(), ": ", violation.description());
      }
    }
    if (const auto retry = FindDetail<google::rpc::RetryInfo>(details)) {
      absl::StrAppend(&message, "\n  try again in ", absl::FormatDuration(ToDuration(retry->retry_delay())));
    }
  }
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), message);
  if (has_details) result.SetPayload(kPayload, absl::Cord(status.error_details()));
  return result;
}

std::string ErrorReason(const absl::Status& status) {
  const std::optional<google::rpc::Status> proto = Payload(status);
  if (!proto) return "";
  const auto info = FindDetail<google::rpc::ErrorInfo>(*proto);
  return info ? info->reason() : "";
}

std::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  const std::optional<google::rpc::Status> proto = Payload(status);
  if (!proto) return std::nullopt;
  const auto retry = FindDetail<google::rpc::RetryInfo>(*proto);
  if (!retry) return std::nullopt;
  return ToDuration(retry->retry_delay());
}

}  // namespace palimpsest::client
