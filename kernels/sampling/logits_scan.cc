#include "kernels/sampling/logits_scan.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/sampling/logits_scan.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/common/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {

// x * 0 is zero for a finite x and NaN for any other.
bool ScanAllFinite(const float* values, int64_t n) {
  const float zero = SumVectors(n, [values](FloatVec sum, size_t i, size_t count) HWY_ATTR {
    return hn::MulAdd(LoadCount(values + i, count), hn::Zero(FloatTag()), sum);
  });
  return zero == 0.0f;
}

float ScanMax(const float* values, int64_t n) {
  const FloatTag d;
  FloatVec greatest = hn::Set(d, values[0]);
  ForEachVector(n, [&](size_t i, size_t count) HWY_ATTR {
    const FloatVec v = LoadCount(values + i, count);
    // The zeros after a partial vector are no values.
    greatest = hn::Max(greatest, count == hn::Lanes(d) ? v : hn::IfThenElse(hn::FirstN(d, count), v, greatest));
  });
  return hn::GetLane(hn::MaxOfLanes(d, greatest));
}

void ScanBlockMaxima(const float* values, int64_t n, int64_t block, float* maxima) {
  for (int64_t begin = 0; begin < n; begin += block) *maxima++ = ScanMax(values + begin, std::min(block, n - begin));
}

int64_t ScanFind(const float* values, int64_t n, float value) {
  const FloatTag d;
  const int64_t lanes = hn::Lanes(d);
  const FloatVec wanted = hn::Set(d, value);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const intptr_t lane = hn::FindFirstTrue(d, hn::Eq(hn::LoadU(d, values + i), wanted));
    if (lane >= 0) return i + lane;
  }
  while (i < n && values[i] != value) ++i;
  return i;
}

double ScanExpSum(const float* values, int64_t n, float max, float scale, float least, float* weights,
                  double* block_sums) {
  const FloatTag d;
  const FloatVec maxima = hn::Set(d, max);
  const FloatVec scales = hn::Set(d, scale);
  const FloatVec limits = hn::Set(d, least);
  double total = 0.0;
  for (int64_t begin = 0; begin < n; begin += kExpBlock) {
    const int64_t length = std::min(kExpBlock, n - begin);
    const float sum = SumVectors(length, [&](FloatVec partial, size_t i, size_t count) HWY_ATTR {
      const FloatVec x = LoadCount(values + begin + i, count);
      FloatVec weight = hn::Exp(d, hn::Mul(hn::Sub(x, maxima), scales));
      weight = hn::IfThenElseZero(hn::Ge(weight, limits), weight);
      if (count < hn::Lanes(d)) weight = hn::IfThenElseZero(hn::FirstN(d, count), weight);
      if (weights != nullptr) StoreCount(weight, weights + begin + i, count);
      return hn::Add(partial, weight);
    });
    if (block_sums != nullptr) *block_sums++ = sum;
    total += sum;
  }
  return total;
}

void ScanCollectAtLeast(const float* values, int64_t n, float threshold, std::vector<RankKey>& keys) {
  const FloatTag d;
  const int64_t lanes = hn::Lanes(d);
  const FloatVec limit = hn::Set(d, threshold);
  for (int64_t begin = 0; begin < n; begin += lanes) {
    const int64_t end = std::min(n, begin + lanes);
    if (end - begin == lanes && hn::AllFalse(d, hn::Ge(hn::LoadU(d, values + begin), limit))) continue;
    for (int64_t i = begin; i < end; ++i) {
      if (values[i] >= threshold) keys.push_back(RankKeyOf(values[i], static_cast<int32_t>(i)));
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace palimpsest {

HWY_EXPORT(ScanAllFinite);
HWY_EXPORT(ScanMax);
HWY_EXPORT(ScanBlockMaxima);
HWY_EXPORT(ScanFind);
HWY_EXPORT(ScanExpSum);
HWY_EXPORT(ScanCollectAtLeast);

bool AllFinite(std::span<const float> values) {
  return HWY_DYNAMIC_DISPATCH(ScanAllFinite)(values.data(), values.size());
}

int32_t IndexOfMax(std::span<const float> values) {
  const float max = HWY_DYNAMIC_DISPATCH(ScanMax)(values.data(), values.size());
  return static_cast<int32_t>(HWY_DYNAMIC_DISPATCH(ScanFind)(values.data(), values.size(), max));
}

double ExpSum(std::span<const float> values, float max, float scale, float least, float* weights, double* block_sums) {
  return HWY_DYNAMIC_DISPATCH(ScanExpSum)(values.data(), values.size(), max, scale, least, weights, block_sums);
}

void CollectAtLeast(std::span<const float> values, float threshold, std::vector<RankKey>& keys) {
  keys.clear();
  HWY_DYNAMIC_DISPATCH(ScanCollectAtLeast)(values.data(), values.size(), threshold, keys);
}

void CollectTop(std::span<const float> values, int64_t count, std::vector<float>& maxima, std::vector<RankKey>& keys) {
  // `count` blocks have a maximum of at least the count-th greatest maximum, so `count` values do too: what lies below
  // it is not wanted. With few blocks per wanted value that hardly drops any.
  constexpr int64_t kBlock = 32;
  const int64_t n = values.size();
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  float threshold = std::numeric_limits<float>::lowest();
  if (count < blocks / 2) {
    maxima.resize(blocks);
    HWY_DYNAMIC_DISPATCH(ScanBlockMaxima)(values.data(), n, kBlock, maxima.data());
    std::nth_element(maxima.begin(), maxima.begin() + (count - 1), maxima.end(), std::greater<>());
    threshold = maxima[count - 1];
  }
  CollectAtLeast(values, threshold, keys);
  if (static_cast<int64_t>(keys.size()) <= count) return;
  std::nth_element(keys.begin(), keys.begin() + count, keys.end(), std::greater<>());
  keys.resize(count);
}

}  // namespace palimpsest
#endif
