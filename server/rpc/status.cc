#include "server/rpc/status.h"

#include <google/rpc/status.pb.h>
#include <grpcpp/support/status.h>

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace palimpsest {
namespace {

// All of an error travels in the trailing metadata, of which a client takes 8 KiB.
constexpr size_t kMaxMessageBytes = 800;

std::string Cut(absl::string_view text) {
  if (text.size() <= kMaxMessageBytes) return std::string(text);
  return absl::StrCat(text.substr(0, kMaxMessageBytes - 3), "...");
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const absl::Status full = WithDefaults(status);
  google::rpc::Status wire;
  wire.set_code(full.raw_code());
  wire.set_message(Cut(full.message()));
  full.ForEachPayload([&wire](absl::string_view url, const absl::Cord& value) {
    auto* detail = wire.add_details();
    detail->set_type_url(std::string(url));
    detail->set_value(std::string(value));
  });
  return grpc::Status(static_cast<grpc::StatusCode>(full.raw_code()), wire.message(), wire.SerializeAsString());
}

}  // namespace palimpsest
