#include "server/model/testing/safetensors_writer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/check.h"

namespace palimpsest::testing {
namespace {

// Nearest binary16, ties to even. Finite values of at most 65504 only.
uint16_t F16FromFloat(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  PALIMPSEST_CHECK(magnitude <= 65504.0f);
  if (magnitude < 0x1p-14f) return sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f));
  int exponent = 0;
  const float fraction = std::frexp(magnitude, &exponent);  // in [0.5, 1)
  const int mantissa = static_cast<int>(std::nearbyint(fraction * 2048.0f));
  return sign | static_cast<uint16_t>(((exponent + 13) << 10) + mantissa);  // a carry moves into the exponent
}

std::string_view HeaderName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF16:
      return "F16";
    case DType::kI32:
      return "I32";
    case DType::kI64:
      return "I64";
  }
  return "?";
}

}  // namespace

TensorToWrite MakeTensor(std::string name, DType dtype, std::vector<int64_t> shape, std::span<const float> values) {
  TensorToWrite tensor{.name = std::move(name), .dtype = dtype, .shape = std::move(shape), .bytes = {}};
  int64_t elements = 1;
  for (int64_t dim : tensor.shape) elements *= dim;
  PALIMPSEST_CHECK(elements == static_cast<int64_t>(values.size()));
  tensor.bytes.resize(values.size() * SizeOf(dtype));
  if (values.empty()) return tensor;
  if (dtype == DType::kF32) {
    std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
    return tensor;
  }
  PALIMPSEST_CHECK(dtype == DType::kBF16 || dtype == DType::kF16);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = dtype == DType::kBF16 ? BF16FromFloat(values[i]) : F16FromFloat(values[i]);
    std::memcpy(tensor.bytes.data() + 2 * i, &half, 2);
  }
  return tensor;
}

std::string SerializeSafetensors(std::span<const TensorToWrite> tensors) {
  nlohmann::json header = nlohmann::json::object();
  header["__metadata__"] = {{"format", "pt"}};
  uint64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    header[tensor.name] = {{"dtype", HeaderName(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.bytes.size()}}};
    offset += tensor.bytes.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  file.reserve(8 + length + offset);
  file += text;
  for (const TensorToWrite& tensor : tensors) file += tensor.bytes;
  return file;
}

void WriteFile(const std::string& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  PALIMPSEST_CHECK(file.good());
}

void WriteShards(const std::string& folder, std::span<const TensorToWrite> tensors, int shards) {
  if (shards == 1) return WriteFile(folder + "/model.safetensors", SerializeSafetensors(tensors));
  nlohmann::json weight_map = nlohmann::json::object();
  int64_t total = 0;
  for (int shard = 0; shard < shards; ++shard) {
    const std::string file = absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, shards);
    std::vector<TensorToWrite> own;
    for (size_t i = shard; i < tensors.size(); i += shards) {
      own.push_back(tensors[i]);
      weight_map[tensors[i].name] = file;
      total += static_cast<int64_t>(tensors[i].bytes.size());
    }
    WriteFile(folder + "/" + file, SerializeSafetensors(own));
  }
  const nlohmann::json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  WriteFile(folder + "/model.safetensors.index.json", index.dump(2));
}

}  // namespace palimpsest::testing
