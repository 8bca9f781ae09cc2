// What elementwise ops share: partial vectors, fixed-order sums, exp and its kin. Compiled once per SIMD target.
//
// A NaN or infinity that goes in comes out as one where the function has no finite value there, so that a sequence
// whose numbers stopped being finite is found by its logits.

#include <cstddef>
#include <cstring>

#if defined(PALIMPSEST_KERNELS_COMMON_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PALIMPSEST_KERNELS_COMMON_SIMD_MATH_INL_H_
#undef PALIMPSEST_KERNELS_COMMON_SIMD_MATH_INL_H_
#else
#define PALIMPSEST_KERNELS_COMMON_SIMD_MATH_INL_H_
#endif

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using FloatVec = hn::Vec<FloatTag>;

// BF16FromFloat on lanes, the result in the upper half of each; the lower half is zero.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> RoundedBits(D, hn::Vec<D> x) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, x);
  const auto tie = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(tie, hn::Set(du, 0x7FFF)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000));
  const auto either = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), quiet, rounded);
  return hn::And(either, hn::Set(du, 0xFFFF0000u));
}

// The `count` <= lanes values at p, then zeros. Reads nothing past them.
HWY_INLINE FloatVec LoadCount(const float* p, size_t count) {
  const FloatTag d;
  if (count == hn::Lanes(d)) return hn::LoadU(d, p);
#if HWY_MEM_OPS_MIGHT_FAULT
  HWY_ALIGN float lanes[hn::MaxLanes(d)] = {};
  std::memcpy(lanes, p, count * sizeof(float));
  return hn::Load(d, lanes);
#else
  return hn::MaskedLoad(hn::FirstN(d, count), d, p);
#endif
}

// Writes the first `count` <= lanes values of `v` to p, and nothing past them.
HWY_INLINE void StoreCount(FloatVec v, float* p, size_t count) {
  const FloatTag d;
  if (count == hn::Lanes(d)) return hn::StoreU(v, d, p);
#if HWY_MEM_OPS_MIGHT_FAULT
  HWY_ALIGN float lanes[hn::MaxLanes(d)];
  hn::Store(v, d, lanes);
  std::memcpy(p, lanes, count * sizeof(float));
#else
  hn::BlendedStore(v, hn::FirstN(d, count), d, p);
#endif
}

// Calls body(i, count) for i = 0, lanes, 2 lanes ... below n. `count` is all lanes but in the last call perhaps. A
// lane's bits do not depend on its place, so neither do an element's on where its row was cut.
template <class Body>
HWY_INLINE void ForEachVector(size_t n, Body body) {
  const size_t lanes = hn::Lanes(FloatTag());
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) body(i, lanes);
  if (i < n) body(i, n - i);
}

// Sums what accumulate(sum, i, count) adds to `sum`, whose lanes past `count` it must leave alone. Four partial sums,
// joined in one order: the bits depend on n only.
template <class Accumulate>
HWY_INLINE float SumVectors(size_t n, Accumulate accumulate) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  FloatVec sum0 = hn::Zero(d);
  FloatVec sum1 = hn::Zero(d);
  FloatVec sum2 = hn::Zero(d);
  FloatVec sum3 = hn::Zero(d);
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    sum0 = accumulate(sum0, i, lanes);
    sum1 = accumulate(sum1, i + lanes, lanes);
    sum2 = accumulate(sum2, i + 2 * lanes, lanes);
    sum3 = accumulate(sum3, i + 3 * lanes, lanes);
  }
  for (; i + lanes <= n; i += lanes) sum0 = accumulate(sum0, i, lanes);
  if (i < n) sum1 = accumulate(sum1, i, n - i);
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3))));
}

HWY_INLINE float SumOfSquares(const float* x, size_t n) {
  return SumVectors(n, [x](FloatVec sum, size_t i, size_t count) HWY_ATTR {
    const FloatVec v = LoadCount(x + i, count);
    return hn::MulAdd(v, v, sum);
  });
}

HWY_INLINE float Dot(const float* x, const float* y, size_t n) {
  return SumVectors(n, [x, y](FloatVec sum, size_t i, size_t count)
                           HWY_ATTR { return hn::MulAdd(LoadCount(x + i, count), LoadCount(y + i, count), sum); });
}

HWY_INLINE float SumOf(const float* x, size_t n) {
  return SumVectors(
      n, [x](FloatVec sum, size_t i, size_t count) HWY_ATTR { return hn::Add(sum, LoadCount(x + i, count)); });
}

HWY_INLINE float SumOfSizes(const float* x, size_t n) {
  return SumVectors(
      n, [x](FloatVec sum, size_t i, size_t count) HWY_ATTR { return hn::Add(sum, hn::Abs(LoadCount(x + i, count))); });
}

// e^x to 2 units in the last place. Highway's own turns NaN into 0 and asks for x <= 104.
HWY_INLINE FloatVec ExpOf(FloatVec x) {
  const FloatTag d;
  const FloatVec y = hn::Exp(d, hn::Min(x, hn::Set(d, 104.0f)));
  return hn::IfThenElse(hn::Eq(x, x), y, x);
}

// 1 / (1 + e^-x), in a form that does not overflow.
HWY_INLINE FloatVec SigmoidOf(FloatVec x) {
  const FloatTag d;
  const FloatVec one = hn::Set(d, 1.0f);
  const FloatVec e = ExpOf(hn::Neg(hn::Abs(x)));
  return hn::Div(hn::IfThenElse(hn::Lt(x, hn::Zero(d)), e, one), hn::Add(one, e));
}

// x sigmoid(x)
HWY_INLINE FloatVec SiluOf(FloatVec x) { return hn::Mul(x, SigmoidOf(x)); }

// log(1 + e^x), and x itself above 20, where they differ by 2e-9.
HWY_INLINE FloatVec SoftplusOf(FloatVec x) {
  const FloatTag d;
  const FloatVec limit = hn::Set(d, 20.0f);
  const FloatVec y = hn::Log1p(d, hn::Exp(d, hn::Min(x, limit)));
  return hn::IfThenElse(hn::Le(x, limit), y, x);
}

}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#endif  // PALIMPSEST_KERNELS_COMMON_SIMD_MATH_INL_H_
