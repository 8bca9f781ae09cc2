#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "kernels/common/device.h"
#include "kernels/common/grain.h"
#include "kernels/window_attention/window_attention.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/window_attention/window_attention_cpu.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/common/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {

// What a head of a row needs beside the state: scores of the window, and the two queries.
struct WindowScratch {
  std::vector<float> scores;
  std::vector<float> content_query;
  std::vector<float> position_query;
};

void AddBias(const float* q, const float* bias, size_t n, std::vector<float>& sum) {
  sum.resize(n);
  ForEachVector(n, [&](size_t i, size_t count) HWY_ATTR {
    StoreCount(hn::Add(LoadCount(q + i, count), LoadCount(bias + i, count)), sum.data() + i, count);
  });
}

// scores -> e^(score - max); returns their sum.
float Exponentiate(std::vector<float>& scores) {
  const FloatTag d;
  float max = scores[0];
  for (const float score : scores) max = std::max(max, score);
  const FloatVec shift = hn::Set(d, max);
  ForEachVector(scores.size(), [&](size_t i, size_t count) HWY_ATTR {
    StoreCount(ExpOf(hn::Sub(LoadCount(scores.data() + i, count), shift)), scores.data() + i, count);
  });
  return SumOf(scores.data(), scores.size());
}

// Calls body(i, n, place) for the visible rows in order of position, as one or two stretches of the ring: rows
// [place, place + n) are the i-th visible one and those after it.
template <class Body>
void ForStretches(const WindowAttentionParams& p, int64_t begin, int64_t end, const Body& body) {
  for (int64_t i = 0; begin + i < end;) {
    const int64_t place = (begin + i) % p.capacity;
    const int64_t n = std::min(end - begin - i, p.capacity - place);
    body(i, n, place);
    i += n;
  }
}

// `keys` and `values` are the head's: [capacity, dim].
void AttendRow(const WindowAttentionParams& p, float* keys, float* values, int64_t row, int64_t t, int64_t column,
               WindowScratch& scratch) {
  const FloatTag d;
  const int64_t width = int64_t{p.heads} * p.dim, begin = p.first_visible(t);
  std::copy_n(p.k + row * p.ldk + column, p.dim, keys + t % p.capacity * p.dim);
  std::copy_n(p.v + row * p.ldv + column, p.dim, values + t % p.capacity * p.dim);

  const float* query = p.q + row * p.ldq + column;
  if (p.relative != nullptr) {
    AddBias(query, p.position_bias + column, p.dim, scratch.position_query);
    AddBias(query, p.content_bias + column, p.dim, scratch.content_query);
    query = scratch.content_query.data();
  }
  std::vector<float>& scores = scratch.scores;
  scores.resize(t - begin + 1);
  ForStretches(p, begin, t + 1, [&](int64_t i, int64_t n, int64_t place) HWY_ATTR {
    for (int64_t j = 0; j < n; ++j) scores[i + j] = Dot(query, keys + (place + j) * p.dim, p.dim);
  });
  if (p.relative != nullptr) {
    const float* const nearest = p.relative + column;
    for (int64_t j = begin; j <= t; ++j) {
      scores[j - begin] += Dot(scratch.position_query.data(), nearest + (t - j) * width, p.dim);
    }
  }
  for (float& score : scores) score *= p.scale;
  const FloatVec share = hn::Set(d, 1.0f / Exponentiate(scores));
  float* const out = p.out + row * p.ldout + column;
  ForEachVector(p.dim, [&](size_t c, size_t count) HWY_ATTR {
    FloatVec sum = hn::Zero(d);
    ForStretches(p, begin, t + 1, [&](int64_t i, int64_t n, int64_t place) HWY_ATTR {
      for (int64_t j = 0; j < n; ++j) {
        sum = hn::MulAdd(hn::Set(d, scores[i + j]), LoadCount(values + (place + j) * p.dim + c, count), sum);
      }
    });
    StoreCount(hn::Mul(sum, share), out + c, count);
  });
}

// All rows of one head of one sequence.
void WindowAttentionHead(const WindowAttentionParams& p, int32_t sequence, int32_t head) {
  thread_local WindowScratch scratch;
  float* const keys = p.ring.At(p.rows.slot[sequence]) + int64_t{head} * p.capacity * p.dim;
  float* const values = keys + p.ring_floats() / 2;
  const int64_t begin = p.rows.row_begin[sequence];
  for (int64_t r = begin; r < p.rows.row_begin[sequence + 1]; ++r) {
    AttendRow(p, keys, values, r, p.first_position[sequence] + r - begin, int64_t{head} * p.dim, scratch);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace palimpsest {

HWY_EXPORT(WindowAttentionHead);

void WindowAttention(const ExecContext& ctx, const WindowAttentionParams& params) {
  if (ctx.device != nullptr) return ctx.device->Run(params);
  PALIMPSEST_CHECK(params.segment >= 1 && params.memory >= 0 && params.capacity == params.segment + params.memory);
  const auto kernel = HWY_DYNAMIC_DISPATCH(WindowAttentionHead);
  const int64_t tasks = int64_t{params.rows.num_sequences} * params.heads;
  const int64_t rows_each = params.rows.num_rows() / std::max(params.rows.num_sequences, 1);
  const int64_t work = std::max<int64_t>(rows_each, 1) * params.capacity * params.dim;
  ctx.pool->ParallelFor(tasks, RowsPerTask(work), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernel(params, static_cast<int32_t>(i / params.heads), static_cast<int32_t>(i % params.heads));
    }
  });
}

}  // namespace palimpsest
#endif
