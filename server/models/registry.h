// The models by id: each is slow weights, a tokenizer and the engine that runs them.
//
// loading -> ready -> unloading -> gone. Only a ready one can be referred to; a reference keeps it until it is dropped,
// so unloading waits for the calls that use the model.
//
// A model may be replaced by another version of it: ready -> retiring -> gone. A retiring version has no name of its
// own any more. Only what goes on from a state of its own can refer to it, until no session has such a state, or its
// time is over; then it goes as soon as its last reference does. Sessions that are left keep their states: calls on
// them are told that the model has been replaced.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "server/engine/memory_plan.h"
#include "server/metrics/metrics.h"
#include "server/model/model.h"
#include "server/models/backend.h"
#include "server/session/session_store.h"
#include "server/tokenizer/tokenizer.h"

namespace palimpsest {

enum class ModelCondition : uint8_t { kLoading, kReady, kUnloading };
// Who asked for a model. What a call has not loaded, a call does not unload: --model and --model_repository say what
// this server is for.
enum class ModelOrigin : uint8_t { kCall, kFlag, kRepository };

// What there is to say about a model; all but the first two are empty while it loads.
struct ModelInfo {
  std::string id;
  ModelCondition condition = ModelCondition::kLoading;
  ModelOrigin origin = ModelOrigin::kCall;
  std::string version;  // in the model repository, if it has versions
  std::string architecture;
  int64_t parameter_count = 0;
  std::string weight_dtype;
  int64_t weight_bytes = 0;
  int32_t vocabulary = 0;
  int64_t state_bytes = 0;
  std::vector<StatePieceSpec> state_pieces;
  int64_t max_context = 0;
  int32_t slots = 0;
  std::string fingerprint;
  std::string tokenizer;
  std::string backend;
};

class ModelRegistry;

// Room in memory for a model until what is returned is let go. RESOURCE_EXHAUSTED: it does not fit beside what there
// is. Thread-safe.
using AdmitModel = std::function<absl::StatusOr<std::shared_ptr<const void>>(ModelMemory)>;

// One entry of the registry. What is here is constant once the model is ready, but the condition, the count and the
// time, which the registry's lock guards.
struct ServedModel {
  ModelInfo info;
  int64_t references = 0;
  absl::Time retire_by = absl::InfiniteFuture();  // of a retiring version
  std::shared_ptr<const void> room;               // of AdmitModel; goes after the engine
  std::shared_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<Engine> engine;
};

// A counted reference to a ready model. Movable; dropped by the destructor, on any thread, without waiting.
class ModelRef {
 public:
  ModelRef() = default;
  ModelRef(ModelRef&& other) noexcept { swap(other); }
  ModelRef& operator=(ModelRef&& other) noexcept {
    ModelRef(std::move(other)).swap(*this);
    return *this;
  }
  ~ModelRef();

  explicit operator bool() const { return served_ != nullptr; }
  const std::string& id() const { return served_->info.id; }
  Engine& engine() const { return *served_->engine; }
  const Tokenizer& tokenizer() const { return *served_->tokenizer; }
  // May be kept after the reference.
  const std::shared_ptr<const Tokenizer>& shared_tokenizer() const { return served_->tokenizer; }
  int32_t vocabulary() const { return tokenizer().vocabulary(); }

 private:
  friend class ModelRegistry;
  void swap(ModelRef& other) noexcept {
    std::swap(registry_, other.registry_);
    std::swap(served_, other.served_);
  }
  ModelRegistry* registry_ = nullptr;
  ServedModel* served_ = nullptr;
};

// Thread-safe. Must outlive its references.
class ModelRegistry {
 public:
  struct Options {
    EngineOptions engine;
    ModelOptions model;  // but its device: every model gets one of its own
    std::string root;    // for ResolvePath; empty: none
    int32_t max_models = 8;
    BackendOptions backend;
  };
  // `metrics` and `sessions` are told of models that come and go, and `admit` gives them room; the two must outlive
  // this object.
  ModelRegistry(Options options, Metrics* metrics, SessionStore* sessions, AdmitModel admit);
  // Every reference must have been dropped.
  ~ModelRegistry();

  // Takes the name, loads, warms up. Blocks for as long as that takes.
  // ALREADY_EXISTS: the name is taken.  RESOURCE_EXHAUSTED: max_models.  Else what the loaders said.
  absl::StatusOr<ModelInfo> Load(const std::string& id, const std::string& folder,
                                 ModelOrigin origin = ModelOrigin::kCall);
  // Loads and warms up a version of a model of the repository, and puts it in the place of the one that is ready, if
  // there is one; that one retires, and is gone after `retire_after` at the latest. On error all is as before. Blocks
  // for as long as loading takes; one thread at a time calls this.
  // ALREADY_EXISTS: the name is that of a model that did not come from the repository.  RESOURCE_EXHAUSTED: memory, or
  // max_models.  Else what the loaders said.
  absl::StatusOr<ModelInfo> Replace(const std::string& id, const std::string& folder, const std::string& version,
                                    absl::Duration retire_after);
  // The model, which Replace made, retires with nothing in its place.
  void Retire(const std::string& id, absl::Duration retire_after);
  // Lets go the retiring versions whose time, a steady one, has come. Call it now and then.
  void DropRetired(absl::Time now);

  // Refuses new references, waits for those there are, forgets the model's sessions and snapshots, frees it.
  // Blocks for as long as that takes. NOT_FOUND: no such model, or it is being unloaded already. UNAVAILABLE: loading.
  // FAILED_PRECONDITION: it came from a flag or from the repository.
  absl::Status Unload(const std::string& id);

  // NOT_FOUND: no such model, or it is being unloaded.  UNAVAILABLE: it is loading.
  absl::StatusOr<ModelRef> Find(const std::string& id);
  // The version of the model whose states have this fingerprint; empty: any, so the one that is ready. Errors as above,
  // and FAILED_PRECONDITION: that version has been replaced and is gone.
  absl::StatusOr<ModelRef> Find(const std::string& id, const std::string& fingerprint);
  // The only model. INVALID_ARGUMENT: there are several.  FAILED_PRECONDITION: there is none.  UNAVAILABLE: none but
  // one that is loading.
  absl::StatusOr<ModelRef> FindOnly();
  // NOT_FOUND.
  absl::StatusOr<ModelInfo> Get(const std::string& id) const;
  // By id.
  std::vector<ModelInfo> List() const;

  // Whether some model answers calls.
  bool AnyReady() const;
  // Called after what AnyReady says may have changed, on the thread that changed it, without the registry's lock. Set
  // before the first model is loaded.
  void SetListener(std::function<void()> listener) { listener_ = std::move(listener); }

  // Whether the device of some model has failed. It will not come back in this process.
  bool AnyDeviceFailed() const;

  // Drains every engine: what runs may end until `deadline`.
  void Drain(absl::Time deadline);

  // A folder under the root. PERMISSION_DENIED: there is no root, or the path, links followed, leads out of it.
  // NOT_FOUND: no such folder.
  absl::StatusOr<std::string> ResolvePath(const std::string& relative) const;

 private:
  friend class ModelRef;
  // Fills in the rest of `made`.
  absl::StatusOr<std::unique_ptr<Engine>> LoadEngine(const std::string& id, const std::string& folder,
                                                     ServedModel& made) const;
  // A model of its own, not in the map.
  absl::StatusOr<std::unique_ptr<ServedModel>> Make(const std::string& id, const std::string& folder) const;
  // Of all versions of the model.
  EngineStats StatsOf(const std::string& id) const;
  void AddToMetrics(const ModelInfo& info);
  int32_t RetiringOf(const std::string& id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Retire(std::unique_ptr<ServedModel> served, absl::Time by) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Report() const {
    if (listener_) listener_();
  }
  ModelRef Refer(ServedModel& served) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Drop(ServedModel* served);

  const Options options_;
  Metrics* const metrics_;
  SessionStore* const sessions_;
  const AdmitModel admit_;
  std::function<void()> listener_;
  mutable absl::Mutex mu_;  // held for map operations only
  std::map<std::string, std::unique_ptr<ServedModel>> models_ ABSL_GUARDED_BY(mu_);
  std::vector<std::unique_ptr<ServedModel>> retiring_ ABSL_GUARDED_BY(mu_);
  // What versions that are gone have counted, by id: a counter never falls.
  std::map<std::string, EngineStats> gone_ ABSL_GUARDED_BY(mu_);
};

// Tells the operator.
void LogModelLoaded(const ModelInfo& info, absl::Duration took);

}  // namespace palimpsest
