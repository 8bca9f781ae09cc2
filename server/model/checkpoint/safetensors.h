// Weight files in the safetensors format, one or several, memory-mapped and checked before anything is believed.
//
//   u64 N (little endian) | header: N bytes of JSON | data
//   header: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {...}}
//
// Offsets count from the start of the data; the tensors cover it without gap or overlap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/common/dtype.h"
#include "server/model/checkpoint/mapped_file.h"

namespace palimpsest {

// A tensor in memory that somebody else owns. The data need not be aligned to its type.
struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;

  int64_t elements() const;
  int64_t bytes() const { return elements() * SizeOf(dtype); }
};
using TensorMap = std::map<std::string, TensorView, std::less<>>;

// "[256, 32]".
std::string ShapeString(const std::vector<int64_t>& shape);

// Limits on what a header may make us build.
struct SafetensorsLimits {
  static constexpr int64_t kMaxHeaderBytes = 16 << 20;
  static constexpr int64_t kMaxTensors = 65536;
  static constexpr int64_t kMaxNameBytes = 256;
  static constexpr int64_t kMaxRank = 8;
};

// The tensors of a file whose contents are `file`; they point into it. `where` names the file in messages.
// DATA_LOSS: truncated, longer than its tensors, or the header is damaged.  INVALID_ARGUMENT: an element type that is
// not read here (F32, BF16, F16, I32 and I64 are), a name given twice, tensors that overlap, a limit exceeded.
absl::StatusOr<TensorMap> ParseSafetensors(std::string_view file, const std::string& where);

// INVALID_ARGUMENT, with the cure, if these are the bytes of a Git LFS pointer, which stands for a file.
absl::Status CheckIsNoPointer(std::string_view bytes, const std::string& where);

// INVALID_ARGUMENT, with the cure, if this is a file where the folder of a checkpoint is expected.
absl::Status CheckIsFolder(const std::string& path);

// The weight files of a folder: `model.safetensors`, or else the shards that `model.safetensors.index.json` lists.
class WeightFiles {
 public:
  // As ParseSafetensors, and  NOT_FOUND: neither is there (the message says what is, and how to convert it), or a shard
  // is missing.  INVALID_ARGUMENT: the index and the shards contradict each other, or the index names a file outside
  // the folder.
  static absl::StatusOr<WeightFiles> Open(const std::string& folder);
  // One file of any name.
  static absl::StatusOr<WeightFiles> OpenFile(const std::string& path);

  const TensorMap& tensors() const { return tensors_; }
  // DATA_LOSS: a file was changed in place since it was opened (MappedFile::CheckUnchanged). To be asked before what
  // was made of the tensors is used.
  absl::Status CheckUnchanged() const;

 private:
  absl::Status Add(const std::string& path, TensorMap* added);

  std::vector<MappedFile> files_;
  TensorMap tensors_;
};

}  // namespace palimpsest
