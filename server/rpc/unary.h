// Calls of one request and one answer: what is common to all but what they do.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "base/status_macros.h"
#include "server/rpc/call.h"
#include "server/rpc/methods.h"
#include "server/rpc/wire.h"

namespace palimpsest {

enum class RunsOn : uint8_t {
  kGrpcThread,  // if the request is short, else a worker
  kWorker,      // what it does takes long however short the request is: milliseconds, not seconds
  kOwnThread,   // it takes seconds. It is finished even if the caller has gone.
};

// Reads `request`, does what there is to do, writes `answer`.
using UnaryWork = std::function<absl::Status(Call& call, const grpc::ByteBuffer& request, grpc::ByteBuffer* answer)>;

// Runs `work` if the door lets the call in and its request is no longer than the method takes. The answer is counted
// until it is read.
grpc::ServerUnaryReactor* StartUnary(ServerCore& core, grpc::CallbackServerContext* context, const Method& method,
                                     const grpc::ByteBuffer* request, grpc::ByteBuffer* answer, RunsOn runs_on,
                                     UnaryWork work);

// The same with messages. `handle(call, request, response)` returns the call's status; `response` is sent if it is OK.
template <class Request, class Response, class Handle>
grpc::ServerUnaryReactor* RunUnary(ServerCore& core, grpc::CallbackServerContext* context, const Method& method,
                                   const grpc::ByteBuffer* request, grpc::ByteBuffer* answer, Handle handle,
                                   RunsOn runs_on = RunsOn::kGrpcThread) {
  return StartUnary(core, context, method, request, answer, runs_on,
                    [handle = std::move(handle)](Call& call, const grpc::ByteBuffer& bytes, grpc::ByteBuffer* made) {
                      Request read;
                      PALIMPSEST_RETURN_IF_ERROR(ReadMessage(bytes, call.limits(), &read));
                      Response response;
                      PALIMPSEST_RETURN_IF_ERROR(handle(call, read, &response));
                      return WriteMessage(response, made);
                    });
}

// The same for a handler that is a member of a service.
template <class Service, class Request, class Response>
grpc::ServerUnaryReactor* RunUnary(Service* service, ServerCore& core, grpc::CallbackServerContext* context,
                                   const Method& method, const grpc::ByteBuffer* request, grpc::ByteBuffer* answer,
                                   absl::Status (Service::*handle)(Call&, const Request&, Response*),
                                   RunsOn runs_on = RunsOn::kGrpcThread) {
  return RunUnary<Request, Response>(
      core, context, method, request, answer,
      [service, handle](Call& call, const Request& read, Response* response) {
        return (service->*handle)(call, read, response);
      },
      runs_on);
}

}  // namespace palimpsest
