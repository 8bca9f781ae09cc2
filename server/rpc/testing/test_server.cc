#include "server/rpc/testing/test_server.h"

#include <arpa/inet.h>
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/create_channel.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "server/model/testing/random_checkpoint.h"

namespace palimpsest::testing {

TemporaryFolder::TemporaryFolder() {
  std::string path = (std::filesystem::temp_directory_path() / "palimpsest_test_XXXXXX").string();
  PALIMPSEST_CHECK(mkdtemp(path.data()) != nullptr);
  path_ = path;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

std::vector<int32_t> Reply::ids() const {
  std::vector<int32_t> ids;
  for (const auto& token : tokens) ids.push_back(token.id());
  return ids;
}

ServerOptions TestServer::DefaultOptions(const std::string& checkpoints) {
  ServerOptions options;
  options.models = {{"tiny", checkpoints + "/tiny"}};
  options.model_root = checkpoints;
  options.metrics_address = "127.0.0.1:0";
  options.engine.threads = 1;
  options.engine.slots = 4;
  return options;
}

TestServer::TestServer(const std::function<void(ServerOptions&)>& change) {
  RandomCheckpointSpec spec;
  spec.poison_token = kPoisonToken;
  WriteRandomCheckpoint(checkpoints() + "/tiny", spec);
  spec.model_type = "delta_net";
  spec.seed = 2;
  WriteRandomCheckpoint(checkpoints() + "/other", spec);
  ServerOptions options = DefaultOptions(checkpoints());
  if (change) change(options);
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options);
  if (!server.ok()) std::fprintf(stderr, "%s\n", server.status().ToString().c_str());
  if (!server.ok()) std::fprintf(stderr, "%s\n", server.status().ToString().c_str());
  PALIMPSEST_CHECK(server.ok());
  server_ = std::move(*server);
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(64 << 20);
  // Tests of one process would share a connection otherwise.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A fixed window: how much a reader who stops can have in flight must not depend on how fast the machine is.
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  channel_ = grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", server_->port()), grpc::InsecureChannelCredentials(),
                                       arguments);
  generation_ = v1::GenerationService::NewStub(channel_);
  sessions_ = v1::SessionService::NewStub(channel_);
  snapshots_ = v1::SnapshotService::NewStub(channel_);
  models_ = v1::ModelService::NewStub(channel_);
}

Reply TestServer::Generate(const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  return Generate(context, request);
}

Reply TestServer::Generate(grpc::ClientContext& context, const v1::GenerateRequest& request) {
  Reply reply;
  const auto reader = generation_->Generate(&context, request);
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
    ++reply.messages;
    reply.text += message.text();
    reply.tokens.insert(reply.tokens.end(), message.tokens().begin(), message.tokens().end());
    reply.position = message.position();
    if (message.has_finish()) reply.finish = message.finish();
  }
  reply.status = reader->Finish();
  return reply;
}

std::pair<grpc::Status, v1::ScoreResponse> TestServer::Score(const v1::ScoreRequest& request) {
  grpc::ClientContext context;
  std::pair<grpc::Status, v1::ScoreResponse> result;
  result.first = generation_->Score(&context, request, &result.second);
  return result;
}

std::string TestServer::NewSession(const std::string& id) {
  grpc::ClientContext context;
  v1::CreateSessionRequest request;
  request.set_session_id(id);
  v1::Session session;
  PALIMPSEST_CHECK(sessions_->CreateSession(&context, request, &session).ok());
  return session.name();
}

v1::Session TestServer::GetSession(const std::string& name) {
  grpc::ClientContext context;
  v1::GetSessionRequest request;
  request.set_name(name);
  v1::Session session;
  PALIMPSEST_CHECK(sessions_->GetSession(&context, request, &session).ok());
  return session;
}

std::string TestServer::NewSnapshot(const std::string& session, const std::string& id) {
  grpc::ClientContext context;
  v1::CreateSnapshotRequest request;
  request.set_session(session);
  request.set_snapshot_id(id);
  v1::Snapshot snapshot;
  PALIMPSEST_CHECK(snapshots_->CreateSnapshot(&context, request, &snapshot).ok());
  return snapshot.name();
}

std::pair<grpc::Status, std::string> TestServer::Download(const std::string& name) {
  grpc::ClientContext context;
  v1::DownloadSnapshotRequest request;
  request.set_name(name);
  const auto reader = snapshots_->DownloadSnapshot(&context, request);
  std::string bytes;
  v1::DownloadSnapshotResponse message;
  while (reader->Read(&message)) bytes += message.data();
  const grpc::Status status = reader->Finish();
  return {status, bytes};
}

std::pair<grpc::Status, v1::Snapshot> TestServer::Upload(const std::string& bytes, v1::UploadSnapshotRequest first,
                                                         size_t piece) {
  grpc::ClientContext context;
  std::pair<grpc::Status, v1::Snapshot> result;
  const auto writer = snapshots_->UploadSnapshot(&context, &result.second);
  v1::UploadSnapshotRequest message = std::move(first);
  size_t sent = 0;
  do {
    message.set_data(bytes.substr(sent, piece));
    sent += piece;
    if (!writer->Write(message)) break;
    message.Clear();
  } while (sent < bytes.size());
  writer->WritesDone();
  result.first = writer->Finish();
  return result;
}

grpc::Status TestServer::Load(const std::string& id, const std::string& checkpoint) {
  grpc::ClientContext context;
  v1::LoadModelRequest request;
  request.set_model_id(id);
  request.set_path(checkpoint);
  v1::Model model;
  return models_->LoadModel(&context, request, &model);
}

grpc::Status TestServer::Unload(const std::string& id) {
  grpc::ClientContext context;
  v1::UnloadModelRequest request;
  request.set_name(absl::StrCat("models/", id));
  google::protobuf::Empty empty;
  return models_->UnloadModel(&context, request, &empty);
}

std::string TestServer::Scrape(const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  PALIMPSEST_CHECK(fd >= 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(server_->metrics_port()));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
    const std::string signature =
        metrics_token_.empty() ? "" : absl::StrCat("Authorization: Bearer ", metrics_token_, "\r\n");
    const std::string request =
        absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: localhost\r\n", signature, "Connection: close\r\n\r\n");
    PALIMPSEST_CHECK(write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size()));
    char buffer[65536];
    for (ssize_t got = 0; (got = read(fd, buffer, sizeof buffer)) > 0;) answer.append(buffer, static_cast<size_t>(got));
  }
  close(fd);
  const size_t body = answer.find("\r\n\r\n");
  return absl::StartsWith(answer, "HTTP/1.1 200") && body != std::string::npos ? answer.substr(body + 4) : "";
}

double TestServer::Metric(const std::string& line) {
  for (const absl::string_view found : absl::StrSplit(Scrape(), '\n')) {
    double value = 0;
    if (absl::StartsWith(found, line + " ") && absl::SimpleAtod(found.substr(line.size() + 1), &value)) return value;
  }
  return std::nan("");
}

double TestServer::AwaitMetric(const std::string& line, double expected) {
  const absl::Time give_up = absl::Now() + absl::Seconds(20);
  double value = Metric(line);
  while (value != expected && absl::Now() < give_up) {
    absl::SleepFor(absl::Milliseconds(2));
    value = Metric(line);
  }
  return value;
}

v1::GenerateRequest Ask(const std::string& text, int32_t max_tokens) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.mutable_sampling()->set_temperature(0);
  (*request.mutable_sampling()->mutable_logit_bias())[kPoisonToken] = -100;
  request.mutable_stop()->set_max_tokens(max_tokens);
  return request;
}

ErrorDetails DetailsOf(const grpc::Status& status) {
  ErrorDetails details;
  google::rpc::Status wire;
  if (!wire.ParseFromString(status.error_details())) return details;
  for (const auto& any : wire.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad;
    google::rpc::ResourceInfo resource;
    google::rpc::RetryInfo retry;
    if (any.UnpackTo(&info)) {
      details.reason = info.reason();
      details.domain = info.domain();
    } else if (any.UnpackTo(&bad)) {
      for (const auto& violation : bad.field_violations()) details.fields.push_back(violation.field());
    } else if (any.UnpackTo(&resource)) {
      details.resource = resource.resource_name();
    } else if (any.UnpackTo(&retry)) {
      details.retry_seconds = static_cast<double>(retry.retry_delay().seconds()) + retry.retry_delay().nanos() * 1e-9;
    }
  }
  return details;
}

}  // namespace palimpsest::testing
