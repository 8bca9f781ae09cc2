// A message before it is parsed: its type, how much of it there is, and in what pieces it came. What passes takes no
// more memory than its limits say, and what Protocol Buffers can read passes if the limits allow it.
#include "server/rpc/wire.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/unknown_field_set.h>
#include <google/protobuf/wire_format_lite.h>
#include <malloc.h>

#include <iterator>
#include <memory>
#include <vector>

#include "base/check.h"
#include "palimpsest/v1/generation.pb.h"
#include "palimpsest/v1/model.pb.h"
#include "palimpsest/v1/session.pb.h"
#include "palimpsest/v1/snapshot.pb.h"
#include "server/rpc/methods.h"
#include "tests/fuzz/fuzz.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
extern "C" size_t __sanitizer_get_current_allocated_bytes();  // GCC's runtime has it, and no header for it
#endif

namespace palimpsest::fuzz {
namespace {

using google::protobuf::Message;

struct Type {
  MessageSize size;
  const Message& empty;
};
const Type kTypes[] = {
    {MessageSize::kState, v1::GenerateRequest::default_instance()},
    {MessageSize::kState, v1::ScoreRequest::default_instance()},
    {MessageSize::kText, v1::TokenizeRequest::default_instance()},
    {MessageSize::kIds, v1::DetokenizeRequest::default_instance()},
    {MessageSize::kSmall, v1::CreateSessionRequest::default_instance()},
    {MessageSize::kSmall, v1::UpdateSessionRequest::default_instance()},
    {MessageSize::kFork, v1::ForkSessionRequest::default_instance()},
    {MessageSize::kSmall, v1::CreateSnapshotRequest::default_instance()},
    {MessageSize::kPiece, v1::UploadSnapshotRequest::default_instance()},
    {MessageSize::kSmall, v1::LoadModelRequest::default_instance()},
};

// What the program has asked for and not given back. 0 where nobody counts it.
int64_t HeapBytes() {
#ifdef __SANITIZE_ADDRESS__
  return static_cast<int64_t>(__sanitizer_get_current_allocated_bytes());
#else
  const struct mallinfo2 heap = mallinfo2();
  return static_cast<int64_t>(heap.uordblks + heap.hblkhd);
#endif
}

// Groups are refused: our messages have none. They may be in what nobody knows, of any message in the message.
bool HasGroup(const Message& message) {
  const auto* const reflection = message.GetReflection();
  const auto& unknown = reflection->GetUnknownFields(message);
  for (int i = 0; i < unknown.field_count(); ++i) {
    if (unknown.field(i).type() == google::protobuf::UnknownField::TYPE_GROUP) return true;
  }
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const auto* field : fields) {
    if (field->cpp_type() != google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE) continue;
    const int count = field->is_repeated() ? reflection->FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      if (HasGroup(field->is_repeated() ? reflection->GetRepeatedMessage(message, field, i)
                                        : reflection->GetMessage(message, field))) {
        return true;
      }
    }
  }
  return false;
}

grpc::ByteBuffer InPieces(const std::string& bytes, size_t piece) {
  std::vector<grpc::Slice> slices;
  for (size_t begin = 0; begin < bytes.size(); begin += piece) slices.emplace_back(bytes.substr(begin, piece));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace

void Run(std::string_view input) {
  Input in(input);
  const Type& type = kTypes[in.Byte() % std::size(kTypes)];
  const int doublings = in.Byte() % 20;
  const size_t piece = in.Byte() == 0 ? size_t{1} << 20 : 37;
  const std::string bytes = Repeated(in.Rest(), doublings, size_t{1} << 20);
  const grpc::ByteBuffer buffer = InPieces(bytes, piece);
  const MessageLimits limits = LimitsOf(type.size, Limits());

  {
    const std::unique_ptr<Message> first(type.empty.New());  // what is made once for a type is made now
    ReadMessage(buffer, limits, first.get()).IgnoreError();
  }
  const std::unique_ptr<Message> message(type.empty.New());
  const int64_t before = HeapBytes();
  const absl::Status status = ReadMessage(buffer, limits, message.get());
  const int64_t taken = HeapBytes() - before;
  if (status.ok()) {
    PALIMPSEST_CHECK(std::ssize(bytes) <= limits.size);
    PALIMPSEST_CHECK(taken <= std::ssize(bytes) + limits.overhead);
    // With less allowed than it took, it would have been refused.
    constexpr int64_t kOfTheMessage = 1024;  // what its own sub-messages take, however little is in them
    const int64_t less = taken - std::ssize(bytes) - kOfTheMessage - 1;
    const std::unique_ptr<Message> again(type.empty.New());
    PALIMPSEST_CHECK(less < 0 || !ReadMessage(buffer, {limits.size, less}, again.get()).ok());
    return;
  }
  PALIMPSEST_CHECK(absl::IsInvalidArgument(status) || absl::IsResourceExhausted(status));
  if (absl::IsResourceExhausted(status)) return;
  const std::unique_ptr<Message> reference(type.empty.New());
  PALIMPSEST_CHECK(!reference->ParseFromString(bytes) || HasGroup(*reference));
}

}  // namespace palimpsest::fuzz
