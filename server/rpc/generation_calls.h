// The calls that go through an engine, for the service that has them.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

namespace palimpsest {

struct ServerCore;

// `request` and `answer` are gRPC's until it is done with the call, and so is what is returned.
grpc::ServerWriteReactor<grpc::ByteBuffer>* StartGenerate(ServerCore& core, grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request);
grpc::ServerUnaryReactor* StartScore(ServerCore& core, grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request, grpc::ByteBuffer* answer);

}  // namespace palimpsest
