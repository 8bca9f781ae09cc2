#include "server/model/testing/paper_golden.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/check.h"
#include "server/model/checkpoint/safetensors.h"

namespace palimpsest::testing {
namespace {

template <typename T>
std::vector<T> Values(const TensorMap& tensors, const std::string& name) {
  const TensorView& tensor = tensors.at(name);
  std::vector<T> values(tensor.elements());
  PALIMPSEST_CHECK(tensor.bytes() == std::ssize(values) * static_cast<int64_t>(sizeof(T)));
  std::memcpy(values.data(), tensor.data, values.size() * sizeof(T));
  return values;
}

}  // namespace

std::vector<PaperGolden> PaperGoldens(const std::string& source_folder) {
  std::vector<PaperGolden> goldens;
  for (const auto& entry : std::filesystem::directory_iterator(source_folder + "/tests/golden_paper")) {
    if (!entry.is_directory()) continue;
    const auto file = WeightFiles::OpenFile(entry.path() / "golden.safetensors");
    PALIMPSEST_CHECK(file.ok());
    PaperGolden golden;
    golden.name = entry.path().filename();
    golden.folder = entry.path();
    golden.tokens = Values<int32_t>(file->tensors(), "tokens");
    golden.next_logprob = Values<float>(file->tensors(), "next_logprob");
    golden.segment = Values<int32_t>(file->tensors(), "segment").at(0);
    goldens.push_back(std::move(golden));
  }
  std::ranges::sort(goldens, {}, &PaperGolden::name);
  return goldens;
}

}  // namespace palimpsest::testing
