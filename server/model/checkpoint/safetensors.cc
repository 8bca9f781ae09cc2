#include "server/model/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/numeric/int128.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/quote.h"
#include "server/json/json.h"

namespace palimpsest {
namespace {

using nlohmann::json;

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxFileBytes = int64_t{1} << 40;
constexpr int64_t kMaxIndexBytes = 16 << 20;
constexpr size_t kMaxShards = 1024;

struct NamedType {
  std::string_view name;
  DType dtype;
};
constexpr NamedType kTypes[] = {
    {"F32", DType::kF32}, {"BF16", DType::kBF16}, {"F16", DType::kF16}, {"I32", DType::kI32}, {"I64", DType::kI64}};

// Where a tensor's bytes are, counted from the start of the data.
struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;
  const std::string* name = nullptr;
};

template <typename... Parts>
absl::Status DataLoss(const std::string& where, const Parts&... parts) {
  return absl::DataLossError(absl::StrCat(where, ": ", parts...));
}

template <typename... Parts>
absl::Status Invalid(const std::string& where, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", parts...));
}

absl::StatusOr<json> ParseHeader(std::string_view file, const std::string& where) {
  if (static_cast<int64_t>(file.size()) < kLengthBytes) {
    return DataLoss(where, "has ", file.size(), " bytes, a safetensors file has at least ", kLengthBytes);
  }
  uint64_t length = 0;
  std::memcpy(&length, file.data(), kLengthBytes);
  if (length > SafetensorsLimits::kMaxHeaderBytes) {
    return DataLoss(where, "its first 8 bytes say that the header has ", length, " bytes, at most ",
                    SafetensorsLimits::kMaxHeaderBytes, " are read; is it a safetensors file?");
  }
  if (length > file.size() - kLengthBytes) {
    return DataLoss(where, "truncated: the header ends at byte ", length + kLengthBytes, ", the file has ",
                    file.size());
  }
  absl::StatusOr<json> header = ParseJsonObject(file.substr(kLengthBytes, length), absl::StrCat(where, ": header"),
                                                {.max_bytes = SafetensorsLimits::kMaxHeaderBytes, .max_depth = 4});
  if (!header.ok()) return absl::DataLossError(header.status().message());
  return header;
}

// One entry of the header, believed only as far as it agrees with itself; the extent is checked against the file later.
absl::StatusOr<TensorView> ParseEntry(const json& entry, const std::string& where, Extent& extent) {
  if (!entry.is_object()) return DataLoss(where, "its header entry is not an object");
  for (const auto& [key, value] : entry.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return DataLoss(where, "its header entry has an unknown key ", Quoted(key));
    }
  }
  const auto dtype = entry.find("dtype"), shape = entry.find("shape"), offsets = entry.find("data_offsets");
  if (dtype == entry.end() || !dtype->is_string()) return DataLoss(where, "its dtype is missing or not a string");
  const auto& type_name = dtype->get_ref<const std::string&>();
  const auto* type = std::ranges::find(kTypes, type_name, &NamedType::name);
  if (type == std::end(kTypes)) {
    return Invalid(where, "element type ", Quoted(type_name), " is not supported; F32, BF16 and F16 are");
  }

  TensorView tensor{.dtype = type->dtype, .shape = {}, .data = nullptr};
  if (shape == entry.end() || !shape->is_array()) return DataLoss(where, "its shape is missing or not a list");
  if (static_cast<int64_t>(shape->size()) > SafetensorsLimits::kMaxRank) {
    return Invalid(where, "has ", shape->size(), " dimensions, at most ", SafetensorsLimits::kMaxRank, " are read");
  }
  absl::uint128 bytes = SizeOf(tensor.dtype);
  for (const json& dim : *shape) {
    if (!dim.is_number_unsigned()) return DataLoss(where, "its shape has a dimension that is no natural number");
    const auto size = dim.get<uint64_t>();
    if (size > static_cast<uint64_t>(kMaxFileBytes)) return DataLoss(where, "its shape has a dimension of ", size);
    bytes *= size;
    if (bytes > static_cast<uint64_t>(kMaxFileBytes)) return DataLoss(where, "its shape is larger than any file");
    tensor.shape.push_back(static_cast<int64_t>(size));
  }

  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return DataLoss(where, "its data_offsets are missing or not two natural numbers");
  }
  extent.begin = (*offsets)[0].get<uint64_t>();
  extent.end = (*offsets)[1].get<uint64_t>();
  if (extent.end < extent.begin || extent.end - extent.begin != bytes) {
    return DataLoss(where, "its shape ", ShapeString(tensor.shape), " of ", type_name, " takes ",
                    static_cast<uint64_t>(bytes), " bytes, its data_offsets are [", extent.begin, ", ", extent.end,
                    "]");
  }
  return tensor;
}

// The tensors lie one behind the other and end where the file ends.
absl::Status CheckCoverage(std::vector<Extent>& extents, uint64_t data_bytes, const std::string& where) {
  std::ranges::sort(
      extents, [](const Extent& a, const Extent& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  uint64_t covered = 0;
  for (const Extent& extent : extents) {
    if (extent.end > data_bytes) {
      return DataLoss(where, "truncated: tensor ", Quoted(*extent.name), " ends at byte ", extent.end,
                      " of the data, the file has ", data_bytes);
    }
    if (extent.begin < covered) {
      return Invalid(where, "tensor ", Quoted(*extent.name), " begins at byte ", extent.begin,
                     " of the data, inside the tensor before it, which ends at ", covered);
    }
    if (extent.begin > covered) {
      return Invalid(where, "bytes ", covered, " to ", extent.begin, " of the data, before tensor ",
                     Quoted(*extent.name), ", belong to no tensor");
    }
    covered = extent.end;
  }
  if (covered != data_bytes) {
    return DataLoss(where, "has ", data_bytes, " bytes of data, its tensors end at ", covered);
  }
  return absl::OkStatus();
}

bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name.size() <= 255 && name[0] != '.' &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos && name.ends_with(".safetensors");
}

// name of tensor -> file, as the index says.
absl::StatusOr<std::map<std::string, std::string>> ParseIndex(std::string_view text, const std::string& where) {
  absl::StatusOr<json> index = ParseJsonObject(text, where, {.max_bytes = kMaxIndexBytes, .max_depth = 4});
  if (!index.ok()) return index.status();
  const auto weight_map = index->find("weight_map");
  if (weight_map == index->end() || !weight_map->is_object() || weight_map->empty()) {
    return Invalid(where, "'weight_map' is missing, empty or not an object");
  }
  std::map<std::string, std::string> file_of;
  for (const auto& [name, file] : weight_map->items()) {
    if (!file.is_string()) return Invalid(where, "weight_map: ", Quoted(name), " is not mapped to a file name");
    const auto& file_name = file.get_ref<const std::string&>();
    if (!IsPlainFileName(file_name)) {
      return Invalid(where, "weight_map: ", Quoted(name), " is mapped to ", Quoted(file_name),
                     "; expected the name of a .safetensors file in the same folder, without a path");
    }
    file_of.emplace(name, file_name);
  }
  return file_of;
}

// What to do about a file of weights that is not read, by its name; empty: it is none.
std::string HowToConvert(const std::string& name) {
  constexpr struct {
    std::string_view suffix;
    const char* cure;
  } kOthers[] = {
      {".gguf", " is llama.cpp's form; the model's folder as it was before it was converted is read"},
      {".bin", " holds Python pickles; write it again with save_pretrained(FOLDER, safe_serialization=True)"},
      {".pth", " holds Python pickles; write its tensors with safetensors.torch.save_file"},
      {".pt", " holds Python pickles; write its tensors with safetensors.torch.save_file"},
      {".safetensors", " is not the name that is looked for; call it model.safetensors"},
  };
  for (const auto& other : kOthers) {
    if (name.ends_with(other.suffix)) return absl::StrCat("; ", Quoted(name), other.cure);
  }
  return "";
}

std::string OtherWeightsIn(const std::string& folder) {
  std::set<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    names.insert(entry.path().filename().string());
  }
  for (const std::string& name : names) {
    if (const std::string cure = HowToConvert(name); !cure.empty()) return cure;
  }
  return "";
}

}  // namespace

int64_t TensorView::elements() const {
  int64_t count = 1;
  for (int64_t dim : shape) count *= dim;
  return count;
}

std::string ShapeString(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::Status CheckIsNoPointer(std::string_view bytes, const std::string& where) {
  if (!bytes.starts_with("version https://git-lfs.github.com/spec/")) return absl::OkStatus();
  return Invalid(where, "is a Git LFS pointer and not the file that it stands for; fetch that with `git lfs pull`");
}

absl::Status CheckIsFolder(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return absl::OkStatus();
  return Invalid(path, "is a file; expected the folder of a checkpoint, with config.json and model.safetensors",
                 HowToConvert(std::filesystem::path(path).filename().string()));
}

absl::StatusOr<TensorMap> ParseSafetensors(std::string_view file, const std::string& where) {
  if (absl::Status status = CheckIsNoPointer(file, where); !status.ok()) return status;
  absl::StatusOr<json> header = ParseHeader(file, where);
  if (!header.ok()) return header.status();
  if (static_cast<int64_t>(header->size()) > SafetensorsLimits::kMaxTensors) {
    return Invalid(where, "has ", header->size(), " tensors, at most ", SafetensorsLimits::kMaxTensors, " are read");
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), kLengthBytes);
  const std::string_view data = file.substr(kLengthBytes + header_bytes);

  TensorMap tensors;
  std::vector<Extent> extents;
  for (const auto& [name, entry] : header->items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) return DataLoss(where, "its __metadata__ is not an object");
      continue;
    }
    if (name.empty() || static_cast<int64_t>(name.size()) > SafetensorsLimits::kMaxNameBytes) {
      return Invalid(where, "a tensor's name has ", name.size(), " bytes, expected 1 to ",
                     SafetensorsLimits::kMaxNameBytes);
    }
    Extent extent;
    absl::StatusOr<TensorView> tensor = ParseEntry(entry, absl::StrCat(where, ": tensor ", Quoted(name)), extent);
    if (!tensor.ok()) return tensor.status();
    const auto added = tensors.emplace(name, *std::move(tensor)).first;
    extent.name = &added->first;
    extents.push_back(extent);
  }
  if (absl::Status status = CheckCoverage(extents, data.size(), where); !status.ok()) return status;
  for (const Extent& extent : extents) {
    tensors.find(*extent.name)->second.data = reinterpret_cast<const std::byte*>(data.data()) + extent.begin;
  }
  return tensors;
}

absl::Status WeightFiles::Add(const std::string& path, TensorMap* added) {
  absl::StatusOr<MappedFile> file = MappedFile::Open(path, kMaxFileBytes);
  if (!file.ok()) return file.status();
  absl::StatusOr<TensorMap> tensors = ParseSafetensors(file->bytes(), path);
  // A header that changed while it was parsed may say anything.
  if (absl::Status status = file->CheckUnchanged(); !status.ok()) return status;
  if (!tensors.ok()) return tensors.status();
  files_.push_back(*std::move(file));
  *added = *std::move(tensors);
  return absl::OkStatus();
}

absl::Status WeightFiles::CheckUnchanged() const {
  for (const MappedFile& file : files_) {
    if (absl::Status status = file.CheckUnchanged(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<WeightFiles> WeightFiles::OpenFile(const std::string& path) {
  WeightFiles files;
  if (absl::Status status = files.Add(path, &files.tensors_); !status.ok()) return status;
  return files;
}

absl::StatusOr<WeightFiles> WeightFiles::Open(const std::string& folder) {
  absl::StatusOr<WeightFiles> single = OpenFile(folder + "/model.safetensors");
  if (!absl::IsNotFound(single.status())) return single;

  const std::string index_path = folder + "/model.safetensors.index.json";
  absl::StatusOr<std::string> text = ReadFile(index_path, kMaxIndexBytes);
  if (absl::IsNotFound(text.status())) {
    return absl::NotFoundError(absl::StrCat(folder, ": has neither model.safetensors nor model.safetensors.index.json",
                                            OtherWeightsIn(folder)));
  }
  if (!text.ok()) return text.status();
  absl::StatusOr<std::map<std::string, std::string>> file_of = ParseIndex(*text, index_path);
  if (!file_of.ok()) return file_of.status();
  std::set<std::string> shards;
  for (const auto& [name, file] : *file_of) shards.insert(file);
  if (shards.size() > kMaxShards) {
    return Invalid(index_path, "lists ", shards.size(), " files, at most ", kMaxShards, " are read");
  }

  WeightFiles files;
  for (const std::string& shard : shards) {
    TensorMap added;
    if (absl::Status status = files.Add(absl::StrCat(folder, "/", shard), &added); !status.ok()) return status;
    for (const auto& [name, tensor] : added) {
      const auto listed = file_of->find(name);
      if (listed == file_of->end() || listed->second != shard) {
        return Invalid(index_path, "tensor ", Quoted(name), " is in ", shard, ", but weight_map ",
                       listed == file_of->end() ? "does not list it" : "says " + listed->second);
      }
    }
    files.tensors_.merge(added);
  }
  for (const auto& [name, file] : *file_of) {
    if (!files.tensors_.contains(name)) {
      return Invalid(index_path, "weight_map says that tensor ", Quoted(name), " is in ", file, ", but it is not");
    }
  }
  return files;
}

}  // namespace palimpsest
