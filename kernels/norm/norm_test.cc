#include "kernels/norm/norm.h"

#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/common/op_testing.h"

namespace palimpsest {
namespace {

struct Case {
  const char* name;
  int32_t rows;
  int32_t groups;
  int32_t dim;
  GateActivation activation;
  float deviation;
  float eps;
};

constexpr Case kCases[] = {
    {"base", 4, 1, 256, GateActivation::kNone, 1.0f, 1e-6f},
    {"one_row", 1, 1, 256, GateActivation::kNone, 1.0f, 1e-6f},
    {"one_value", 3, 1, 1, GateActivation::kNone, 1.0f, 1e-6f},
    {"no_multiple_of_lanes", 4, 1, 203, GateActivation::kNone, 1.0f, 1e-6f},
    {"below_one_vector", 4, 1, 5, GateActivation::kNone, 1.0f, 1e-6f},
    {"wide", 2, 1, 6913, GateActivation::kNone, 1.0f, 1e-6f},
    {"heads", 5, 3, 64, GateActivation::kNone, 1.0f, 1e-6f},
    {"silu_gate", 5, 3, 70, GateActivation::kSilu, 1.0f, 1e-6f},
    {"sigmoid_gate", 5, 3, 70, GateActivation::kSigmoid, 1.0f, 1e-6f},
    {"large_gates", 5, 3, 70, GateActivation::kSilu, 30.0f, 1e-6f},
    {"eps_dominates", 4, 1, 203, GateActivation::kNone, 1e-4f, 1e-5f},
    {"many_rows", 301, 2, 65, GateActivation::kSilu, 1.0f, 1e-6f},
};

struct Data {
  Data(const Case& c, int rows)
      : x(Matrix::Random(rows, int64_t{c.groups} * c.dim, 1, c.deviation)),
        gate(Matrix::Random(rows, int64_t{c.groups} * c.dim, 2, c.deviation, 5)),
        weight(Normal(c.dim, 3)),
        y(Matrix::Poisoned(rows, int64_t{c.groups} * c.dim, 7)) {}

  RmsNormParams Params(const Case& c) {
    RmsNormParams p;
    p.rows = static_cast<int32_t>(x.rows);
    p.groups = c.groups;
    p.dim = c.dim;
    p.eps = c.eps;
    p.x = x.data();
    p.ldx = x.stride;
    p.weight = weight.data();
    p.gate_activation = c.activation;
    p.gate = c.activation == GateActivation::kNone ? nullptr : gate.data();
    p.ldgate = gate.stride;
    p.y = y.data();
    p.ldy = y.stride;
    return p;
  }

  Matrix x;
  Matrix gate;
  std::vector<float> weight;
  Matrix y;
};

using RmsNormTest = OpTest;
INSTANTIATE_TEST_SUITE_P(Targets, RmsNormTest, testing::ValuesIn(SimdTargets()));

TEST_P(RmsNormTest, AgreesWithTheReference) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    Data expected(c, c.rows);
    RmsNormReference(expected.Params(c));
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      Data actual(c, c.rows);
      RmsNorm(On(pool), actual.Params(c));
      EXPECT_TRUE(Near(actual.y, expected.y, 1e-6)) << threads << " threads";
    }
  }
}

TEST_P(RmsNormTest, ARowsBitsDependOnThatRowAlone) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    ThreadPool one(1);
    Data alone(c, c.rows);
    for (int r = 0; r < c.rows; ++r) {
      RmsNormParams p = alone.Params(c);
      p.rows = 1;
      p.x = alone.x.row(r);
      p.gate = c.activation == GateActivation::kNone ? nullptr : alone.gate.row(r);
      p.y = alone.y.row(r);
      RmsNorm(On(one), p);
    }
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      Data together(c, c.rows);
      RmsNorm(On(pool), together.Params(c));
      EXPECT_TRUE(SameBits(together.y, alone.y)) << threads << " threads";
    }
  }
}

TEST_P(RmsNormTest, WorksInPlace) {
  ThreadPool pool(1);
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    Data apart(c, c.rows);
    RmsNorm(On(pool), apart.Params(c));
    Data in_place(c, c.rows);
    RmsNormParams p = in_place.Params(c);
    p.y = in_place.x.data();
    p.ldy = in_place.x.stride;
    RmsNorm(On(pool), p);
    for (int r = 0; r < c.rows; ++r) {
      EXPECT_TRUE(SameBits({in_place.x.row(r), static_cast<size_t>(in_place.x.width)},
                           {apart.y.row(r), static_cast<size_t>(apart.y.width)}));
    }
  }
}

TEST_P(RmsNormTest, NaNInAGateComesOut) {
  ThreadPool pool(1);
  for (const GateActivation activation : {GateActivation::kSilu, GateActivation::kSigmoid}) {
    const Case c = {"nan", 1, 1, 40, activation, 1.0f, 1e-6f};
    Data data(c, 1);
    data.gate.row(0)[37] = kNaN;
    RmsNorm(On(pool), data.Params(c));
    EXPECT_TRUE(std::isnan(data.y.row(0)[37]));
    EXPECT_FALSE(std::isnan(data.y.row(0)[36]));
  }
}

struct LayerNormData {
  LayerNormData(int64_t rows, int64_t dim, float deviation)
      : x(Matrix::Random(rows, dim, 1, deviation)),
        weight(Normal(dim, 2)),
        bias(Normal(dim, 3)),
        y(Matrix::Poisoned(rows, dim, 7)) {
    for (float& value : x.values) value += 3.0f;  // a mean to take away
  }
  LayerNormParams Params() {
    return {.rows = static_cast<int32_t>(x.rows),
            .dim = static_cast<int32_t>(x.width),
            .x = x.data(),
            .ldx = x.stride,
            .weight = weight.data(),
            .bias = bias.data(),
            .y = y.data(),
            .ldy = y.stride};
  }

  Matrix x;
  std::vector<float> weight, bias;
  Matrix y;
};

TEST_P(RmsNormTest, LayerNormAgreesWithTheReferenceAndDependsOnItsOwnRowAlone) {
  for (const auto& [rows, dim, deviation] : {std::tuple(4, 256, 1.0f), std::tuple(1, 16, 1.0f), std::tuple(3, 1, 1.0f),
                                             std::tuple(5, 203, 10.0f), std::tuple(301, 65, 0.1f)}) {
    SCOPED_TRACE(testing::Message() << rows << " rows of " << dim);
    LayerNormData expected(rows, dim, deviation);
    LayerNormReference(expected.Params());
    LayerNormData alone(rows, dim, deviation);
    ThreadPool one(1);
    for (int64_t r = 0; r < rows; ++r) {
      LayerNormParams p = alone.Params();
      p.rows = 1;
      p.x = alone.x.row(r);
      p.y = alone.y.row(r);
      LayerNorm(On(one), p);
    }
    EXPECT_TRUE(Near(alone.y, expected.y, 2e-5, 1.0));
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      LayerNormData together(rows, dim, deviation);
      LayerNorm(On(pool), together.Params());
      EXPECT_TRUE(SameBits(together.y, alone.y)) << threads << " threads";
      LayerNormParams p = together.Params();
      p.y = together.x.data();
      p.ldy = together.x.stride;
      LayerNorm(On(pool), p);
      for (int64_t r = 0; r < rows; ++r) {
        EXPECT_TRUE(SameBits(std::span(together.x.row(r), dim), std::span(alone.y.row(r), dim))) << "in place";
      }
    }
  }
}

}  // namespace
}  // namespace palimpsest
