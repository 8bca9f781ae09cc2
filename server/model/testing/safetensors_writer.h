// Writes safetensors files for tests and benchmarks.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/common/dtype.h"

namespace palimpsest::testing {

struct TensorToWrite {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::string bytes;  // little endian, as they go into the file
};

// A tensor of `dtype` (f32, bf16, f16) rounded from `values`.
TensorToWrite MakeTensor(std::string name, DType dtype, std::vector<int64_t> shape, std::span<const float> values);

// The file's bytes: header padded to 8, then the tensors in the order given.
std::string SerializeSafetensors(std::span<const TensorToWrite> tensors);

// Writes or replaces a file. Aborts when it cannot: the folder is the test's own.
void WriteFile(const std::string& path, std::string_view bytes);

// model.safetensors (shards == 1), or `shards` files and model.safetensors.index.json, tensors dealt out in turn.
void WriteShards(const std::string& folder, std::span<const TensorToWrite> tensors, int shards);

}  // namespace palimpsest::testing
