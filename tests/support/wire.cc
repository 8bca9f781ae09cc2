#include "tests/support/wire.h"

#include <grpcpp/impl/codegen/client_unary_call.h>
#include <grpcpp/impl/codegen/rpc_method.h>
#include <grpcpp/support/byte_buffer.h>

#include <algorithm>
#include <bit>
#include <chrono>

#include "gtest/gtest.h"

namespace palimpsest::testing {
namespace {

constexpr absl::Duration kTimeout = absl::Minutes(2);

// A unary call that has to succeed.
template <class Service, class Request, class Response>
Response CallOk(Service& stub, grpc::Status (Service::*method)(grpc::ClientContext*, const Request&, Response*),
                const Request& request) {
  grpc::ClientContext context;
  SetTimeout(context, kTimeout);
  Response response;
  const grpc::Status status = (stub.*method)(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_code() << " " << status.error_message() << "\n"
                           << request.ShortDebugString();
  return response;
}

TokenBits Bits(const v1::GeneratedToken& token) {
  TokenBits bits{.id = token.id(), .logprobs = {}};
  if (token.has_logprob()) bits.logprobs.push_back(std::bit_cast<uint32_t>(token.logprob()));
  for (const v1::TokenLogprob& top : token.top()) {
    bits.logprobs.push_back(static_cast<uint32_t>(top.id()));
    bits.logprobs.push_back(std::bit_cast<uint32_t>(top.logprob()));
  }
  return bits;
}

grpc::ByteBuffer EmptyMessage() {
  const grpc::Slice nothing;
  return grpc::ByteBuffer(&nothing, 1);
}

// HealthCheckResponse: field 1 is the status, left out when it is 0.
Health ParseHealth(const grpc::ByteBuffer& response) {
  std::vector<grpc::Slice> slices;
  if (!response.Dump(&slices).ok()) return Health::kUnreachable;
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes.size() == 2 && bytes[0] == 8 ? static_cast<Health>(bytes[1]) : Health::kUnknown;
}

}  // namespace

Stubs::Stubs(const std::string& target, bool small_windows) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (small_windows) {
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 10);
  }
  channel = grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
  generation = v1::GenerationService::NewStub(channel);
  sessions = v1::SessionService::NewStub(channel);
  snapshots = v1::SnapshotService::NewStub(channel);
  models = v1::ModelService::NewStub(channel);
}

void PrintTo(const Reply& reply, std::ostream* out) {
  *out << reply.tokens.size() << " tokens to position " << reply.position << ", digest " << reply.digest << ":";
  for (size_t i = 0; i < std::min<size_t>(reply.tokens.size(), 8); ++i) {
    *out << " " << reply.tokens[i].id;
    if (!reply.tokens[i].logprobs.empty()) *out << "(" << std::bit_cast<float>(reply.tokens[i].logprobs[0]) << ")";
  }
}

void SetTimeout(grpc::ClientContext& context, absl::Duration timeout) {
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(timeout));
}

Outcome Generate(Stubs& stubs, const v1::GenerateRequest& request, grpc::ClientContext& context,
                 const std::function<void(const v1::GenerateResponse&)>& on_message) {
  Outcome outcome;
  Reply& reply = outcome.reply;
  auto reader = stubs.generation->Generate(&context, request);
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
    reply.text += message.text();
    for (const v1::GeneratedToken& token : message.tokens()) reply.tokens.push_back(Bits(token));
    reply.position = std::max(reply.position, message.position());
    if (message.has_finish()) {
      reply.reason = message.finish().reason();
      reply.digest = message.finish().state_digest();
      reply.state = message.finish().state();
      outcome.usage = message.finish().usage();
    }
    if (on_message) on_message(message);
  }
  outcome.status = reader->Finish();
  return outcome;
}

Reply GenerateOk(Stubs& stubs, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  SetTimeout(context, kTimeout);
  Outcome outcome = Generate(stubs, request, context);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_code() << " " << outcome.status.error_message();
  return outcome.reply;
}

std::string CreateSession(Stubs& stubs, const std::string& source_snapshot) {
  v1::CreateSessionRequest request;
  if (!source_snapshot.empty()) request.set_source_snapshot(source_snapshot);
  return CallOk(*stubs.sessions, &v1::SessionService::Stub::CreateSession, request).name();
}

std::vector<std::string> ForkSession(Stubs& stubs, const std::string& session, int count) {
  v1::ForkSessionRequest request;
  request.set_name(session);
  request.set_count(count);
  std::vector<std::string> names;
  const v1::ForkSessionResponse response = CallOk(*stubs.sessions, &v1::SessionService::Stub::ForkSession, request);
  for (const v1::Session& child : response.sessions()) names.push_back(child.name());
  return names;
}

v1::Session GetSession(Stubs& stubs, const std::string& session) {
  v1::GetSessionRequest request;
  request.set_name(session);
  return CallOk(*stubs.sessions, &v1::SessionService::Stub::GetSession, request);
}

void DeleteSession(Stubs& stubs, const std::string& session) {
  v1::DeleteSessionRequest request;
  request.set_name(session);
  CallOk(*stubs.sessions, &v1::SessionService::Stub::DeleteSession, request);
}

v1::Snapshot CreateSnapshot(Stubs& stubs, const std::string& session) {
  v1::CreateSnapshotRequest request;
  request.set_session(session);
  return CallOk(*stubs.snapshots, &v1::SnapshotService::Stub::CreateSnapshot, request);
}

std::string DownloadSnapshot(Stubs& stubs, const std::string& snapshot) {
  grpc::ClientContext context;
  SetTimeout(context, kTimeout);
  v1::DownloadSnapshotRequest request;
  request.set_name(snapshot);
  auto reader = stubs.snapshots->DownloadSnapshot(&context, request);
  std::string bytes;
  for (v1::DownloadSnapshotResponse piece; reader->Read(&piece);) {
    EXPECT_LE(piece.data().size(), size_t{1} << 20);
    bytes += piece.data();
  }
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  return bytes;
}

v1::Snapshot UploadSnapshot(Stubs& stubs, const std::string& bytes) {
  grpc::ClientContext context;
  SetTimeout(context, kTimeout);
  v1::Snapshot snapshot;
  auto writer = stubs.snapshots->UploadSnapshot(&context, &snapshot);
  for (size_t begin = 0; begin < bytes.size(); begin += size_t{1} << 20) {
    v1::UploadSnapshotRequest piece;
    piece.set_data(bytes.substr(begin, size_t{1} << 20));
    if (!writer->Write(piece)) break;
  }
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  return snapshot;
}

Health CheckHealth(const std::string& target) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto channel = grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
  grpc::ClientContext context;
  SetTimeout(context, absl::Seconds(5));
  const grpc::ByteBuffer request = EmptyMessage();
  grpc::ByteBuffer response;
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check", grpc::internal::RpcMethod::NORMAL_RPC);
  const grpc::Status status = grpc::internal::BlockingUnaryCall(channel.get(), method, &context, request, &response);
  return status.ok() ? ParseHealth(response) : Health::kUnreachable;
}

void WatchHealth(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext& context,
                 const std::function<void(Health)>& on_change) {
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Watch", grpc::internal::RpcMethod::SERVER_STREAMING);
  std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> reader(
      grpc::internal::ClientReaderFactory<grpc::ByteBuffer>::Create(channel.get(), method, &context, EmptyMessage()));
  for (grpc::ByteBuffer response; reader->Read(&response);) on_change(ParseHealth(response));
  reader->Finish();
}

}  // namespace palimpsest::testing
