#include "server/rpc/wire.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/slice.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/errors/errors.h"

namespace palimpsest {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::io::CodedInputStream;
using WireFormat = google::protobuf::internal::WireFormatLite;

// What a field takes in memory beyond the bytes that it has on the wire, at most: a place in an array that may be half
// empty, an object, what the allocator adds. An unknown field is an entry of its own, and a string if it has bytes.
constexpr int64_t kScalarOverhead = 8;
constexpr int64_t kStringOverhead = 96;
constexpr int64_t kMessageOverhead = 192;
constexpr int64_t kUnknownOverhead = 32;

// Walks over a message without keeping anything of it.
class Walk {
 public:
  explicit Walk(int64_t overhead) : left_(overhead) {}

  // False: the bytes are no message of this type, or `exhausted`.
  bool Message(const Descriptor* type, CodedInputStream& in) {
    if (!in.IncrementRecursionDepth()) return false;
    while (const uint32_t tag = in.ReadTag()) {
      const int number = WireFormat::GetTagFieldNumber(tag);
      const FieldDescriptor* const field = type == nullptr ? nullptr : type->FindFieldByNumber(number);
      if (number == 0 || !Field(field, WireFormat::GetTagWireType(tag), in)) return false;
    }
    in.DecrementRecursionDepth();
    return in.ConsumedEntireMessage();
  }
  bool exhausted() const { return left_ < 0; }

 private:
  bool Field(const FieldDescriptor* field, WireFormat::WireType wire, CodedInputStream& in) {
    // What is written in another form than its type has is kept as if nobody knew it.
    if (field != nullptr && !IsFormOf(*field, wire)) field = nullptr;
    uint64_t unused = 0;
    switch (wire) {
      case WireFormat::WIRETYPE_VARINT:
        return Spend(field == nullptr ? kUnknownOverhead : kScalarOverhead) && in.ReadVarint64(&unused);
      case WireFormat::WIRETYPE_FIXED64:
        return Spend(field == nullptr ? kUnknownOverhead : kScalarOverhead) && in.Skip(8);
      case WireFormat::WIRETYPE_FIXED32:
        return Spend(field == nullptr ? kUnknownOverhead : kScalarOverhead) && in.Skip(4);
      case WireFormat::WIRETYPE_LENGTH_DELIMITED:
        return Delimited(field, in);
      default:
        return false;  // groups, of which there is none in our messages, and what is no wire type at all
    }
  }

  static bool IsFormOf(const FieldDescriptor& field, WireFormat::WireType wire) {
    const auto type = static_cast<WireFormat::FieldType>(field.type());
    return wire == WireFormat::WireTypeForFieldType(type) ||
           (wire == WireFormat::WIRETYPE_LENGTH_DELIMITED && field.is_packable());
  }

  bool Delimited(const FieldDescriptor* field, CodedInputStream& in) {
    uint32_t size = 0;
    if (!in.ReadVarint32(&size) || size > INT32_MAX) return false;
    if (field == nullptr) return Spend(kUnknownOverhead + kStringOverhead) && in.Skip(static_cast<int>(size));
    if (field->is_packable()) return Spend(kScalarOverhead * int64_t{size}) && in.Skip(static_cast<int>(size));
    if (field->type() != FieldDescriptor::TYPE_MESSAGE)
      return Spend(kStringOverhead) && in.Skip(static_cast<int>(size));
    if (!Spend(kMessageOverhead)) return false;
    const int outer = in.PushLimit(static_cast<int>(size));
    if (in.BytesUntilLimit() < static_cast<int>(size) || !Message(field->message_type(), in)) return false;
    in.PopLimit(outer);
    return true;
  }

  bool Spend(int64_t bytes) {
    left_ -= bytes;
    return left_ >= 0;
  }

  int64_t left_;
};

absl::Status Unreadable(const Descriptor& type) {
  return WithReason(absl::InvalidArgumentError(absl::StrCat(
                        "the request cannot be read: its bytes are no ", type.full_name(),
                        "; accepted: a message of the API that this server has, with text in valid UTF-8")),
                    "MESSAGE_UNREADABLE");
}

absl::Status TooLong(int64_t size, int64_t accepted) {
  return WithoutRetry(
      WithReason(absl::ResourceExhaustedError(absl::StrCat("the request has ", size, " bytes; accepted: at most ",
                                                           accepted, " for this method")),
                 "MESSAGE_TOO_LONG"));
}

}  // namespace

absl::Status CheckMessageSize(const grpc::ByteBuffer& bytes, const MessageLimits& limits) {
  const auto size = static_cast<int64_t>(bytes.Length());
  return size <= limits.size ? absl::OkStatus() : TooLong(size, limits.size);
}

absl::Status ReadMessage(const grpc::ByteBuffer& bytes, const MessageLimits& limits,
                         google::protobuf::Message* message) {
  PALIMPSEST_RETURN_IF_ERROR(CheckMessageSize(bytes, limits));
  const Descriptor& type = *message->GetDescriptor();
  // Both readers see the same bytes: reading does not consume them. gRPC's interface wants them mutable all the same.
  auto* const source = const_cast<grpc::ByteBuffer*>(&bytes);
  {
    grpc::ProtoBufferReader reader(source);
    CodedInputStream in(&reader);
    Walk walk(limits.overhead);
    const bool well = walk.Message(&type, in);
    if (walk.exhausted()) {
      return WithoutRetry(WithReason(
          absl::ResourceExhaustedError(absl::StrCat("the request of ", bytes.Length(), " bytes has so many fields and ",
                                                    "entries that they would take more than ", limits.overhead,
                                                    " bytes beside it; accepted: fewer entries")),
          "MESSAGE_TOO_MANY_FIELDS"));
    }
    if (!well) return Unreadable(type);
  }
  grpc::ProtoBufferReader reader(source);
  return message->ParseFromZeroCopyStream(&reader) ? absl::OkStatus() : Unreadable(type);
}

absl::Status WriteMessage(const google::protobuf::Message& message, grpc::ByteBuffer* bytes) {
  const size_t size = message.ByteSizeLong();
  if (size > INT32_MAX) {
    return absl::InternalError(absl::StrCat("the answer has ", size, " bytes, more than a message can have"));
  }
  grpc::Slice slice(size);
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  *bytes = grpc::ByteBuffer(&slice, 1);
  return absl::OkStatus();
}

}  // namespace palimpsest
