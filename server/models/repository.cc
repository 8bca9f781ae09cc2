#include "server/models/repository.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/errno_status.h"
#include "base/log.h"
#include "base/resource_id.h"
#include "base/status_macros.h"
#include "base/steady_clock.h"
#include "server/errors/errors.h"
#include "server/metrics/metrics.h"
#include "server/models/registry.h"

namespace palimpsest {
namespace {

constexpr absl::Duration kSettle = absl::Seconds(2);
constexpr absl::Duration kLookAgain = absl::Milliseconds(500);  // at what was not settled
constexpr size_t kMaxDigits = 18;

// The entries of a folder, in order; nothing that begins with a dot. Nothing if it cannot be read.
absl::StatusOr<std::vector<std::string>> Entries(const std::string& folder) {
  std::error_code error;
  std::vector<std::string> names;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    if (name[0] != '.') names.push_back(std::move(name));
  }
  if (error) return ErrnoStatus(error, absl::StrCat(folder, " cannot be read"));
  std::sort(names.begin(), names.end());
  return names;
}

bool IsFolder(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_directory(path, error);
}

bool IsCheckpoint(const std::string& folder) {
  std::error_code error;
  return std::filesystem::exists(folder + "/config.json", error);
}

bool IsVersion(const std::string& name) {
  return !name.empty() && name.size() <= kMaxDigits && (name == "0" || name[0] != '0') &&
         std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// Those that a checkpoint is read from; a README may change at will.
bool IsPartOfCheckpoint(const std::string& file) {
  for (const char* extension : {".json", ".safetensors", ".model", ".txt"}) {
    if (absl::EndsWith(file, extension)) return true;
  }
  return false;
}

RepositoryVersion Describe(std::string version, const std::string& folder, absl::Time now) {
  RepositoryVersion made{.version = std::move(version), .folder = folder, .signature = "", .settled = true};
  const absl::StatusOr<std::vector<std::string>> files = Entries(folder);
  if (!files.ok()) return made;
  for (const std::string& file : *files) {
    struct stat info {};
    if (!IsPartOfCheckpoint(file) || stat((folder + "/" + file).c_str(), &info) != 0) continue;
    absl::StrAppend(&made.signature, file, " ", info.st_size, " ", info.st_ino, " ", info.st_mtim.tv_sec, ".",
                    info.st_mtim.tv_nsec, "\n");
    // Not the time of modification, which a copy may set to what it was elsewhere.
    if (absl::TimeFromTimespec(info.st_ctim) + kSettle > now) made.settled = false;
  }
  return made;
}

}  // namespace

absl::StatusOr<std::map<std::string, std::vector<RepositoryVersion>>> ScanRepository(const std::string& folder,
                                                                                     absl::Time now,
                                                                                     std::set<std::string>* ignored) {
  PALIMPSEST_ASSIGN_OR_RETURN(const std::vector<std::string> names, Entries(folder));
  std::map<std::string, std::vector<RepositoryVersion>> found;
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(folder, "/", name);
    if (!IsFolder(path)) continue;
    if (!IsResourceId(name, /*dots=*/true)) {
      ignored->insert(name);
      continue;
    }
    std::vector<RepositoryVersion> versions;
    if (IsCheckpoint(path)) {
      versions.push_back(Describe("", path, now));
    } else if (const absl::StatusOr<std::vector<std::string>> inside = Entries(path); inside.ok()) {
      for (const std::string& version : *inside) {
        const std::string checkpoint = absl::StrCat(path, "/", version);
        if (IsVersion(version) && IsCheckpoint(checkpoint)) versions.push_back(Describe(version, checkpoint, now));
      }
      std::sort(versions.begin(), versions.end(), [](const RepositoryVersion& a, const RepositoryVersion& b) {
        return std::pair(a.version.size(), a.version) > std::pair(b.version.size(), b.version);  // as numbers
      });
    }
    if (!versions.empty()) found[name] = std::move(versions);
  }
  return found;
}

ModelRepository::ModelRepository(ModelRepositoryOptions options, ModelRegistry* registry, Metrics* metrics)
    : options_(std::move(options)), registry_(registry), metrics_(metrics) {}

ModelRepository::~ModelRepository() {
  Stop();
  if (thread_.joinable()) thread_.join();
}

absl::Status ModelRepository::Start() {
  if (options_.folder.empty()) return absl::OkStatus();
  Look(/*first=*/true);
  if (registry_->List().empty()) {
    if (!first_failure_.ok()) return first_failure_;
    return absl::FailedPreconditionError(
        absl::StrCat("--model_repository is ", options_.folder, ", which has no model; accepted: a folder with ",
                     "NAME/config.json or NAME/VERSION/config.json, NAME of characters [a-z0-9.-]"));
  }
  if (options_.poll > absl::ZeroDuration()) thread_ = std::thread([this] { Watch(); });
  return absl::OkStatus();
}

void ModelRepository::Stop() {
  if (!stop_.HasBeenNotified()) stop_.Notify();
}

void ModelRepository::Watch() {
  bool settled = true;
  while (!stop_.WaitForNotificationWithTimeout(settled ? options_.poll : std::min(options_.poll, kLookAgain))) {
    settled = Look(/*first=*/false);
  }
}

bool ModelRepository::Look(bool first) {
  std::set<std::string> ignored;
  const auto found = ScanRepository(options_.folder, absl::Now(), &ignored);
  if (!found.ok()) {
    // A mount that is away for a moment is no reason to take the models from their users.
    if (std::exchange(readable_, false)) {
      LogWarning("model repository cannot be read; what is served stays",
                 {{"error", std::string(found.status().message())}});
    }
    return true;
  }
  readable_ = true;
  for (const std::string& name : ignored) {
    if (ignored_.insert(name).second) {
      LogWarning("a folder of the model repository is not served: its name cannot be a model's",
                 {{"folder", name}, {"accepted", "1 to 63 characters [a-z0-9.-], beginning with a letter"}});
    }
  }
  bool settled = true;
  for (const auto& [name, versions] : *found) {
    if (!Update(name, versions, first)) settled = false;
  }
  RetireMissing(*found);
  return settled;
}

bool ModelRepository::Update(const std::string& name, const std::vector<RepositoryVersion>& versions, bool first) {
  const auto served = served_.find(name);
  std::map<std::string, std::string>& failed = failed_[name];
  bool settled = true;
  for (const RepositoryVersion& version : versions) {
    if (stop_.HasBeenNotified()) return true;
    if (served != served_.end() && served->second.folder == version.folder &&
        served->second.signature == version.signature) {
      break;
    }
    if (const auto known = failed.find(version.folder); known != failed.end() && known->second == version.signature) {
      continue;
    }
    // At the start there is nothing better to serve.
    if (!version.settled && !first) {
      settled = false;
      continue;
    }
    const absl::Time begin = SteadyNow();
    const absl::StatusOr<ModelInfo> model =
        registry_->Replace(name, version.folder, version.version, options_.retire_after);
    metrics_->CountRepositoryLoad(name, CodeName(model.status().code()));
    if (model.ok()) {
      LogModelLoaded(*model, SteadyNow() - begin);
      failed.erase(version.folder);
      served_[name] = version;
      break;
    }
    if (first_failure_.ok()) first_failure_ = model.status();
    const bool again = absl::IsResourceExhausted(model.status());
    LogWarning("a version of the model repository does not load; what is served stays",
               {{"model", name},
                {"folder", version.folder},
                {"error", std::string(model.status().message())},
                {"tried again", again ? "at the next look" : "when its files change"}});
    if (!again) failed[version.folder] = version.signature;
  }
  return settled;
}

void ModelRepository::RetireMissing(const std::map<std::string, std::vector<RepositoryVersion>>& found) {
  std::set<std::string> missing;
  for (auto it = served_.begin(); it != served_.end();) {
    const std::string& name = it->first;
    if (found.count(name) > 0) {
      ++it;
    } else if (missing_.count(name) == 0) {
      missing.insert(name);  // perhaps it is between two renames: the next look decides
      ++it;
    } else {
      LogEvent("model retired: its folder is gone", {{"model", name}});
      registry_->Retire(name, options_.retire_after);
      failed_.erase(name);
      it = served_.erase(it);
    }
  }
  missing_ = std::move(missing);
}

}  // namespace palimpsest
