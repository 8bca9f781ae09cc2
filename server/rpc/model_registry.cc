#include "server/rpc/model_registry.h"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/common/check.h"
#include "kernels/common/simd.h"
#include "server/rpc/status.h"

namespace palimpsest {
namespace {

absl::Status NoSuchModel(const std::string& id) {
  return WithReason(WithResource(absl::NotFoundError(absl::StrCat("models/", id, " is not loaded here; ListModels ",
                                                                  "tells which are")),
                                 "palimpsest.dev/Model", absl::StrCat("models/", id)),
                    "MODEL_NOT_FOUND");
}

absl::Status InFront(const absl::Status& status, const std::string& what) {
  return absl::Status(status.code(), absl::StrCat(what, ": ", status.message()));
}

ModelInfo Describe(const std::string& id, const Engine& engine) {
  const Model& model = engine.model();
  const int32_t threads = engine.options().threads;
  ModelInfo info;
  info.id = id;
  info.condition = ModelCondition::kReady;
  info.architecture = model.config().architecture;
  info.parameter_count = model.parameter_count();
  info.weight_dtype = std::string(NameOf(model.weight_dtype()));
  info.weight_bytes = model.weight_bytes();
  info.vocabulary = model.config().vocabulary;
  info.state_bytes = model.layout().bytes();
  info.state_pieces = model.layout().pieces();
  info.max_context = model.config().max_context();
  info.slots = engine.options().slots;
  info.fingerprint = model.fingerprint();
  info.tokenizer = std::string(engine.tokenizer().kind());
  info.backend = absl::StrCat("cpu (", SimdTargetName(), ", ", threads, threads == 1 ? " thread" : " threads",
                              model.math() == LinearMath::kBF16 ? ", bf16 products)" : ")");
  return info;
}

}  // namespace

ModelRef::~ModelRef() {
  if (served_ != nullptr) registry_->Drop(served_);
}

ModelRegistry::ModelRegistry(Options options, Metrics* metrics, SessionStore* sessions)
    : options_(std::move(options)), metrics_(metrics), sessions_(sessions) {}

ModelRegistry::~ModelRegistry() {
  std::map<std::string, std::unique_ptr<ServedModel>> models;
  {
    absl::MutexLock lock(&mu_);
    models.swap(models_);
  }
  // Outside the lock: a scrape asks the engine while it holds its own.
  for (auto& [id, served] : models) {
    PALIMPSEST_CHECK(served->references == 0);
    metrics_->RemoveModel(id);
  }
}

absl::StatusOr<std::unique_ptr<Engine>> ModelRegistry::LoadEngine(const std::string& id, const std::string& folder,
                                                                  std::shared_ptr<const Tokenizer>& tokenizer) const {
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(folder, options_.model);
  if (!model.ok()) return model.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> loaded = Tokenizer::Load(folder, (*model)->config().vocabulary);
  if (!loaded.ok()) return loaded.status();
  tokenizer = std::move(*loaded);
  return Engine::Start(std::move(*model), tokenizer, options_.engine, metrics_->Observe(id));
}

absl::StatusOr<ModelInfo> ModelRegistry::Load(const std::string& id, const std::string& folder) {
  ServedModel* entry = nullptr;
  {
    absl::MutexLock lock(&mu_);
    if (models_.count(id) > 0) {
      return WithReason(absl::AlreadyExistsError(absl::StrCat("models/", id, " is there already; unload it first, or ",
                                                              "choose another id")),
                        "MODEL_EXISTS");
    }
    if (static_cast<int32_t>(models_.size()) >= options_.max_models) {
      return WithoutRetry(WithReason(
          absl::ResourceExhaustedError(absl::StrCat("the server holds ", models_.size(), " models and may hold ",
                                                    options_.max_models, " (--max_models); unload one first")),
          "MODEL_LIMIT"));
    }
    auto made = std::make_unique<ServedModel>();
    made->info.id = id;
    entry = made.get();
    models_[id] = std::move(made);
  }

  // Nobody else touches the entry's engine while it loads: Find refuses.
  absl::StatusOr<std::unique_ptr<Engine>> engine = absl::InternalError("");
  std::shared_ptr<const Tokenizer> tokenizer;
  try {
    engine = LoadEngine(id, folder, tokenizer);
  } catch (const std::exception& error) {
    engine = absl::ResourceExhaustedError(absl::StrCat("loading failed: ", error.what()));
  }
  if (!engine.ok()) {
    absl::MutexLock lock(&mu_);
    models_.erase(id);
    return WithoutRetry(InFront(engine.status(), absl::StrCat("models/", id)));
  }

  const ModelInfo info = Describe(id, **engine);
  Engine* const running = engine->get();
  metrics_->AddModel({id, info.architecture, info.weight_dtype, info.backend, info.parameter_count, info.weight_bytes,
                      info.state_bytes},
                     [running] { return running->stats(); });
  absl::MutexLock lock(&mu_);
  entry->tokenizer = std::move(tokenizer);
  entry->engine = std::move(*engine);
  entry->info = info;
  return info;
}

absl::Status ModelRegistry::Unload(const std::string& id) {
  ServedModel* entry = nullptr;
  {
    absl::MutexLock lock(&mu_);
    const auto found = models_.find(id);
    if (found == models_.end() || found->second->info.condition == ModelCondition::kUnloading) return NoSuchModel(id);
    if (found->second->info.condition == ModelCondition::kLoading) {
      return WithReason(absl::UnavailableError(absl::StrCat("models/", id, " is loading; unload it when it is ready")),
                        "MODEL_LOADING");
    }
    entry = found->second.get();
    entry->info.condition = ModelCondition::kUnloading;
    mu_.Await(absl::Condition(
        +[](ServedModel* waited) { return waited->references == 0; }, entry));
  }
  sessions_->DropModel(id);
  metrics_->RemoveModel(id);
  std::unique_ptr<ServedModel> gone;
  {
    absl::MutexLock lock(&mu_);
    gone = std::move(models_.at(id));
    models_.erase(id);
  }
  return absl::OkStatus();  // and the engine ends here, outside the lock
}

ModelRef ModelRegistry::Refer(ServedModel& served) {
  ++served.references;
  ModelRef reference;
  reference.registry_ = this;
  reference.served_ = &served;
  return reference;
}

void ModelRegistry::Drop(ServedModel* served) {
  absl::MutexLock lock(&mu_);
  --served->references;
}

absl::StatusOr<ModelRef> ModelRegistry::Find(const std::string& id) {
  absl::MutexLock lock(&mu_);
  const auto found = models_.find(id);
  if (found == models_.end() || found->second->info.condition == ModelCondition::kUnloading) return NoSuchModel(id);
  if (found->second->info.condition == ModelCondition::kLoading) {
    return WithReason(absl::UnavailableError(absl::StrCat("models/", id, " is loading")), "MODEL_LOADING");
  }
  return Refer(*found->second);
}

absl::StatusOr<ModelRef> ModelRegistry::FindOnly() {
  absl::MutexLock lock(&mu_);
  std::vector<ServedModel*> ready;
  for (const auto& [id, entry] : models_) {
    if (entry->info.condition == ModelCondition::kReady) ready.push_back(entry.get());
  }
  if (ready.empty() && !models_.empty()) {
    return WithReason(absl::UnavailableError("the model is loading, or being unloaded"), "MODEL_LOADING");
  }
  if (ready.empty()) {
    return WithReason(absl::FailedPreconditionError("no model is loaded"), "NO_MODEL");
  }
  if (ready.size() > 1) {
    return FieldViolation("model",
                          absl::StrCat("is empty, and the server has ", ready.size(),
                                       " models; accepted: one of those that ListModels tells, as models/{id}"));
  }
  return Refer(*ready.front());
}

absl::StatusOr<ModelInfo> ModelRegistry::Get(const std::string& id) const {
  absl::MutexLock lock(&mu_);
  const auto found = models_.find(id);
  if (found == models_.end()) return NoSuchModel(id);
  return found->second->info;
}

std::vector<ModelInfo> ModelRegistry::List() const {
  absl::MutexLock lock(&mu_);
  std::vector<ModelInfo> infos;
  for (const auto& [id, entry] : models_) infos.push_back(entry->info);
  return infos;
}

void ModelRegistry::Drain(absl::Time deadline) {
  // References keep the engines from being unloaded meanwhile.
  std::vector<ModelRef> references;
  {
    absl::MutexLock lock(&mu_);
    for (auto& [id, entry] : models_) {
      // One that is being unloaded and that nobody refers to any more is about to go, and has nothing to drain.
      if (entry->engine != nullptr && (entry->info.condition == ModelCondition::kReady || entry->references > 0)) {
        references.push_back(Refer(*entry));
      }
    }
  }
  for (const ModelRef& reference : references) reference.engine().Drain(deadline);
}

absl::StatusOr<std::string> ModelRegistry::ResolvePath(const std::string& relative) const {
  if (options_.root.empty()) {
    return WithReason(absl::PermissionDeniedError("models cannot be loaded over the network: the server was started "
                                                  "without --model_root"),
                      "NO_MODEL_ROOT");
  }
  const auto outside = [&relative] {
    return WithReason(absl::PermissionDeniedError(absl::StrCat("path ", Quoted(relative),
                                                               " leads out of the server's --model_root; "
                                                               "accepted: a folder below it")),
                      "PATH_OUTSIDE_ROOT");
  };
  const std::filesystem::path path(relative);
  if (path.is_absolute() || std::find(path.begin(), path.end(), "..") != path.end()) return outside();
  std::error_code error;
  const std::filesystem::path root = std::filesystem::canonical(options_.root, error);
  if (error) {
    return absl::FailedPreconditionError("the server's --model_root is not there any more");
  }
  const std::filesystem::path folder = std::filesystem::canonical(root / path, error);
  if (error || !std::filesystem::is_directory(folder, error)) {
    return WithReason(absl::NotFoundError(absl::StrCat("path ", Quoted(relative), " is not a folder below the ",
                                                       "server's --model_root")),
                      "PATH_NOT_FOUND");
  }
  // Links are followed by now: what counts is where they led.
  const auto [end_of_root, unused] = std::mismatch(root.begin(), root.end(), folder.begin(), folder.end());
  if (end_of_root != root.end()) return outside();
  return folder.string();
}

}  // namespace palimpsest
