#include "bench/machine_bounds.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/machine_bounds.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, 16>;
constexpr D d;

// The sum of n floats; n is a multiple of 4 * 16. Four streams, each a quarter of the array.
float Sum(const float* x, int64_t n) {
  auto a = hn::Zero(d), b = a, c = a, e = a;
  const int64_t quarter = n / 4;
  const int64_t lanes = hn::Lanes(d);
  for (int64_t i = 0; i < quarter; i += lanes) {
    hwy::Prefetch(x + i + 512);
    hwy::Prefetch(x + quarter + i + 512);
    hwy::Prefetch(x + 2 * quarter + i + 512);
    hwy::Prefetch(x + 3 * quarter + i + 512);
    a = hn::Add(a, hn::Load(d, x + i));
    b = hn::Add(b, hn::Load(d, x + quarter + i));
    c = hn::Add(c, hn::Load(d, x + 2 * quarter + i));
    e = hn::Add(e, hn::Load(d, x + 3 * quarter + i));
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(a, b), hn::Add(c, e))));
}

// x = x * x, in four streams; n as above.
void Square(float* x, int64_t n) {
  const int64_t quarter = n / 4;
  const int64_t lanes = hn::Lanes(d);
  for (int64_t i = 0; i < quarter; i += lanes) {
    for (float* at = x + i; at < x + n; at += quarter) {
      hwy::Prefetch(at + 512);
      const auto value = hn::Load(d, at);
      hn::Store(hn::Mul(value, value), d, at);
    }
  }
}

// Ten chains of multiply-adds, enough to hide a latency of five. Returns the operations done.
double MultiplyAdd(int64_t rounds, float* sink) {
  // Different starts, or the compiler would see ten times the same chain and compute it once.
  const auto x = hn::Set(d, *sink);
  auto a = hn::Add(x, x), b = hn::Add(a, x), c = hn::Add(b, x), e = hn::Add(c, x), f = hn::Add(e, x);
  auto g = hn::Add(f, x), h = hn::Add(g, x), i = hn::Add(h, x), j = hn::Add(i, x), k = hn::Add(j, x);
  for (int64_t round = 0; round < rounds; ++round) {
    a = hn::MulAdd(a, x, x);
    b = hn::MulAdd(b, x, x);
    c = hn::MulAdd(c, x, x);
    e = hn::MulAdd(e, x, x);
    f = hn::MulAdd(f, x, x);
    g = hn::MulAdd(g, x, x);
    h = hn::MulAdd(h, x, x);
    i = hn::MulAdd(i, x, x);
    j = hn::MulAdd(j, x, x);
    k = hn::MulAdd(k, x, x);
  }
  const auto sum =
      hn::Add(hn::Add(hn::Add(a, b), hn::Add(c, e)), hn::Add(hn::Add(hn::Add(f, g), hn::Add(h, i)), hn::Add(j, k)));
  *sink = hn::GetLane(hn::SumOfLanes(d, sum));
  return 2.0 * 10 * static_cast<double>(hn::Lanes(d)) * static_cast<double>(rounds);
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <time.h>

#include <algorithm>
#include <vector>

#include "kernels/common/aligned_buffer.h"

namespace palimpsest {
namespace {

HWY_EXPORT(Sum);
HWY_EXPORT(Square);
HWY_EXPORT(MultiplyAdd);

double Now(BenchClock clock) {
  timespec now;
  clock_gettime(clock == BenchClock::kWall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

MachineBounds MeasureMachineBounds(ThreadPool& pool, BenchClock clock) {
  const auto seconds = [clock](const auto& body) {
    const double begin = Now(clock);
    body();
    return Now(clock) - begin;
  };
  constexpr int64_t kFloats = int64_t{64} << 20;  // 256 MiB: far above any cache
  constexpr int kRounds = 8;
  AlignedArray<float> memory(kFloats);
  std::fill_n(memory.data(), kFloats, 1.0f);
  std::vector<float> sink(pool.size() * 16, 0.5f);  // a cache line each
  std::vector<double> done(pool.size() * 8);
  MachineBounds bounds;
  for (int round = 0; round < kRounds; ++round) {
    const double reading = seconds([&] {
      pool.ParallelFor(kFloats, 1024, [&](int64_t begin, int64_t end) {
        volatile float keep = HWY_DYNAMIC_DISPATCH(Sum)(memory.data() + begin, end - begin);
        static_cast<void>(keep);
      });
    });
    bounds.read_bytes_per_second = std::max(bounds.read_bytes_per_second, kFloats * 4 / reading);
    const double updating = seconds([&] {
      pool.ParallelFor(kFloats, 1024, [&](int64_t begin, int64_t end) {
        HWY_DYNAMIC_DISPATCH(Square)(memory.data() + begin, end - begin);
      });
    });
    bounds.update_bytes_per_second = std::max(bounds.update_bytes_per_second, 2.0 * kFloats * 4 / updating);
    const double computing = seconds([&] {
      pool.Run([&](int part) { done[part * 8] = HWY_DYNAMIC_DISPATCH(MultiplyAdd)(2'000'000, &sink[part * 16]); });
    });
    double operations = 0.0;
    for (int part = 0; part < pool.size(); ++part) operations += done[part * 8];
    bounds.f32_flops_per_second = std::max(bounds.f32_flops_per_second, operations / computing);
  }
  return bounds;
}

}  // namespace palimpsest
#endif  // HWY_ONCE
