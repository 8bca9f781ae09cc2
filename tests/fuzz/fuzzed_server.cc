#include "tests/fuzz/fuzzed_server.h"

#include <grpcpp/channel.h>
#include <grpcpp/generic/generic_stub.h>

#include <chrono>
#include <memory>

#include "base/check.h"

namespace palimpsest::fuzz {
namespace {

constexpr char kSession[] = "sessions/kept";
constexpr char kSnapshot[] = "snapshots/kept";
constexpr char kModel[] = "models/tiny";

testing::Reply Canary(testing::TestServer& server) { return server.Generate(testing::Ask("The canary", 4)); }

// The answer to a call that must succeed.
template <class Answer, class Stub, class Method, class Request>
Answer Must(Stub& stub, Method method, const Request& request) {
  grpc::ClientContext context;
  Answer answer;
  const grpc::Status status = (stub.*method)(&context, request, &answer);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.error_message().c_str());
  PALIMPSEST_CHECK(status.ok());
  return answer;
}

}  // namespace

FuzzedServer& FuzzedServer::Get() {
  static auto* const server = new FuzzedServer;  // never destroyed: the process may end anywhere
  return *server;
}

FuzzedServer::FuzzedServer()
    : server_([](ServerOptions& options) {
        options.limits.max_tokens = 8;
        options.limits.default_max_tokens = 4;
        options.limits.max_prompt_tokens = 4096;
        options.limits.max_scored_values = 16384;
        // Whoever breaks calls off comes from the same address as those who are to notice nothing of it.
        options.connections.max_resets_per_second = 0;
        options.sessions.max_sessions = 32;
        options.sessions.max_snapshots = 8;
      }) {
  canary_ = Canary(server_).ids();
  PALIMPSEST_CHECK(canary_.size() == 4);
  Restore();
}

grpc::Status FuzzedServer::Call(const std::string& method, const std::vector<std::string>& messages) {
  std::shared_ptr<grpc::ChannelInterface> channel = server_.channel();
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  grpc::CompletionQueue queue;
  const auto done = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    PALIMPSEST_CHECK(queue.Next(&tag, &ok));
    return ok;
  };
  const auto call = stub.PrepareCall(&context, "/" + method, &queue);
  call->StartCall(nullptr);
  bool open = done();
  for (const std::string& message : messages) {
    if (!open) break;
    const grpc::Slice slice(message);
    call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
    open = done();
  }
  if (open) {
    call->WritesDone(nullptr);
    done();
  }
  grpc::ByteBuffer answer;
  do {
    call->Read(&answer, nullptr);
  } while (done());
  grpc::Status status;
  call->Finish(&status, nullptr);
  done();
  PALIMPSEST_CHECK(status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED);
  return status;
}

bool FuzzedServer::HasModel() {
  bool found = false;
  const auto models =
      Must<v1::ListModelsResponse>(server_.models(), &v1::ModelService::Stub::ListModels, v1::ListModelsRequest());
  for (const v1::Model& model : models.models()) {
    if (model.name() == kModel) {
      found = true;
      continue;
    }
    v1::UnloadModelRequest unload;
    unload.set_name(model.name());
    Must<google::protobuf::Empty>(server_.models(), &v1::ModelService::Stub::UnloadModel, unload);
  }
  return found;
}

void FuzzedServer::KeepSession() {
  bool found = false;
  const auto sessions = Must<v1::ListSessionsResponse>(server_.sessions(), &v1::SessionService::Stub::ListSessions,
                                                       v1::ListSessionsRequest());
  PALIMPSEST_CHECK(sessions.next_page_token().empty());
  for (const v1::Session& session : sessions.sessions()) {
    if (session.name() == kSession && session.condition() == v1::Session::CONDITION_IDLE) {
      found = true;
      continue;
    }
    v1::DeleteSessionRequest remove;
    remove.set_name(session.name());
    Must<google::protobuf::Empty>(server_.sessions(), &v1::SessionService::Stub::DeleteSession, remove);
  }
  if (!found) server_.NewSession("kept");
}

void FuzzedServer::KeepSnapshot() {
  bool found = false;
  const auto snapshots = Must<v1::ListSnapshotsResponse>(server_.snapshots(), &v1::SnapshotService::Stub::ListSnapshots,
                                                         v1::ListSnapshotsRequest());
  PALIMPSEST_CHECK(snapshots.next_page_token().empty());
  for (const v1::Snapshot& snapshot : snapshots.snapshots()) {
    if (snapshot.name() == kSnapshot) {
      found = true;
      continue;
    }
    v1::DeleteSnapshotRequest remove;
    remove.set_name(snapshot.name());
    Must<google::protobuf::Empty>(server_.snapshots(), &v1::SnapshotService::Stub::DeleteSnapshot, remove);
  }
  if (!found) server_.NewSnapshot(kSession, "kept");
}

void FuzzedServer::Restore() {
  if (!HasModel()) {
    v1::LoadModelRequest load;
    load.set_model_id("tiny");
    load.set_path("tiny");
    Must<v1::Model>(server_.models(), &v1::ModelService::Stub::LoadModel, load);
  }
  KeepSession();
  KeepSnapshot();
}

void FuzzedServer::ExpectWell() {
  const testing::Reply reply = Canary(server_);
  if (!reply.status.ok()) std::fprintf(stderr, "%s\n", reply.status.error_message().c_str());
  PALIMPSEST_CHECK(reply.status.ok() && reply.ids() == canary_);
}

}  // namespace palimpsest::fuzz
