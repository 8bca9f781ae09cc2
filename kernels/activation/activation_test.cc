#include "kernels/activation/activation.h"

#include <cmath>
#include <vector>

#include "kernels/common/op_testing.h"

namespace palimpsest {
namespace {

struct Case {
  const char* name;
  int32_t rows;
  int32_t dim;
  float deviation;
};

constexpr Case kCases[] = {
    {"base", 4, 256, 1.0f},    {"one_row", 1, 256, 1.0f}, {"no_multiple_of_lanes", 4, 203, 1.0f},
    {"one_value", 3, 1, 1.0f}, {"tiny", 4, 203, 1e-20f},  {"where_exp_underflows", 4, 203, 40.0f},
    {"huge", 4, 203, 1e18f},   {"wide", 2, 5637, 1.0f},   {"many_rows", 301, 129, 1.0f},
};

struct Data {
  explicit Data(const Case& c)
      : gate(Matrix::Random(c.rows, c.dim, 1, c.deviation)),
        up(Matrix::Random(c.rows, c.dim, 2, 1.0f, 5)),
        y(Matrix::Poisoned(c.rows, c.dim, 7)) {}

  SwigluParams Params() {
    SwigluParams p;
    p.rows = static_cast<int32_t>(gate.rows);
    p.dim = static_cast<int32_t>(gate.width);
    p.gate = gate.data();
    p.ldgate = gate.stride;
    p.up = up.data();
    p.ldup = up.stride;
    p.y = y.data();
    p.ldy = y.stride;
    return p;
  }

  Matrix gate;
  Matrix up;
  Matrix y;
};

using SwigluTest = OpTest;
INSTANTIATE_TEST_SUITE_P(Targets, SwigluTest, testing::ValuesIn(SimdTargets()));

TEST_P(SwigluTest, AgreesWithTheReference) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    Data expected(c);
    SwigluReference(expected.Params());
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      Data actual(c);
      Swiglu(On(pool), actual.Params());
      EXPECT_TRUE(Near(actual.y, expected.y, 1e-6)) << threads << " threads";
    }
  }
}

TEST_P(SwigluTest, ARowsBitsDependOnThatRowAlone) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    ThreadPool one(1);
    Data alone(c);
    for (int r = 0; r < c.rows; ++r) {
      SwigluParams p = alone.Params();
      p.rows = 1;
      p.gate = alone.gate.row(r);
      p.up = alone.up.row(r);
      p.y = alone.y.row(r);
      Swiglu(On(one), p);
    }
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      Data together(c);
      Swiglu(On(pool), together.Params());
      EXPECT_TRUE(SameBits(together.y, alone.y)) << threads << " threads";
    }
  }
}

TEST_P(SwigluTest, WritesOverItsGate) {
  ThreadPool pool(2);
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    Data expected(c);
    expected.y = expected.gate;
    SwigluReference(expected.Params());
    Data in_place(c);
    SwigluParams p = in_place.Params();
    p.y = in_place.gate.data();
    p.ldy = in_place.gate.stride;
    Swiglu(On(pool), p);
    EXPECT_TRUE(Near(in_place.gate, expected.y, 1e-6));
  }
}

TEST_P(SwigluTest, WhatIsNotFiniteStaysSo) {
  ThreadPool pool(1);
  const std::vector<float> gate = {kNaN, kInfinity, 1.0f, -200.0f, 200.0f};
  const std::vector<float> up = {1.0f, 1.0f, kNaN, 1.0f, 1.0f};
  std::vector<float> y(5);
  Swiglu(On(pool), {.rows = 1, .dim = 5, .gate = gate.data(), .up = up.data(), .y = y.data()});
  EXPECT_TRUE(std::isnan(y[0]));
  EXPECT_EQ(y[1], kInfinity);
  EXPECT_TRUE(std::isnan(y[2]));
  EXPECT_NEAR(y[3], 0.0f, 1e-30f);
  EXPECT_EQ(y[4], 200.0f);
}

TEST_P(SwigluTest, ReluKeepsWhatIsPositiveAndNaN) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    Matrix x = Matrix::Random(301, 129, 5);
    x.row(7)[11] = kNaN;
    Matrix expected = Matrix::Poisoned(301, 129, 7), y = expected;
    for (int64_t r = 0; r < 301; ++r) {
      for (int64_t i = 0; i < 129; ++i) expected.row(r)[i] = x.row(r)[i] < 0.0f ? 0.0f : x.row(r)[i];
    }
    Relu(On(pool), {.rows = 301, .dim = 129, .x = x.data(), .ldx = x.stride, .y = y.data(), .ldy = y.stride});
    EXPECT_TRUE(SameBits(y, expected));
    Relu(On(pool), {.rows = 301, .dim = 129, .x = x.data(), .ldx = x.stride, .y = x.data(), .ldy = x.stride});
    for (int64_t r = 0; r < 301; ++r) EXPECT_TRUE(SameBits(std::span(x.row(r), 129), std::span(expected.row(r), 129)));
  }
}

}  // namespace
}  // namespace palimpsest
