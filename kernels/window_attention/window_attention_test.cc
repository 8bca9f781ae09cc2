#include "kernels/window_attention/window_attention.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/common/op_testing.h"

namespace palimpsest {
namespace {

struct Case {
  const char* name;
  int32_t heads;
  int32_t dim;
  int32_t segment;
  int32_t memory;
  bool relative;
  std::vector<int32_t> lengths;
  std::vector<int64_t> first_positions;
};

const std::vector<Case>& Cases() {
  static const auto* const cases = new std::vector<Case>{
      {"sliding", 2, 16, 1, 31, false, {5, 1, 70}, {0, 40, 7}},
      {"longer_than_the_ring", 2, 16, 1, 9, false, {64, 3}, {0, 1000}},
      {"window_of_one", 2, 8, 1, 0, false, {4}, {0}},
      {"odd", 3, 37, 1, 12, false, {20, 1, 1}, {0, 0, 12}},
      {"segments", 2, 16, 8, 0, false, {30}, {3}},
      {"transformer_xl", 2, 16, 8, 5, true, {30, 1, 9}, {0, 12, 100003}},
      {"transformer_xl_odd", 3, 11, 7, 20, true, {50, 1}, {0, 26}},
  };
  return *cases;
}

struct Data {
  explicit Data(const Case& c) : c(c) {
    for (const int32_t length : c.lengths) row_begin.push_back(row_begin.back() + length);
    slots.resize(c.lengths.size());
    std::iota(slots.rbegin(), slots.rend(), 0);
    positions = c.first_positions;
    const int64_t rows = row_begin.back(), width = int64_t{c.heads} * c.dim;
    q = Matrix::Random(rows, width, 1);
    k = Matrix::Random(rows, width, 2, 1.0f, 5);
    v = Matrix::Random(rows, width, 3, 1.0f, 0);
    out = Matrix::Poisoned(rows, width, 7);
    content_bias = Normal(width, 4);
    position_bias = Normal(width, 5);
    relative = Normal((c.segment + c.memory) * width, 6);
    stride = (int64_t{2} * (c.segment + c.memory) * width + 15) / 16 * 16;
    ring = Normal(stride * std::ssize(slots), 7);  // of sequences that have been here for a while
  }

  WindowAttentionParams Params() {
    WindowAttentionParams p;
    p.heads = c.heads;
    p.dim = c.dim;
    p.capacity = c.segment + c.memory;
    p.segment = c.segment;
    p.memory = c.memory;
    p.scale = 0.3f;
    p.rows = {static_cast<int32_t>(slots.size()), row_begin.data(), slots.data()};
    p.first_position = positions.data();
    p.ring = {reinterpret_cast<std::byte*>(ring.data()), stride * int64_t{sizeof(float)}};
    p.q = q.data();
    p.ldq = q.stride;
    p.k = k.data();
    p.ldk = k.stride;
    p.v = v.data();
    p.ldv = v.stride;
    if (c.relative) {
      p.content_bias = content_bias.data();
      p.position_bias = position_bias.data();
      p.relative = relative.data();
    }
    p.out = out.data();
    p.ldout = out.stride;
    return p;
  }

  const Case& c;
  std::vector<int32_t> row_begin = {0}, slots;
  std::vector<int64_t> positions;
  Matrix q, k, v, out;
  std::vector<float> content_bias, position_bias, relative, ring;
  int64_t stride = 0;
};

using WindowAttentionTest = OpTest;
INSTANTIATE_TEST_SUITE_P(Targets, WindowAttentionTest, testing::ValuesIn(SimdTargets()));

TEST_P(WindowAttentionTest, AgreesWithTheReference) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(c.name);
    Data expected(c), actual(c);
    WindowAttentionReference(expected.Params());
    ThreadPool pool(2);
    WindowAttention(On(pool), actual.Params());
    EXPECT_TRUE(Near(actual.out, expected.out, 2e-6, 1.0));
    EXPECT_TRUE(SameBits(actual.ring, expected.ring));
  }
}

TEST_P(WindowAttentionTest, BitsDependOnTheSequenceAlone) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(c.name);
    ThreadPool one(1);
    Data together(c);
    WindowAttention(On(one), together.Params());
    for (int threads = 2; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      Data more(c);
      WindowAttention(On(pool), more.Params());
      EXPECT_TRUE(SameBits(more.out, together.out));
      EXPECT_TRUE(SameBits(more.ring, together.ring));
    }
    Data apart(c);  // row by row, each sequence by itself
    for (size_t s = 0; s < c.lengths.size(); ++s) {
      for (int32_t row = apart.row_begin[s]; row < apart.row_begin[s + 1]; ++row) {
        WindowAttentionParams p = apart.Params();
        const std::vector<int32_t> one_row = {0, 1};
        const std::vector<int64_t> position = {apart.positions[s] + row - apart.row_begin[s]};
        p.rows = {1, one_row.data(), &apart.slots[s]};
        p.first_position = position.data();
        p.q = apart.q.row(row);
        p.k = apart.k.row(row);
        p.v = apart.v.row(row);
        p.out = apart.out.row(row);
        WindowAttention(On(one), p);
      }
    }
    EXPECT_TRUE(SameBits(apart.out, together.out));
    EXPECT_TRUE(SameBits(apart.ring, together.ring));
  }
}

TEST_P(WindowAttentionTest, WhatLeftTheWindowIsForgotten) {
  const Case& c = Cases()[1];  // a window of ten
  ThreadPool pool(1);
  Data a(c), b(c);
  for (int64_t r = 0; r < 20; ++r) b.k.row(r)[0] = b.v.row(r)[0] = kNaN;
  WindowAttention(On(pool), a.Params());
  WindowAttention(On(pool), b.Params());
  EXPECT_TRUE(std::isnan(b.out.row(28)[0]));
  for (int64_t r = 29; r < a.out.rows; ++r) {
    EXPECT_TRUE(SameBits(std::span(a.out.row(r), a.out.width), std::span(b.out.row(r), b.out.width))) << r;
  }
}

}  // namespace
}  // namespace palimpsest
