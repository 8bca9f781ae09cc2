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
#include "server/engine/engine.h"
#include "server/session/session_store.h"

namespace palimpsest {

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

// Thread-safe.
class Metrics {
 public:
  Metrics();
  ~Metrics();

  // Serves GET /metrics on "host:port" from threads of its own and returns the port; port 0 takes a free one.
  // INVALID_ARGUMENT: not such an address.  UNAVAILABLE: it cannot be bound.
  absl::StatusOr<int32_t> Expose(const std::string& address);
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
  // Whether the server takes requests, as its health says.
  void SetReady(bool ready);
  // The models there are, by id, and whether each is ready. `models` is called at each scrape, until it is replaced;
  // null: nothing is told of them.
  void SetModels(std::function<std::map<std::string, bool>()> models);
  // `counts`, by model, is called at each scrape, until it is replaced; null: nothing is told of them.
  void SetSessions(std::function<std::map<std::string, SessionStore::Counts>()> counts, SessionStoreOptions limits);

  // Bytes of answers that wait to be read, asked at each scrape until it is replaced; null: nothing is told of them.
  void SetReplyBytes(std::function<int64_t()> bytes, int64_t most);

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
