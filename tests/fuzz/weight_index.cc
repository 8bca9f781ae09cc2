// model.safetensors.index.json, in a folder that has two shards, "a.safetensors" with the tensors "a" and "b", and
// "c.safetensors" with "c".
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/testing/temporary_folder.h"
#include "server/model/checkpoint/safetensors.h"
#include "server/model/testing/safetensors_writer.h"
#include "tests/fuzz/fuzz.h"

namespace palimpsest::fuzz {
namespace {

const std::string& Folder() {
  static const auto& folder = *[] {
    auto made = std::make_unique<testing::TemporaryFolder>();
    const std::vector<float> values = {1, 2, 3, 4};
    const std::vector<testing::TensorToWrite> first = {testing::MakeTensor("a", DType::kF32, {2, 2}, values),
                                                       testing::MakeTensor("b", DType::kBF16, {4}, values)};
    const std::vector<testing::TensorToWrite> second = {testing::MakeTensor("c", DType::kF16, {1, 4}, values)};
    testing::WriteFile(made->path() + "/a.safetensors", testing::SerializeSafetensors(first));
    testing::WriteFile(made->path() + "/c.safetensors", testing::SerializeSafetensors(second));
    static const std::unique_ptr<testing::TemporaryFolder> kept = std::move(made);
    return kept.get();
  }();
  return folder.path();
}

}  // namespace

void Run(std::string_view input) {
  testing::WriteFile(Folder() + "/model.safetensors.index.json", input);
  const absl::StatusOr<WeightFiles> files = WeightFiles::Open(Folder());
  if (!files.ok()) {
    PALIMPSEST_CHECK(absl::IsInvalidArgument(files.status()) || absl::IsNotFound(files.status()));
    return;
  }
  PALIMPSEST_CHECK(files->tensors().size() <= 3);
  uint32_t sum = 0;
  for (const auto& [name, tensor] : files->tensors()) {
    for (int64_t i = 0; i < tensor.bytes(); ++i) sum += static_cast<uint8_t>(tensor.data[i]);
  }
  PALIMPSEST_CHECK(sum > 0 || files->tensors().empty());
}

}  // namespace palimpsest::fuzz
