#include "kernels/linear/linear.h"

#include <algorithm>
#include <cstring>

#include "kernels/common/check.h"

namespace palimpsest {
namespace {

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

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

}  // namespace

PackedLinear PackedLinear::Pack(DType dtype, const void* weights, int64_t out, int64_t in) {
  const Source source = {dtype, weights, out};
  return PackStacked({&source, 1}, in);
}

PackedLinear PackedLinear::PackStacked(std::span<const Source> sources, int64_t in) {
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

}  // namespace palimpsest
