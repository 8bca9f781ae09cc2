// From a gRPC status to an absl::Status that a person can read.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace palimpsest::client {

// The code stays. The message becomes the server's, then one line for each field violation (`  field: cure`) that the
// message does not already spell out, and the time to wait if there is one. The google.rpc.Status travels along as
// the payload `type.googleapis.com/google.rpc.Status`, for ErrorReason and RetryDelay.
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace palimpsest::client
