// Creating calls by request id.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/status_macros.h"
#include "base/steady_clock.h"
#include "server/rpc/call.h"

namespace palimpsest {

// Runs `act`, which fills in the response, or gives the answer of the owner's earlier call with the same request id;
// see RequestTable.
template <class Request, class Response, class Act>
absl::Status Once(ServerCore& core, const Call& call, const char* method, const Request& request, Response* response,
                  const Act& act) {
  absl::StatusOr<std::string> answer =
      core.requests.Once(call.owner(), method, request.request_id(), request.SerializeAsString(), SteadyNow(),
                         [&]() -> absl::StatusOr<std::string> {
                           PALIMPSEST_RETURN_IF_ERROR(act(response));
                           return response->SerializeAsString();
                         });
  if (!answer.ok()) return answer.status();
  return response->ParseFromString(*answer) ? absl::OkStatus() : absl::InternalError("answer cannot be read again");
}

}  // namespace palimpsest
