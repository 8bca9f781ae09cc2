#include "server/models/registry.h"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/errno_status.h"
#include "base/host/available_memory.h"
#include "base/log.h"
#include "base/quote.h"
#include "base/status_macros.h"
#include "base/steady_clock.h"
#include "kernels/common/simd.h"
#include "server/engine/admission.h"
#include "server/errors/errors.h"

namespace palimpsest {
namespace {

absl::Status NoSuchModel(const std::string& id) {
  return WithReason(
      WithResource(absl::NotFoundError(absl::StrCat("models/", id, " is not loaded here; ListModels says which are")),
                   "palimpsest.dev/Model", absl::StrCat("models/", id)),
      "MODEL_NOT_FOUND");
}

absl::Status InFront(const absl::Status& status, const std::string& what) {
  return absl::Status(status.code(), absl::StrCat(what, ": ", status.message()));
}

// Loading copies the weights, and the system ends a process that takes more than there is.
absl::Status CheckMemory(const std::string& folder) {
  const std::optional<int64_t> available = AvailableMemory();
  int64_t needed = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".safetensors") needed += static_cast<int64_t>(it->file_size(error));
  }
  if (!available.has_value() || needed <= *available) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the weights in ", folder, " take ", needed, " bytes, and ",
                                                   *available, " are available; unload a model, or give the server ",
                                                   "more memory"));
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
  const char* const products = model.math() == LinearMath::kBF16 ? ", bf16 products)" : ")";
  if (const Device* const device = model.device(); device != nullptr) {
    info.backend = absl::StrCat("cuda (", device->info().name, ", device ", device->info().index, products);
  } else {
    info.backend =
        absl::StrCat("cpu (", SimdTargetName(), ", ", threads, threads == 1 ? " thread" : " threads", products);
  }
  return info;
}

// Adds what only grows.
void AddCounters(const EngineStats& from, EngineStats& to) {
  to.prompt_tokens += from.prompt_tokens;
  to.generated_tokens += from.generated_tokens;
  to.cached_tokens += from.cached_tokens;
  to.quarantined += from.quarantined;
  to.wasted_tokens += from.wasted_tokens;
  to.iterations += from.iterations;
  to.minimum_bytes += from.minimum_bytes;
  to.minimum_flops += from.minimum_flops;
  to.recorded_passes += from.recorded_passes;
  to.direct_passes += from.direct_passes;
  to.device_wait += from.device_wait;
}

}  // namespace

void LogModelLoaded(const ModelInfo& info, absl::Duration took) {
  std::vector<std::pair<std::string, std::string>> values{{"model", info.id}};
  if (!info.version.empty()) values.emplace_back("version", info.version);
  values.insert(values.end(), {{"architecture", info.architecture},
                               {"parameters", absl::StrCat(info.parameter_count)},
                               {"weights", absl::StrCat(info.weight_bytes, " bytes ", info.weight_dtype)},
                               {"slots", absl::StrCat(info.slots, " of ", info.state_bytes, " bytes")},
                               {"backend", info.backend},
                               {"took", absl::FormatDuration(absl::Trunc(took, absl::Milliseconds(1)))}});
  LogEvent("model loaded", values);
}

ModelRef::~ModelRef() {
  if (served_ != nullptr) registry_->Drop(served_);
}

ModelRegistry::ModelRegistry(Options options, Metrics* metrics, SessionStore* sessions, AdmitModel admit)
    : options_(std::move(options)), metrics_(metrics), sessions_(sessions), admit_(std::move(admit)) {}

ModelRegistry::~ModelRegistry() {
  std::map<std::string, std::unique_ptr<ServedModel>> models;
  std::vector<std::unique_ptr<ServedModel>> retiring;
  {
    absl::MutexLock lock(&mu_);
    models.swap(models_);
    retiring.swap(retiring_);
  }
  // Outside the lock: a scrape asks the engine while it holds its own.
  for (auto& [id, served] : models) {
    PALIMPSEST_CHECK(served->references == 0);
    metrics_->RemoveModel(id);
  }
  for (const auto& served : retiring) {
    PALIMPSEST_CHECK(served->references == 0);
    metrics_->RemoveModel(served->info.id);
  }
}

absl::StatusOr<std::unique_ptr<Engine>> ModelRegistry::LoadEngine(const std::string& id, const std::string& folder,
                                                                  ServedModel& made) const {
  PALIMPSEST_RETURN_IF_ERROR(CheckMemory(folder));
  ModelOptions model_options = options_.model;
  PALIMPSEST_ASSIGN_OR_RETURN(model_options.device, OpenBackend(options_.backend));
  PALIMPSEST_ASSIGN_OR_RETURN(std::unique_ptr<Model> model, Model::Load(folder, model_options));
  PALIMPSEST_ASSIGN_OR_RETURN(made.tokenizer,
                              Tokenizer::Load(folder, model->config().vocabulary, model->config().bos_token));
  PALIMPSEST_ASSIGN_OR_RETURN(ModelMemory needed, MemoryOf(id, *model, options_.engine));
  PALIMPSEST_ASSIGN_OR_RETURN(made.room, admit_(std::move(needed)));
  return Engine::Start(std::move(model), made.tokenizer, options_.engine, metrics_->Observe(id));
}

absl::StatusOr<ModelInfo> ModelRegistry::Load(const std::string& id, const std::string& folder, ModelOrigin origin) {
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

  // Nobody else touches the entry while it loads: Find refuses.
  absl::StatusOr<std::unique_ptr<ServedModel>> made = Make(id, folder);
  if (!made.ok()) {
    absl::MutexLock lock(&mu_);
    models_.erase(id);
    return WithoutRetry(made.status());
  }
  (*made)->info.origin = origin;
  const ModelInfo info = (*made)->info;
  AddToMetrics(info);
  {
    absl::MutexLock lock(&mu_);
    entry->room = std::move((*made)->room);
    entry->tokenizer = std::move((*made)->tokenizer);
    entry->engine = std::move((*made)->engine);
    entry->info = info;
  }
  Report();
  return info;
}

absl::StatusOr<std::unique_ptr<ServedModel>> ModelRegistry::Make(const std::string& id,
                                                                 const std::string& folder) const {
  auto made = std::make_unique<ServedModel>();
  absl::StatusOr<std::unique_ptr<Engine>> engine = absl::InternalError("");
  try {
    engine = LoadEngine(id, folder, *made);
  } catch (const std::exception& error) {
    engine = absl::ResourceExhaustedError(absl::StrCat("loading failed: ", error.what()));
  }
  if (!engine.ok()) return InFront(engine.status(), absl::StrCat("models/", id));
  made->info = Describe(id, **engine);
  made->engine = std::move(*engine);
  return made;
}

absl::StatusOr<ModelInfo> ModelRegistry::Replace(const std::string& id, const std::string& folder,
                                                 const std::string& version, absl::Duration retire_after) {
  {
    absl::MutexLock lock(&mu_);
    const auto found = models_.find(id);
    if (found != models_.end() && found->second->info.origin != ModelOrigin::kRepository) {
      return absl::AlreadyExistsError(
          absl::StrCat("models/", id, " is there already, and not from the repository; ", "rename one of them"));
    }
    if (found == models_.end() && static_cast<int32_t>(models_.size()) >= options_.max_models) {
      return absl::ResourceExhaustedError(absl::StrCat("models/", id, ": the server holds ", models_.size(),
                                                       " models and may hold ", options_.max_models,
                                                       " (--max_models)"));
    }
  }
  PALIMPSEST_ASSIGN_OR_RETURN(std::unique_ptr<ServedModel> made, Make(id, folder));
  made->info.version = version;
  made->info.origin = ModelOrigin::kRepository;
  const ModelInfo info = made->info;
  int32_t retiring = 0;
  {
    absl::MutexLock lock(&mu_);
    std::unique_ptr<ServedModel>& place = models_[id];
    if (place != nullptr && place->info.origin != ModelOrigin::kRepository) {  // LoadModel took the name meanwhile
      return absl::AlreadyExistsError(absl::StrCat("models/", id, " is there already, and not from the repository"));
    }
    std::swap(place, made);
    if (made != nullptr) Retire(std::move(made), SteadyNow() + retire_after);
    retiring = RetiringOf(id);
  }
  AddToMetrics(info);
  metrics_->SetRetiring(id, retiring);
  Report();
  return info;
}

void ModelRegistry::Retire(const std::string& id, absl::Duration retire_after) {
  int32_t retiring = 0;
  {
    absl::MutexLock lock(&mu_);
    const auto found = models_.find(id);
    if (found == models_.end()) return;
    std::unique_ptr<ServedModel> served = std::move(found->second);
    models_.erase(found);
    Retire(std::move(served), SteadyNow() + retire_after);
    retiring = RetiringOf(id);
  }
  metrics_->SetRetiring(id, retiring);
  Report();
}

void ModelRegistry::Retire(std::unique_ptr<ServedModel> served, absl::Time by) {
  served->retire_by = by;
  retiring_.push_back(std::move(served));
}

int32_t ModelRegistry::RetiringOf(const std::string& id) const {
  return static_cast<int32_t>(
      std::count_if(retiring_.begin(), retiring_.end(), [&id](const auto& served) { return served->info.id == id; }));
}

void ModelRegistry::DropRetired(absl::Time now) {
  std::vector<std::unique_ptr<ServedModel>> gone;
  std::map<std::string, int32_t> left;
  std::vector<std::string> nameless;
  {
    absl::MutexLock lock(&mu_);
    for (auto it = retiring_.begin(); it != retiring_.end();) {
      ServedModel& served = **it;
      const auto ready = models_.find(served.info.id);
      const bool same = ready != models_.end() && ready->second->info.fingerprint == served.info.fingerprint;
      const bool needed = !same && sessions_->HasStatesOf(served.info.id, served.info.fingerprint);
      // A call that still runs may leave a state of this version behind, so it is waited for even if none needs it now.
      const bool over = now >= served.retire_by;
      if (over) served.info.condition = ModelCondition::kUnloading;
      if (served.references > 0 || (needed && !over)) {
        ++it;
        continue;
      }
      AddCounters(served.engine->stats(), gone_[served.info.id]);
      gone.push_back(std::move(*it));
      it = retiring_.erase(it);
    }
    for (const auto& served : gone) {
      left[served->info.id] = RetiringOf(served->info.id);
      if (models_.count(served->info.id) == 0) nameless.push_back(served->info.id);
    }
  }
  for (const auto& served : gone) {
    LogEvent("model version gone", {{"model", served->info.id}, {"version", served->info.version}});
  }
  for (const auto& [id, count] : left) metrics_->SetRetiring(id, count);
  for (const std::string& id : nameless) {
    if (left[id] == 0) metrics_->RemoveModel(id);
  }
}  // and the engines end here, outside the lock

EngineStats ModelRegistry::StatsOf(const std::string& id) const {
  absl::MutexLock lock(&mu_);
  EngineStats stats;
  if (const auto found = models_.find(id); found != models_.end() && found->second->engine != nullptr) {
    stats = found->second->engine->stats();
  }
  for (const auto& served : retiring_) {
    if (served->info.id != id) continue;
    const EngineStats retiring = served->engine->stats();
    AddCounters(retiring, stats);
    // Its free slots are nobody's to take.
    stats.slots += retiring.slots_used;
    stats.slots_used += retiring.slots_used;
    stats.running += retiring.running;
    stats.waiting += retiring.waiting;
  }
  if (const auto found = gone_.find(id); found != gone_.end()) AddCounters(found->second, stats);
  return stats;
}

bool ModelRegistry::AnyReady() const {
  absl::MutexLock lock(&mu_);
  return std::ranges::any_of(models_,
                             [](const auto& entry) { return entry.second->info.condition == ModelCondition::kReady; });
}

bool ModelRegistry::AnyDeviceFailed() const {
  absl::MutexLock lock(&mu_);
  const auto failed = [](const ServedModel& served) {
    return served.engine != nullptr && served.engine->device_failed();
  };
  return std::ranges::any_of(models_, [&](const auto& entry) { return failed(*entry.second); }) ||
         std::ranges::any_of(retiring_, [&](const auto& entry) { return failed(*entry); });
}

void ModelRegistry::AddToMetrics(const ModelInfo& info) {
  metrics_->AddModel({info.id, info.architecture, info.weight_dtype, info.backend, info.parameter_count,
                      info.weight_bytes, info.state_bytes},
                     [this, id = info.id] { return StatsOf(id); });
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
    if (found->second->info.origin == ModelOrigin::kFlag) {
      return WithReason(absl::FailedPreconditionError(absl::StrCat("models/", id, " was named by --model when the ",
                                                                   "server was started; it goes when the server is ",
                                                                   "started without it")),
                        "MODEL_OF_FLAG");
    }
    if (found->second->info.origin == ModelOrigin::kRepository) {
      return WithReason(absl::FailedPreconditionError(absl::StrCat("models/", id, " comes from the server's ",
                                                                   "--model_repository; take its folder out there")),
                        "MODEL_OF_REPOSITORY");
    }
    entry = found->second.get();
    entry->info.condition = ModelCondition::kUnloading;
  }
  Report();
  {
    absl::MutexLock lock(&mu_);
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
    gone_.erase(id);
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

absl::StatusOr<ModelRef> ModelRegistry::Find(const std::string& id, const std::string& fingerprint) {
  if (fingerprint.empty()) return Find(id);
  {
    absl::MutexLock lock(&mu_);
    const auto ready = models_.find(id);
    const bool matches = ready != models_.end() && ready->second->info.condition == ModelCondition::kReady &&
                         ready->second->info.fingerprint == fingerprint;
    if (matches) return Refer(*ready->second);
    for (const auto& served : retiring_) {
      if (served->info.id == id && served->info.fingerprint == fingerprint &&
          served->info.condition == ModelCondition::kReady) {
        return Refer(*served);
      }
    }
  }
  PALIMPSEST_RETURN_IF_ERROR(Find(id).status());
  return WithReason(absl::FailedPreconditionError(absl::StrCat(
                        "the state is of an earlier version of models/", id,
                        ", which is not served any more; begin a new session, or ",
                        "keep the state by CreateSnapshot and DownloadSnapshot for a server that has that version")),
                    "MODEL_REPLACED");
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
                                       " models; accepted: one of those that ListModels lists, as models/{id}"));
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
    for (const auto& entry : retiring_) references.push_back(Refer(*entry));
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
    return WithReason(absl::PermissionDeniedError(absl::StrCat("path ", DoubleQuoted(relative),
                                                               " leads out of the server's --model_root; "
                                                               "accepted: a folder below it")),
                      "PATH_OUTSIDE_ROOT");
  };
  const std::filesystem::path path(relative);
  if (path.is_absolute() || std::find(path.begin(), path.end(), "..") != path.end()) return outside();
  std::error_code error;
  const std::filesystem::path root = std::filesystem::canonical(options_.root, error);
  if (error) {
    return absl::FailedPreconditionError(
        absl::StrCat("the server's --model_root is not there any more: ", error.message()));
  }
  const std::filesystem::path folder = std::filesystem::canonical(root / path, error);
  const absl::StatusCode code = ErrnoCode(error.default_error_condition().value());
  if (error && code != absl::StatusCode::kNotFound) {
    return ErrnoStatus(error, absl::StrCat("path ", DoubleQuoted(relative), " below the server's --model_root"));
  }
  if (error || !std::filesystem::is_directory(folder, error)) {
    return WithReason(absl::NotFoundError(absl::StrCat("path ", DoubleQuoted(relative), " is not a folder below the ",
                                                       "server's --model_root")),
                      "PATH_NOT_FOUND");
  }
  // Links are followed by now: what counts is where they led.
  const auto [end_of_root, unused] = std::mismatch(root.begin(), root.end(), folder.begin(), folder.end());
  if (end_of_root != root.end()) return outside();
  return folder.string();
}

}  // namespace palimpsest
