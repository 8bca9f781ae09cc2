// A weight file: every byte of every tensor of one that is accepted is in the file, and belongs to that tensor alone.
#include "server/model/checkpoint/safetensors.h"

#include <memory>

#include "base/check.h"
#include "server/model/checkpoint/tensor_table.h"
#include "tests/fuzz/fuzz.h"

namespace palimpsest::fuzz {

void Run(std::string_view input) {
  // A copy on the heap, so that a sanitizer sees the file's end.
  const auto file = std::make_unique<char[]>(input.size());
  std::copy(input.begin(), input.end(), file.get());
  const std::string_view bytes(file.get(), input.size());
  const absl::StatusOr<TensorMap> tensors = ParseSafetensors(bytes, "file");
  if (!tensors.ok()) {
    PALIMPSEST_CHECK(absl::IsInvalidArgument(tensors.status()) || absl::IsDataLoss(tensors.status()));
    return;
  }
  int64_t covered = 0;
  uint32_t sum = 0;
  TensorTable table(*tensors, "file");
  for (const auto& [name, tensor] : *tensors) {
    covered += tensor.bytes();
    for (int64_t i = 0; i < tensor.bytes(); ++i) sum += static_cast<uint8_t>(tensor.data[i]);
    table.Take(name, tensor.shape);
  }
  PALIMPSEST_CHECK(covered <= std::ssize(bytes) && sum <= 255u * covered);
  const absl::Status status = table.Finish();
  PALIMPSEST_CHECK(status.ok() || absl::IsInvalidArgument(status));
  // Names that are not there, near ones and far ones, are told of.
  table.Take("model.layers.0.attn.q_proj.weigh", {4, 4});
  PALIMPSEST_CHECK(tensors->contains("model.layers.0.attn.q_proj.weigh") || absl::IsInvalidArgument(table.Finish()));
}

}  // namespace palimpsest::fuzz
