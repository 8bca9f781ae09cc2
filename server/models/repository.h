// A folder whose sub-folders are the models to serve, watched while the server runs.
//
//   FOLDER/NAME/config.json ...      a model of one version, the checkpoint itself; or
//   FOLDER/NAME/7/config.json ...    checkpoints by version: whole numbers without leading zeros
//
// The highest version that loads is served. A new one is loaded and warmed up beside the old one, then takes over:
// requests from then on go to it, those in flight end where they are. The old version stays for the sessions that it
// has (ModelRegistry::Replace). Taking the highest version out of the folder goes back to the one below; taking out the
// whole of NAME retires the model.
//
// Publish a version by renaming: write the folder under a name that begins with a dot, then rename it. As a second
// line, a checkpoint is not touched while one of its files has changed within the last two seconds, and one that does
// not load is counted, logged and left alone until its files change, while what was served before stays. Only a lack
// of memory is tried again by itself.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace palimpsest {

class Metrics;
class ModelRegistry;

struct ModelRepositoryOptions {
  std::string folder;                            // empty: no repository
  absl::Duration poll = absl::Seconds(30);       // 0: only at the start
  absl::Duration retire_after = absl::Hours(1);  // how long a replaced version stays for its sessions, at most
};

// A checkpoint in the repository.
struct RepositoryVersion {
  std::string version;  // "7"; empty: the model has one version
  std::string folder;
  std::string signature;  // changes when a file of the checkpoint does
  bool settled = true;    // nothing changed within the last two seconds

  bool operator==(const RepositoryVersion&) const = default;
};

// The models by name, their versions highest first; a name without any is not there. Names that cannot be a model's id
// go to `ignored`, but those that begin with a dot. NOT_FOUND: no such folder, or it cannot be read.
absl::StatusOr<std::map<std::string, std::vector<RepositoryVersion>>> ScanRepository(const std::string& folder,
                                                                                     absl::Time now,
                                                                                     std::set<std::string>* ignored);

// Keeps a registry as the folder says. What it loads belongs to it: UnloadModel refuses it.
class ModelRepository {
 public:
  // Both must outlive this object.
  ModelRepository(ModelRepositoryOptions options, ModelRegistry* registry, Metrics* metrics);
  // Waits for a load that is under way.
  ~ModelRepository();

  // Loads what is there, then watches from a thread of its own. Errors if the registry is empty after that: what the
  // loader said first, or FAILED_PRECONDITION where there was nothing to load.
  absl::Status Start();
  // No more loads begin. Does not wait.
  void Stop();

 private:
  void Watch();
  // One look at the folder. False: something is not settled yet.
  bool Look(bool first);
  // False as Look.
  bool Update(const std::string& name, const std::vector<RepositoryVersion>& versions, bool first);
  void RetireMissing(const std::map<std::string, std::vector<RepositoryVersion>>& found);

  const ModelRepositoryOptions options_;
  ModelRegistry* const registry_;
  Metrics* const metrics_;
  absl::Notification stop_;
  std::thread thread_;
  // Of the thread that looks: Start's, then Watch's.
  std::map<std::string, RepositoryVersion> served_;                   // by name
  std::map<std::string, std::map<std::string, std::string>> failed_;  // name -> folder -> signature
  std::set<std::string> missing_;                                     // served, but not seen by the last look
  std::set<std::string> ignored_;                                     // told of already
  absl::Status first_failure_;
  bool readable_ = true;
};

}  // namespace palimpsest
