// Inside fast_weight: one row on the processor (README.md). Compiled once per SIMD target.
#if defined(PALIMPSEST_KERNELS_FAST_WEIGHT_STEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PALIMPSEST_KERNELS_FAST_WEIGHT_STEP_INL_H_
#undef PALIMPSEST_KERNELS_FAST_WEIGHT_STEP_INL_H_
#else
#define PALIMPSEST_KERNELS_FAST_WEIGHT_STEP_INL_H_
#endif

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/fast_weight/fast_weight_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {
namespace {

// A step works on a few rows of the state at once and prefetches, in the order of memory, the rows that many groups
// ahead: several interleaved rows hide from the processor that memory is read from end to end.
constexpr int kPrefetchGroups = 2;

// What a step makes of its gates.
struct StepGates {
  float beta = 1.0f;
  float decay = 1.0f;
  const float* channel_decay = nullptr;  // [K]
};

// Which of a row's writes. Between them, what is written stays in the first-level cache, as floats.
enum class Write : uint8_t { kOnly, kFirst, kInner, kLast };

template <bool kWhole, typename T>
HWY_INLINE V LoadColumns(const T* from, int64_t lanes) {
  if constexpr (kWhole) return LoadAll(from);
  return LoadPart(from, lanes);
}

template <bool kWhole, typename T>
HWY_INLINE void StoreColumns(V value, T* to, int64_t lanes) {
  if constexpr (kWhole) return StoreAll(value, to);
  StorePart(value, to, lanes);
}

// kRows rows of the state from row v on: read, corrected, written and read out while they are in the first-level cache.
// `between`: [kRows, K], what the writes of a row hand on.
template <UpdateRule kRule, typename T, int kRows, Write kWrite>
HWY_INLINE void StepRows(const HeadRows& head, const StepGates& gates, int32_t v, float* HWY_RESTRICT between) {
  constexpr int kLine = 64 / sizeof(T);
  constexpr bool kLoadsState = kWrite == Write::kOnly || kWrite == Write::kFirst;
  constexpr bool kStoresState = kWrite == Write::kOnly || kWrite == Write::kLast;  // and reads it out
  const int32_t K = head.key_dim;
  const int32_t whole = K / kLanes * kLanes;
  T* HWY_RESTRICT S = head.state_as<T>() + int64_t{v} * K;
  if constexpr (kLoadsState) {
    for (int32_t i = 0; i < kRows * K; i += kLine) hwy::Prefetch(S + kPrefetchGroups * kRows * K + i);
  }
  const auto load = [&](auto is_whole, int32_t at, int32_t lanes) HWY_ATTR {
    constexpr bool kWhole = decltype(is_whole)::value;
    if constexpr (kLoadsState) {
      return LoadColumns<kWhole>(S + at, lanes);
    } else {
      return LoadColumns<kWhole>(between + at, lanes);
    }
  };
  V u[kRows], read[kRows], out[kRows];
  for (int r = 0; r < kRows; ++r) {
    u[r] = hn::Set(d, head.v[v + r]);
    read[r] = out[r] = hn::Zero(d);
  }
  const auto read_columns = [&](auto is_whole, int32_t c) HWY_ATTR {
    constexpr bool kWhole = decltype(is_whole)::value;
    const int32_t lanes = K - c;
    V with = LoadColumns<kWhole>(kRule == UpdateRule::kLowRank ? head.remove + c : head.k + c, lanes);
    if constexpr (kRule == UpdateRule::kChannelGatedDelta) {
      with = hn::Mul(with, LoadColumns<kWhole>(gates.channel_decay + c, lanes));
    }
    for (int r = 0; r < kRows; ++r) read[r] = hn::MulAdd(load(is_whole, r * K + c, lanes), with, read[r]);
  };
  if constexpr (Corrects(kRule) || kRule == UpdateRule::kLowRank) {
    for (int32_t c = 0; c < whole; c += kLanes) read_columns(std::true_type(), c);
    if (whole < K) read_columns(std::false_type(), whole);
    for (int r = 0; r < kRows; ++r) {
      read[r] = hn::SumOfLanes(d, read[r]);
      if constexpr (DecaysHeads(kRule)) read[r] = hn::Mul(hn::Set(d, gates.decay), read[r]);
      if constexpr (Corrects(kRule)) u[r] = hn::Mul(hn::Set(d, gates.beta), hn::Sub(u[r], read[r]));
    }
  }
  const auto write_columns = [&](auto is_whole, int32_t c) HWY_ATTR {
    constexpr bool kWhole = decltype(is_whole)::value;
    const int32_t lanes = K - c;
    const V k = LoadColumns<kWhole>(head.k + c, lanes);
    const V q = kStoresState ? LoadColumns<kWhole>(head.q + c, lanes) : k;
    V keep = hn::Set(d, gates.decay), insert = k;
    if constexpr (DecaysChannels(kRule)) keep = LoadColumns<kWhole>(gates.channel_decay + c, lanes);
    if constexpr (kRule == UpdateRule::kLowRank) insert = LoadColumns<kWhole>(head.insert + c, lanes);
    for (int r = 0; r < kRows; ++r) {
      const int32_t at = r * K + c;
      V written = load(is_whole, at, lanes);
      if constexpr (Decays(kRule)) written = hn::Mul(keep, written);
      if constexpr (kRule == UpdateRule::kLowRank) written = hn::MulAdd(read[r], insert, written);
      written = hn::MulAdd(u[r], k, written);
      if constexpr (kStoresState) {
        StoreColumns<kWhole>(written, S + at, lanes);
        out[r] = hn::MulAdd(written, q, out[r]);
      } else {
        StoreColumns<kWhole>(written, between + at, lanes);
      }
    }
  };
  for (int32_t c = 0; c < whole; c += kLanes) write_columns(std::true_type(), c);
  if (whole < K) write_columns(std::false_type(), whole);
  if constexpr (kStoresState) {
    for (int r = 0; r < kRows; ++r) head.out[v + r] = hn::GetLane(hn::SumOfLanes(d, out[r]));
  }
}

// A row's writes after the first.
template <UpdateRule kRule, typename T, int kRows>
HWY_NOINLINE void StepRowsAgain(const HeadRows& head, int32_t v, float* between) {
  for (int32_t j = 1; j < head.sub_steps; ++j) {
    const HeadRows write = head.SubStep(j);
    StepGates gates;
    if constexpr (Corrects(kRule)) gates.beta = write.beta[0];
    if (write.sub_steps > 1) {
      StepRows<kRule, T, kRows, Write::kInner>(write, gates, v, between);
    } else {
      StepRows<kRule, T, kRows, Write::kLast>(write, gates, v, between);
    }
  }
}

constexpr int kStepRows = 4;

// Decays by channel, and what the writes of a row hand on.
constexpr int64_t StepScratchFloats(int32_t key_dim) { return (1 + kStepRows) * int64_t{key_dim}; }

// The first row of `head`, for rows [v_begin, v_end) of its state.
template <UpdateRule kRule, typename T>
void Step(const HeadRows& head, int32_t v_begin, int32_t v_end, float* scratch) {
  StepGates gates;
  if constexpr (Corrects(kRule)) gates.beta = head.beta[0];
  if constexpr (DecaysHeads(kRule)) gates.decay = std::exp(head.log_decay[0]);
  if constexpr (DecaysChannels(kRule)) {
    Exponentiate(head.log_decay, head.key_dim, scratch);
    gates.channel_decay = scratch;
  }
  float* const between = scratch + head.key_dim;
  int32_t v = v_begin;
  if (head.sub_steps == 1) {
    for (; v + kStepRows <= v_end; v += kStepRows) {
      StepRows<kRule, T, kStepRows, Write::kOnly>(head, gates, v, between);
    }
    for (; v < v_end; ++v) StepRows<kRule, T, 1, Write::kOnly>(head, gates, v, between);
  } else if constexpr (HasSubSteps(kRule)) {
    constexpr UpdateRule kAgain = WithoutDecay(kRule);
    for (; v + kStepRows <= v_end; v += kStepRows) {
      StepRows<kRule, T, kStepRows, Write::kFirst>(head, gates, v, between);
      StepRowsAgain<kAgain, T, kStepRows>(head, v, between);
    }
    for (; v < v_end; ++v) {
      StepRows<kRule, T, 1, Write::kFirst>(head, gates, v, between);
      StepRowsAgain<kAgain, T, 1>(head, v, between);
    }
  }
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#endif
