#include "kernels/linear/linear.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "base/round_up.h"
#include "kernels/common/device.h"

namespace palimpsest {
namespace {

// Outputs of a matrix instruction's tile, when the other half of its 16 rows of W belongs to their gates.
constexpr int64_t kSwigluOutputs = 8;
constexpr int64_t kMostTileOutputs = 128;

// Values of a row that is normalised, which a block keeps in shared memory (96 KiB).
constexpr int64_t kMostNormed = 24 << 10;

// Puts row `o` of the whole matrix, `in` values from `source`, into its lane of its panel.
void PackRow(DType dtype, const void* source, int64_t o, int64_t in, std::byte* data) {
  constexpr int64_t kPanel = PackedLinear::kPanel;
  const int64_t lane = o % kPanel;
  if (dtype == DType::kBF16) {
    BF16* const panel = reinterpret_cast<BF16*>(data) + o / kPanel * kPanel * RoundUp(in, 2);
    const BF16* const row = static_cast<const BF16*>(source);
    for (int64_t i = 0; i < in; ++i) panel[(i / 2 * kPanel + lane) * 2 + i % 2] = row[i];
    return;
  }
  float* const panel = reinterpret_cast<float*>(data) + o / kPanel * kPanel * in;
  if (dtype == DType::kF32) {
    const float* const row = static_cast<const float*>(source);
    for (int64_t i = 0; i < in; ++i) panel[i * kPanel + lane] = row[i];
  } else {
    const uint16_t* const row = static_cast<const uint16_t*>(source);
    for (int64_t i = 0; i < in; ++i) panel[i * kPanel + lane] = FloatFromF16(row[i]);
  }
}

// Rows for a device: through the host's memory, where they are widened and filled up.
AlignedBytes PackRows(std::span<const PackedLinear::Source> sources, int64_t in, int64_t stride, int64_t out,
                      Device& device) {
  const DType dtype = sources.front().dtype;
  const int64_t row_bytes = stride * (dtype == DType::kBF16 ? 2 : 4);
  AlignedBytes rows(out * row_bytes), packed(out * row_bytes, &device);
  if (packed.data() == nullptr) return packed;
  std::byte* to = rows.data();
  for (const PackedLinear::Source& source : sources) {
    const auto* from = static_cast<const std::byte*>(source.weights);
    for (int64_t o = 0; o < source.out; ++o, to += row_bytes, from += in * SizeOf(dtype)) {
      if (dtype == DType::kF16) {
        const auto* const halves = reinterpret_cast<const uint16_t*>(from);
        std::transform(halves, halves + in, reinterpret_cast<float*>(to), FloatFromF16);
      } else {
        std::memcpy(to, from, static_cast<size_t>(in * SizeOf(dtype)));
      }
    }
  }
  device.CopyToDevice(packed.data(), rows.data(), rows.size());
  return packed;
}

}  // namespace

PackedLinear PackedLinear::Pack(DType dtype, const void* weights, int64_t out, int64_t in, Device* device) {
  const Source source = {dtype, weights, out};
  return PackStacked({&source, 1}, in, device);
}

PackedLinear PackedLinear::PackStacked(std::span<const Source> sources, int64_t in, Device* device) {
  PALIMPSEST_CHECK(!sources.empty() && in >= 1);
  const DType dtype = sources.front().dtype;
  PALIMPSEST_CHECK(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16);
  PackedLinear packed;
  packed.in_ = in;
  packed.dtype_ = dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
  for (const Source& source : sources) {
    PALIMPSEST_CHECK(source.dtype == dtype && source.out >= 0);
    packed.out_ += source.out;
  }
  if (device != nullptr) {
    packed.row_stride_ = RoundUp(in * SizeOf(packed.dtype_), 16) / SizeOf(packed.dtype_);
    packed.data_ = PackRows(sources, in, packed.row_stride_, packed.out_, *device);
    return packed;
  }
  const int64_t padded_in = dtype == DType::kBF16 ? RoundUp(in, 2) : in;
  packed.data_ = AlignedBytes(RoundUp(packed.out_, kPanel) * padded_in * SizeOf(packed.dtype_));
  int64_t o = 0;
  for (const Source& source : sources) {
    const auto* row = static_cast<const std::byte*>(source.weights);
    for (int64_t i = 0; i < source.out; ++i, ++o, row += in * SizeOf(dtype)) {
      PackRow(dtype, row, o, in, packed.data_.data());
    }
  }
  return packed;
}

bool Folds(const PackedLinear& weights, LinearMath math) {
  return weights.on_device() && math == LinearMath::kBF16 && weights.in() <= kMostNormed;
}

bool FoldsSwiglu(const PackedLinear& weights) {
  // A tile's rows of both halves are found by 32-bit offsets from its first.
  const bool near =
      (weights.out() / 2 + kMostTileOutputs) * weights.row_stride() <= std::numeric_limits<int32_t>::max();
  return near && weights.out() % (2 * kSwigluOutputs) == 0;
}

}  // namespace palimpsest
