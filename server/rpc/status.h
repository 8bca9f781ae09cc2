// The one place where errors become what the wire carries: google.rpc.Status with the details of server/errors.
#pragma once

#include "absl/status/status.h"
#include "server/errors/errors.h"

namespace grpc {
class Status;
}

namespace palimpsest {

// With WithDefaults; a message that is too long for the trailing metadata is cut.
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace palimpsest
