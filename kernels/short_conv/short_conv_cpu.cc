#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/common/device.h"
#include "kernels/common/grain.h"
#include "kernels/short_conv/short_conv.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/short_conv/short_conv_cpu.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/common/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {

// Channels [begin, end) of one row. taps[j] is the row that w[j] multiplies.
template <bool kSilu>
void ConvolveRow(const ShortConvParams& p, const float* const* taps, float* y, int64_t begin, int64_t end) {
  if (begin >= end) return;
  ForEachVector(end - begin, [&](size_t i, size_t count) HWY_ATTR {
    const int64_t c = begin + static_cast<int64_t>(i);
    FloatVec sum = p.bias == nullptr ? hn::Zero(FloatTag()) : LoadCount(p.bias + c, count);
    for (int64_t j = 0; j < p.width; ++j) {
      sum = hn::MulAdd(LoadCount(p.weight + j * p.channels + c, count), LoadCount(taps[j] + c, count), sum);
    }
    StoreCount(kSilu ? SiluOf(sum) : sum, y + c, count);
  });
}

void ShortConvChannels(const ShortConvParams& p, int64_t begin, int64_t end) {
  const int64_t linear_end =
      p.activation == ConvActivation::kNone ? end : std::clamp<int64_t>(p.linear_channels, begin, end);
  std::vector<const float*> taps(p.width);
  for (int32_t s = 0; s < p.rows.num_sequences; ++s) {
    const int64_t first = p.rows.row_begin[s];
    const int64_t length = p.rows.length(s);
    const int64_t history = p.width - 1;
    float* tail = history == 0 ? nullptr : p.tail.At(p.rows.slot[s]);
    // Time 0 is the call's first row; the state holds times -history .. -1.
    const auto input = [&](int64_t time) {
      return time < 0 ? tail + (history + time) * p.channels : p.x + (first + time) * p.ldx;
    };
    for (int64_t t = 0; t < length; ++t) {
      for (int64_t j = 0; j < p.width; ++j) taps[j] = input(t - history + j);
      float* y = p.y + (first + t) * p.ldy;
      ConvolveRow<false>(p, taps.data(), y, begin, linear_end);
      ConvolveRow<true>(p, taps.data(), y, linear_end, end);
    }
    // Ascending, so that what is still needed of the tail is not yet overwritten.
    for (int64_t j = 0; length > 0 && j < history; ++j) {
      std::memcpy(tail + j * p.channels + begin, input(length - history + j) + begin, (end - begin) * sizeof(float));
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace palimpsest {

HWY_EXPORT(ShortConvChannels);

// Threads split the channels, so that one long prompt and many single rows spread alike.
void ShortConv(const ExecContext& ctx, const ShortConvParams& params) {
  if (ctx.device != nullptr) return ctx.device->Run(params);
  PALIMPSEST_CHECK(params.width >= 1);
  constexpr int64_t kCacheLineFloats = 16;
  const int64_t grain =
      (RowsPerTask(params.rows.num_rows()) + kCacheLineFloats - 1) / kCacheLineFloats * kCacheLineFloats;
  ctx.pool->ParallelFor(params.channels, grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(ShortConvChannels)(params, begin, end);
  });
}

}  // namespace palimpsest
#endif
