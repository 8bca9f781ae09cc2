// A server in the test's own process, with a random model that takes bytes as tokens, and a client of it over loopback.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "palimpsest/v1/generation.grpc.pb.h"
#include "palimpsest/v1/model.grpc.pb.h"
#include "palimpsest/v1/session.grpc.pb.h"
#include "palimpsest/v1/snapshot.grpc.pb.h"
#include "server/rpc/server.h"

namespace palimpsest::testing {

// A folder that goes with the object.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// The token that makes a sequence's numbers NaN.
inline constexpr int32_t kPoisonToken = 255;

// A Generate from its first message to its end.
struct Reply {
  grpc::Status status;
  std::string text;
  std::vector<v1::GeneratedToken> tokens;
  v1::GenerateFinish finish;
  int64_t position = 0;
  int messages = 0;

  std::vector<int32_t> ids() const;
};

class TestServer {
 public:
  // Options for a small server: one model "tiny", four slots, one thread, metrics on a free port, `model_root` the
  // folder of checkpoints.
  static ServerOptions DefaultOptions(const std::string& checkpoints);
  // `change` may change them before the start. Aborts if the server does not start.
  explicit TestServer(const std::function<void(ServerOptions&)>& change = {});

  Server& server() { return *server_; }
  // The folder that holds the checkpoints "tiny" and "other".
  const std::string& checkpoints() const { return folder_.path(); }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  v1::GenerationService::Stub& generation() { return *generation_; }
  v1::SessionService::Stub& sessions() { return *sessions_; }
  v1::SnapshotService::Stub& snapshots() { return *snapshots_; }
  v1::ModelService::Stub& models() { return *models_; }

  Reply Generate(const v1::GenerateRequest& request);
  Reply Generate(grpc::ClientContext& context, const v1::GenerateRequest& request);
  std::pair<grpc::Status, v1::ScoreResponse> Score(const v1::ScoreRequest& request);
  // The name of a new session. Aborts if there is none.
  std::string NewSession(const std::string& id = "");
  v1::Session GetSession(const std::string& name);
  // The name of a snapshot of a session.
  std::string NewSnapshot(const std::string& session, const std::string& id = "");
  std::pair<grpc::Status, std::string> Download(const std::string& name);
  // In pieces of `piece` bytes. `first` is the first message without its data.
  std::pair<grpc::Status, v1::Snapshot> Upload(const std::string& bytes, v1::UploadSnapshotRequest first = {},
                                               size_t piece = 1000);

  // LoadModel of a checkpoint in the folder, and UnloadModel.
  grpc::Status Load(const std::string& id, const std::string& checkpoint);
  grpc::Status Unload(const std::string& id);

  // What Scrape shows from now on.
  void SetMetricsToken(const std::string& token) { metrics_token_ = token; }
  // The answer's body to GET on the metrics port, or "" if there was none.
  std::string Scrape(const std::string& path = "/metrics");
  // The value of a line of the page: "name" or "name{label="value"}" as printed; NaN if it is not there.
  double Metric(const std::string& line);
  // The same, once it is `expected`, or after twenty seconds: a call is counted when gRPC is done with it, which may be
  // just after its caller is.
  double AwaitMetric(const std::string& line, double expected);

 private:
  TemporaryFolder folder_;
  std::string metrics_token_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::SessionService::Stub> sessions_;
  std::unique_ptr<v1::SnapshotService::Stub> snapshots_;
  std::unique_ptr<v1::ModelService::Stub> models_;
};

// A request for `max_tokens` after `text`, greedy. The poison is not sampled.
v1::GenerateRequest Ask(const std::string& text, int32_t max_tokens = 8);

// What an error carries beside code and message.
struct ErrorDetails {
  std::string reason;
  std::string domain;
  std::vector<std::string> fields;  // of BadRequest
  std::string resource;             // name
  double retry_seconds = -1;        // -1: none
};
ErrorDetails DetailsOf(const grpc::Status& status);

}  // namespace palimpsest::testing
