// Passes over one row of logits, vectorised; what sampling.cc is built from. Every sum has one order.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/common/host_device.h"

namespace palimpsest {

// Values per partial sum of ExpSum.
inline constexpr int64_t kExpBlock = 256;

bool AllFinite(std::span<const float> values);

// The lowest index of the greatest value. `values` is not empty and finite.
int32_t IndexOfMax(std::span<const float> values);

// Sum of weight(x) = e^((x - max) * scale) over the values, to a relative error of 1e-6; a weight below `least` counts
// as zero. Writes each weight to `weights` and the sum of each kExpBlock of them to `block_sums`, where those are not
// null.
double ExpSum(std::span<const float> values, float max, float scale, float least, float* weights, double* block_sums);

// Orders values from the greatest down, and equal ones by index, as one descending integer.
using RankKey = uint64_t;
PALIMPSEST_HOST_DEVICE inline RankKey RankKeyOf(float value, int32_t index) {
  const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);  // makes -0 into 0
  const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return RankKey{ascending} << 32 | ~static_cast<uint32_t>(index);
}
PALIMPSEST_HOST_DEVICE inline int32_t IndexOf(RankKey key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }

// Fills `keys` with those of all values >= threshold, in ascending order of index.
void CollectAtLeast(std::span<const float> values, float threshold, std::vector<RankKey>& keys);

// Fills `keys` with those of the `count` first in rank, in no order. `maxima` is scratch.
void CollectTop(std::span<const float> values, int64_t count, std::vector<float>& maxima, std::vector<RankKey>& keys);

}  // namespace palimpsest
