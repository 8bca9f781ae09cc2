// Inside fast_weight: vectors of the state and of what meets it. Compiled once per SIMD target.
#if defined(PALIMPSEST_KERNELS_FAST_WEIGHT_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PALIMPSEST_KERNELS_FAST_WEIGHT_VECTORS_INL_H_
#undef PALIMPSEST_KERNELS_FAST_WEIGHT_VECTORS_INL_H_
#else
#define PALIMPSEST_KERNELS_FAST_WEIGHT_VECTORS_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "kernels/common/simd_math-inl.h"
#include "kernels/fast_weight/fast_weight_head.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;
constexpr D d;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
constexpr int kChunk = FastWeightParams::kChunk;

// kLanes values at `from`; bfloat16 is the upper half of a float.
HWY_INLINE V LoadAll(const float* from) { return hn::LoadU(d, from); }
HWY_INLINE V LoadAll(const BF16* from) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, from))));
}

HWY_INLINE void StoreAll(V value, float* to) { hn::StoreU(value, d, to); }
HWY_INLINE void StoreAll(V value, BF16* to) {
  const hn::Rebind<uint16_t, D> d16;
  hn::StoreU(hn::TruncateTo(d16, hn::ShiftRight<16>(RoundedBits(d, value))), d16, to);
}

// The first `lanes` values at `from`, zero beyond; `lanes` may be anything.
template <typename T>
HWY_INLINE V LoadPart(const T* from, int64_t lanes) {
  if (lanes >= kLanes) return LoadAll(from);
  if (lanes <= 0) return hn::Zero(d);
  if constexpr (std::is_same_v<T, float>) {
    return hn::MaskedLoad(hn::FirstN(d, lanes), d, from);
  } else {
    T values[kLanes] = {};
    std::copy_n(from, lanes, values);
    return LoadAll(values);
  }
}

template <typename T>
HWY_INLINE void StorePart(V value, T* to, int64_t lanes) {
  if (lanes >= kLanes) return StoreAll(value, to);
  if (lanes <= 0) return;
  if constexpr (std::is_same_v<T, float>) {
    hn::BlendedStore(value, hn::FirstN(d, lanes), d, to);
  } else {
    T values[kLanes];
    StoreAll(value, values);
    std::copy_n(values, lanes, to);
  }
}

// exp; NaN stays NaN (Highway's makes it zero).
HWY_INLINE V ExpOf(V x) { return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x)); }

template <typename From, typename To>
HWY_INLINE void Convert(const From* from, int64_t count, To* to) {
  for (int64_t i = 0; i < count; i += kLanes) StorePart(LoadPart(from + i, count - i), to + i, count - i);
}

// to[i] = exp(from[i]), where a logarithm below -10^4 counts as that: it leaves nothing of a float32 either way.
HWY_INLINE void Exponentiate(const float* from, int64_t count, float* to) {
  const V least = hn::Set(d, -1e4f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const V x = LoadPart(from + i, count - i);
    StorePart(ExpOf(hn::IfThenElse(hn::Lt(x, least), least, x)), to + i, count - i);
  }
}

// to[c][r] = from[r][c].
void Transpose(const float* HWY_RESTRICT from, int64_t ldfrom, int64_t rows, int64_t columns, float* HWY_RESTRICT to,
               int64_t ldto) {
  int64_t r = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> d4;
  const int64_t whole = columns / 4 * 4;
  for (; r + 4 <= rows; r += 4) {
    const float* const row = from + r * ldfrom;
    for (int64_t c = 0; c < whole; c += 4) {
      const auto r0 = hn::LoadU(d4, row + c);
      const auto r1 = hn::LoadU(d4, row + ldfrom + c);
      const auto r2 = hn::LoadU(d4, row + 2 * ldfrom + c);
      const auto r3 = hn::LoadU(d4, row + 3 * ldfrom + c);
      const auto low01 = hn::InterleaveLower(d4, r0, r1);
      const auto high01 = hn::InterleaveUpper(d4, r0, r1);
      const auto low23 = hn::InterleaveLower(d4, r2, r3);
      const auto high23 = hn::InterleaveUpper(d4, r2, r3);
      float* const at = to + c * ldto + r;
      hn::StoreU(hn::ConcatLowerLower(d4, low23, low01), d4, at);
      hn::StoreU(hn::ConcatUpperUpper(d4, low23, low01), d4, at + ldto);
      hn::StoreU(hn::ConcatLowerLower(d4, high23, high01), d4, at + 2 * ldto);
      hn::StoreU(hn::ConcatUpperUpper(d4, high23, high01), d4, at + 3 * ldto);
    }
    for (int64_t c = whole; c < columns; ++c) {
      for (int64_t i = 0; i < 4; ++i) to[c * ldto + r + i] = row[i * ldfrom + c];
    }
  }
#endif
  for (; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c * ldto + r] = from[r * ldfrom + c];
  }
}

// Rows of the state with values across the lanes: to[c][r] = stored[r][c] for `width` rows, zeros up to `block` of
// them. `by_rows`: [block, K] floats, for what is not stored as floats.
template <typename T>
HWY_INLINE void LoadTransposed(const T* stored, int32_t K, int32_t width, int32_t block, float* by_rows, float* to) {
  if (width < block) std::fill_n(to, int64_t{K} * block, 0.0f);
  if constexpr (std::is_same_v<T, float>) {
    Transpose(stored, K, width, K, to, block);
  } else {
    Convert(stored, int64_t{width} * K, by_rows);
    Transpose(by_rows, K, width, K, to, block);
  }
}

// The way back.
template <typename T>
HWY_INLINE void StoreTransposed(const float* from, int32_t K, int32_t width, int32_t block, float* by_rows, T* stored) {
  if constexpr (std::is_same_v<T, float>) {
    Transpose(from, block, K, width, stored, K);
  } else {
    Transpose(from, block, K, width, by_rows, K);
    Convert(by_rows, int64_t{width} * K, stored);
  }
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#endif
