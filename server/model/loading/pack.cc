#include "server/model/loading/pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace palimpsest {
namespace {

// Tensors in a file may lie at any byte; the arithmetic reads whole elements. Copies only where it must.
class AlignedTensor {
 public:
  explicit AlignedTensor(const TensorView& tensor) : data_(tensor.data) {
    if (reinterpret_cast<uintptr_t>(tensor.data) % SizeOf(tensor.dtype) == 0) return;
    copy_ = AlignedBytes(tensor.bytes());
    std::memcpy(copy_.data(), tensor.data, tensor.bytes());
    data_ = copy_.data();
  }
  const std::byte* data() const { return data_; }

 private:
  AlignedBytes copy_;
  const std::byte* data_;
};

float ElementAt(const TensorView& tensor, int64_t i) {
  if (tensor.dtype == DType::kF32) {
    float value;
    std::memcpy(&value, tensor.data + 4 * i, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, tensor.data + 2 * i, 2);
  return tensor.dtype == DType::kBF16 ? FloatFromBF16(bits) : FloatFromF16(bits);
}

}  // namespace

AlignedArray<float> Floats(const TensorView& tensor) {
  AlignedArray<float> floats(tensor.elements());
  for (int64_t i = 0; i < floats.size(); ++i) floats[i] = ElementAt(tensor, i);
  return floats;
}

AlignedArray<float> Floats(const TensorView* tensor) {
  return tensor == nullptr ? AlignedArray<float>() : Floats(*tensor);
}

AlignedArray<float> Concatenated(std::span<const TensorView* const> tensors) {
  int64_t size = 0;
  for (const TensorView* tensor : tensors) size += tensor->elements();
  AlignedArray<float> floats(size);
  int64_t at = 0;
  for (const TensorView* tensor : tensors) {
    for (int64_t i = 0; i < tensor->elements(); ++i) floats[at++] = ElementAt(*tensor, i);
  }
  return floats;
}

AlignedArray<float> TransposedConvs(std::span<const TensorView* const> convs) {
  int64_t channels = 0;
  for (const TensorView* conv : convs) channels += conv->shape[0];
  const int64_t width = convs[0]->shape[2];
  AlignedArray<float> floats(width * channels);
  int64_t base = 0;
  for (const TensorView* conv : convs) {
    for (int64_t c = 0; c < conv->shape[0]; ++c) {
      for (int64_t j = 0; j < width; ++j) floats[j * channels + base + c] = ElementAt(*conv, c * width + j);
    }
    base += conv->shape[0];
  }
  return floats;
}

AlignedArray<float> Transposed(const TensorView& tensor) {
  const int64_t rows = tensor.shape[0], columns = tensor.shape[1];
  AlignedArray<float> transposed(rows * columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) transposed[c * rows + r] = ElementAt(tensor, r * columns + c);
  }
  return transposed;
}

PackedLinear Pack(std::span<const TensorView* const> tensors, Device* device) {
  const bool alike =
      std::ranges::all_of(tensors, [&](const TensorView* tensor) { return tensor->dtype == tensors[0]->dtype; });
  std::vector<AlignedTensor> aligned;
  std::vector<AlignedArray<float>> widened;
  std::vector<PackedLinear::Source> sources;
  for (const TensorView* tensor : tensors) {
    if (alike) {
      sources.push_back({tensor->dtype, aligned.emplace_back(*tensor).data(), tensor->shape[0]});
    } else {
      sources.push_back({DType::kF32, widened.emplace_back(Floats(*tensor)).data(), tensor->shape[0]});
    }
  }
  return PackedLinear::PackStacked(sources, tensors[0]->shape[1], device);
}

StackedLinear::StackedLinear(const TensorsByRole& tensors, std::initializer_list<Role> roles, Device* device) {
  std::vector<const TensorView*> present;
  int64_t begin = 0;
  for (const Role role : roles) {
    const TensorView* const tensor = tensors.Find(role);
    if (tensor == nullptr) continue;
    PALIMPSEST_CHECK(present.size() < parts_.size());
    parts_[present.size()] = {.role = role, .begin = begin};
    present.push_back(tensor);
    begin += tensor->shape[0];
  }
  matrix_ = Pack(present, device);
}

int64_t StackedLinear::column(Role role) const {
  const auto part = std::ranges::find(parts_, role, &Part::role);
  PALIMPSEST_CHECK(part != parts_.end());
  return part->begin;
}

}  // namespace palimpsest
