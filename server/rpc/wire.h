// Between gRPC's bytes and messages. A message is checked before it is parsed: parsing can make far more of it than its
// bytes (an empty string takes two bytes on the wire and some thirty in memory), so a limit on its size alone bounds
// nothing.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>

#include "absl/status/status.h"

namespace palimpsest {

// What a message may be. Both in bytes.
struct MessageLimits {
  int64_t size = 0;
  // What parsing may add to its size: entries of repeated fields, strings, sub-messages, fields that nobody knows.
  int64_t overhead = 0;
};

// RESOURCE_EXHAUSTED (not worth a retry): over `limits.size`.
absl::Status CheckMessageSize(const grpc::ByteBuffer& bytes, const MessageLimits& limits);

// Reads `message`, which is empty. INVALID_ARGUMENT: the bytes are no such message. RESOURCE_EXHAUSTED: over `limits`.
// Takes time and memory in proportion to the bytes.
absl::Status ReadMessage(const grpc::ByteBuffer& bytes, const MessageLimits& limits,
                         google::protobuf::Message* message);

// The bytes of a message. INTERNAL: over 2 GiB, which nothing that is checked before can reach.
absl::Status WriteMessage(const google::protobuf::Message& message, grpc::ByteBuffer* bytes);

}  // namespace palimpsest
