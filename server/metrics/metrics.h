// The one place that names metrics.
//
// All are in base units and start with `palimpsest_`; what describes the process starts with `process_`, as elsewhere.
// Labels are bounded: model ids, method names, status codes. Histograms and the request counter are told as things
// happen; everything else is read from the engines and the session store when Prometheus asks.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/engine/observer.h"
#include "server/session/session_store.h"

namespace palimpsest {

struct PageServerOptions;  // page_server.h

// What the build knows of itself.
struct BuildInfo {
  std::string version;
  std::string commit;  // "unknown" when built outside a git checkout
};
BuildInfo GetBuildInfo();

// What `palimpsest_model_info` says of a model.
struct ModelLabels {
  std::string model;  // id
  std::string architecture;
  std::string dtype;
  std::string backend;
  int64_t parameters = 0;
  int64_t weight_bytes = 0;
  int64_t state_bytes = 0;  // of one state, so of one slot
};

// Of the answers that are remembered by request id.
struct RequestIdCounts {
  int64_t ids = 0;
  int64_t bytes = 0;
  int64_t max_bytes = 0;
  int64_t refusals = 0;  // so far
};

// Thread-safe.
class Metrics {
 public:
  Metrics();
  ~Metrics();

  // Serves the page at GET /metrics, as the options say but for `page`, and returns the port. Call at most once.
  // Statuses as PageServer::Start.
  absl::StatusOr<int32_t> Expose(const PageServerOptions& options);
  // The page as text.
  std::string Page() const;

  // What an engine of this model is to tell. May be called before the model is added; must not outlive this object.
  EngineObserver Observe(const std::string& model);
  // From now on the page tells of the model. `stats` is called at each scrape until RemoveModel has returned.
  void AddModel(const ModelLabels& labels, std::function<EngineStats()> stats);
  void RemoveModel(const std::string& model);
  // Versions of the model that were replaced and still serve their sessions.
  void SetRetiring(const std::string& model, int32_t versions);
  // The model repository has tried to load a version of the model.
  void CountRepositoryLoad(const std::string& model, absl::string_view code);
  // The file of owners has changed and was read again.
  void CountOwnersFileLoad(absl::string_view code);
  // A call of an owner has ended. `owner` is one of few: those that the file of owners names, and one for the rest.
  void CountOwner(absl::string_view owner, absl::string_view code, int64_t generated_tokens);
  // Whether the server takes requests, as its health says.
  void SetReady(bool ready);
  // The models there are, by id, and whether each is ready. `models` is called at each scrape, until it is replaced;
  // null: nothing is told of them.
  void SetModels(std::function<std::map<std::string, bool>()> models);
  // `counts`, by model, and `use` are called at each scrape, until they are replaced; null: nothing is told of them.
  void SetSessions(std::function<std::map<std::string, SessionStore::Counts>()> counts,
                   std::function<SessionStore::Use()> use);
  // The same of remembered request ids.
  void SetRequestIds(std::function<RequestIdCounts()> counts);

  // Connections that are open, asked for at each scrape until it is replaced, and how many there may be; null: nothing
  // is told of them.
  void SetConnections(std::function<int64_t()> open, int64_t most);
  // Whether connections are being accepted, as far as a watch over it knows.
  void SetAccepting(bool accepting);
  void CountConnectionRefused(absl::string_view reason);
  void CountConnectionEnded(absl::string_view reason);

  // Bytes of answers that wait to be read, and how many may; asked at each scrape until it is replaced; null: nothing
  // is told of them.
  void SetReplyBytes(std::function<std::pair<int64_t, int64_t>()> bytes);

  // Calls were ended because their peers did nothing.
  void CountStalls(int32_t calls);
  // A request has been read, so long after it arrived.
  void ObserveRead(absl::string_view method, absl::Duration time);
  // A call has ended. `method` is "palimpsest.v1.GenerationService/Generate".
  void CountRequest(absl::string_view method, absl::string_view code, absl::Duration duration);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace palimpsest
