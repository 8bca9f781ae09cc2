#include "server/model/checkpoint/tensor_table.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/quote.h"
#include "server/json/json.h"

namespace palimpsest {
namespace {

// Levenshtein distance. Names are at most SafetensorsLimits::kMaxNameBytes long.
int EditDistance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i) + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const int substituted = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

std::string Nearest(std::string_view name, const std::vector<std::string>& candidates) {
  std::string best;
  int best_distance = static_cast<int>(name.size()) / 2 + 1;  // farther than this is no hint
  for (const std::string& candidate : candidates) {
    const int distance = EditDistance(name, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace

TensorTable::TensorTable(const TensorMap& tensors, std::string where) : tensors_(tensors), where_(std::move(where)) {}

void TensorTable::Fail(const std::string& message) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": ", message));
}

const TensorView* TensorTable::Take(const std::string& name, std::vector<int64_t> shape) {
  const auto found = tensors_.find(name);
  PALIMPSEST_CHECK(taken_.emplace(name, found == tensors_.end() ? nullptr : &found->second).second);
  if (found == tensors_.end()) {
    if (missing_.empty()) {
      missing_ = name;
      missing_shape_ = ShapeString(shape);
    }
    return nullptr;
  }
  const TensorView& tensor = found->second;
  if (tensor.shape != shape) {
    Fail(absl::StrCat("tensor '", name, "' has shape ", ShapeString(tensor.shape), ", config.json asks for ",
                      ShapeString(shape)));
    return nullptr;
  }
  if (tensor.dtype == DType::kI32 || tensor.dtype == DType::kI64) {
    Fail(absl::StrCat("tensor '", name, "' is of type ", std::string(NameOf(tensor.dtype)),
                      ", a weight is f32, bf16 or f16"));
    return nullptr;
  }
  return &tensor;
}

std::vector<std::string> TensorTable::Unknown() const {
  std::vector<std::string> unknown;
  for (const auto& [name, tensor] : tensors_) {
    if (!taken_.contains(name) && !ignored_.contains(name)) unknown.push_back(name);
  }
  return unknown;
}

absl::Status TensorTable::Finish() const {
  if (!status_.ok()) return status_;
  const std::vector<std::string> unknown = Unknown();
  if (!missing_.empty()) {
    const std::string nearest = Nearest(missing_, unknown);
    return absl::InvalidArgumentError(absl::StrCat(
        where_, ": tensor '", missing_, "' ", missing_shape_, " is missing",
        nearest.empty() ? "" : absl::StrCat("; there is ", Quoted(nearest), ", which config.json does not ask for")));
  }
  if (!unknown.empty()) {
    std::vector<std::string> expected;
    for (const auto& [name, tensor] : taken_) expected.push_back(name);
    const std::string nearest = Nearest(unknown[0], expected);
    return absl::InvalidArgumentError(
        absl::StrCat(where_, ": unknown tensor ", Quoted(unknown[0]), ", one of ", unknown.size(),
                     " that config.json does not ask for",
                     nearest.empty() ? "" : absl::StrCat("; the nearest name that it asks for is '", nearest, "'")));
  }
  return absl::OkStatus();
}

}  // namespace palimpsest
