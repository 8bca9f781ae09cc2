#include "bench/machine.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/time/clock.h"
#include "kernels/common/aligned_buffer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/machine.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sums `count` floats, a multiple of 16 vectors.
float SumOf(const float* data, int64_t count) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto a = hn::Zero(d), b = hn::Zero(d), c = hn::Zero(d), e = hn::Zero(d);
  for (int64_t i = 0; i + 4 * lanes <= count; i += 4 * lanes) {
    a = hn::Add(a, hn::Load(d, data + i));
    b = hn::Add(b, hn::Load(d, data + i + lanes));
    c = hn::Add(c, hn::Load(d, data + i + 2 * lanes));
    e = hn::Add(e, hn::Load(d, data + i + 3 * lanes));
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(a, b), hn::Add(c, e))));
}

// `rounds` rounds of 12 independent multiply-adds; the number of operations goes into `flops`.
float MultiplyAdds(int64_t rounds, double* flops) {
  const hn::ScalableTag<float> d;
  const auto x = hn::Set(d, 0.999f), y = hn::Set(d, 0.001f);
  auto a0 = y, a1 = y, a2 = y, a3 = y, a4 = y, a5 = y, a6 = y, a7 = y, a8 = y, a9 = y, a10 = y, a11 = y;
  for (int64_t i = 0; i < rounds; ++i) {
    a0 = hn::MulAdd(a0, x, y);
    a1 = hn::MulAdd(a1, x, y);
    a2 = hn::MulAdd(a2, x, y);
    a3 = hn::MulAdd(a3, x, y);
    a4 = hn::MulAdd(a4, x, y);
    a5 = hn::MulAdd(a5, x, y);
    a6 = hn::MulAdd(a6, x, y);
    a7 = hn::MulAdd(a7, x, y);
    a8 = hn::MulAdd(a8, x, y);
    a9 = hn::MulAdd(a9, x, y);
    a10 = hn::MulAdd(a10, x, y);
    a11 = hn::MulAdd(a11, x, y);
  }
  *flops = 2.0 * 12 * static_cast<double>(hn::Lanes(d)) * static_cast<double>(rounds);
  const auto s0 = hn::Add(hn::Add(a0, a1), hn::Add(a2, a3));
  const auto s1 = hn::Add(hn::Add(a4, a5), hn::Add(a6, a7));
  const auto s2 = hn::Add(hn::Add(a8, a9), hn::Add(a10, a11));
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, hn::Add(s1, s2))));
}

}  // namespace palimpsest::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace palimpsest {

HWY_EXPORT(SumOf);
HWY_EXPORT(MultiplyAdds);

namespace {

// Keeps the compiler from dropping the work.
void Consume(float value) { asm volatile("" : : "x"(value)); }

template <typename Body>
double BestSeconds(int runs, Body body) {
  double best = 1e9;
  for (int run = 0; run < runs; ++run) {
    const absl::Time start = absl::Now();
    body();
    best = std::min(best, absl::ToDoubleSeconds(absl::Now() - start));
  }
  return best;
}

}  // namespace

Machine MeasureMachine(ThreadPool& pool) {
  constexpr int64_t kBytes = int64_t{512} << 20;  // well above the caches
  constexpr int64_t kFloats = kBytes / static_cast<int64_t>(sizeof(float));
  AlignedArray<float> data(kFloats);
  std::fill(data.span().begin(), data.span().end(), 1.0f);
  Machine machine;
  machine.read_bytes_per_second = kBytes / BestSeconds(8, [&] {
                                    pool.ParallelFor(kFloats, 4096, [&](int64_t begin, int64_t end) {
                                      Consume(HWY_DYNAMIC_DISPATCH(SumOf)(data.data() + begin, end - begin));
                                    });
                                  });
  std::vector<double> flops(pool.size());
  const double seconds = BestSeconds(
      8, [&] { pool.Run([&](int part) { Consume(HWY_DYNAMIC_DISPATCH(MultiplyAdds)(2'000'000, &flops[part])); }); });
  for (double part : flops) machine.f32_flops_per_second += part / seconds;
  return machine;
}

}  // namespace palimpsest
#endif  // HWY_ONCE
