#include "server/model/loading/tensor_taker.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace palimpsest {
namespace {

bool IsOfAllLayers(const TensorName& name) {
  return std::string_view(name.pattern).find("{}") == std::string_view::npos;
}

std::vector<int64_t> WholeShape(std::vector<int64_t> shape, Rows rows) {
  shape[0] *= rows.parts;
  return shape;
}

}  // namespace

TensorTaker::TensorTaker(const TensorMap& tensors, TensorTable& table, const Architecture& architecture)
    : tensors_(tensors), table_(table), architecture_(architecture) {
  for (const auto names : {architecture.names, architecture.shared_names}) {
    for (const TensorName& name : names) {
      if (name.role != Role::kIgnored) continue;
      for (size_t i = 0; i < kMaxLayers; ++i) {
        if (const std::string text = WithIndex(name, i); tensors.contains(text)) table.Ignore(text);
      }
    }
  }
}

const TensorView* TensorTaker::Find(Role role, size_t index) const {
  for (const TensorName& name : architecture_.NamesOf(role)) {
    if (const auto found = tensors_.find(WithIndex(name, index)); found != tensors_.end()) return &found->second;
  }
  return nullptr;
}

void TensorTaker::Ignore(Role role, size_t index) { table_.Ignore(architecture_.NameOf(role, index)); }

const TensorView* TensorTaker::Take(Role role, size_t index, const std::vector<int64_t>& shape) {
  const std::vector<TensorName> names = architecture_.NamesOf(role);
  // The first that fits; if none does, the first that is there and that nobody has, which will be said not to fit.
  const TensorName* chosen = nullptr;
  for (const TensorName& name : names) {
    const std::string text = WithIndex(name, index);
    const auto found = tensors_.find(text);
    if (found == tensors_.end() || (table_.taken().contains(text) && !in_parts_.contains(text))) continue;
    if (found->second.shape == WholeShape(shape, name.rows)) {
      chosen = &name;
      break;
    }
    if (chosen == nullptr && name.rows.parts == 1) chosen = &name;
  }
  const TensorName& name = chosen == nullptr ? names.front() : *chosen;
  const std::string text = WithIndex(name, index);
  if (name.rows.parts > 1) return TakeRows(text, name.rows, shape);
  if (table_.taken().contains(text)) {
    Fail(absl::StrCat("tensor '", text, "' stands for another one that is missing, but is needed for itself"));
    return nullptr;
  }
  return table_.Take(text, shape);
}

const TensorView* TensorTaker::TakeRows(const std::string& name, Rows rows, const std::vector<int64_t>& shape) {
  const auto [found, is_new] = in_parts_.try_emplace(name, rows.parts, nullptr);
  auto& [left, tensor] = found->second;
  if (is_new) tensor = table_.Take(name, WholeShape(shape, rows));
  --left;
  return Slice(tensor, rows.part * shape[0], (rows.part + 1) * shape[0]);
}

TensorsByRole TensorTaker::Take(std::span<const TensorSpec> specs, size_t index) {
  TensorsByRole taken;
  for (const TensorSpec& spec : specs) {
    const TensorName name = architecture_.NamesOf(spec.role).front();
    if (!IsOfAllLayers(name)) {
      taken.Put(spec.role, Take(spec.role, index, spec.shape));
      continue;
    }
    const auto [found, is_new] = of_all_layers_.try_emplace(name.pattern, nullptr);
    if (is_new) found->second = Take(spec.role, index, spec.shape);
    taken.Put(spec.role, found->second);
  }
  return taken;
}

const TensorView* TensorTaker::Slice(const TensorView* tensor, int64_t begin, int64_t end) {
  if (tensor == nullptr) return nullptr;
  const int64_t row_bytes = tensor->bytes() / tensor->shape[0];
  TensorView& slice = slices_.emplace_back(*tensor);
  slice.data += begin * row_bytes;
  slice.shape[0] = end - begin;
  return &slice;
}

void TensorTaker::Finish() {
  for (const auto& [name, parts] : in_parts_) {
    const auto& [left, tensor] = parts;
    if (left == 0 || tensor == nullptr) continue;
    Fail(absl::StrCat("tensor '", name, "' has shape ", ShapeString(tensor->shape),
                      ": it holds two matrices, of which one is in the file once more"));
  }
}

}  // namespace palimpsest
