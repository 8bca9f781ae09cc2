#include "kernels/feature_map/feature_map.h"

#include <cmath>
#include <vector>

#include "kernels/common/op_testing.h"

namespace palimpsest {
namespace {

struct Case {
  const char* name;
  int32_t rows;
  int32_t heads;
  int32_t dim;
  FeatureMapKind map;
  KeyNorm norm;
  float scale;
  float deviation;
  int32_t rolls = 0;
  int32_t projections = 0;

  bool elementwise() const { return IsElementwise(map); }
};

constexpr Case kCases[] = {
    {"base", 4, 2, 64, FeatureMapKind::kIdentity, KeyNorm::kL2, 0.125f, 1.0f},
    {"one_row", 1, 2, 64, FeatureMapKind::kIdentity, KeyNorm::kL2, 0.125f, 1.0f},
    {"no_multiple_of_lanes", 4, 3, 37, FeatureMapKind::kIdentity, KeyNorm::kL2, 0.125f, 1.0f},
    {"one_feature", 4, 3, 1, FeatureMapKind::kElu1, KeyNorm::kSum, 1.0f, 1.0f},
    {"nothing_to_do", 4, 2, 37, FeatureMapKind::kIdentity, KeyNorm::kNone, 1.0f, 1.0f},
    {"scale_only", 4, 2, 37, FeatureMapKind::kIdentity, KeyNorm::kNone, 0.3f, 1.0f},
    {"elu1", 4, 2, 37, FeatureMapKind::kElu1, KeyNorm::kNone, 1.0f, 1.0f},
    {"elu1_sum", 4, 2, 37, FeatureMapKind::kElu1, KeyNorm::kSum, 1.0f, 1.0f},
    {"elu1_l2", 4, 2, 37, FeatureMapKind::kElu1, KeyNorm::kL2, 0.125f, 1.0f},
    {"elu1_far_out", 4, 2, 37, FeatureMapKind::kElu1, KeyNorm::kNone, 1.0f, 30.0f},
    {"relu", 4, 2, 37, FeatureMapKind::kRelu, KeyNorm::kNone, 1.0f, 1.0f},
    {"relu_sum", 4, 2, 37, FeatureMapKind::kRelu, KeyNorm::kSum, 1.0f, 1.0f},
    {"relu_l2", 4, 2, 37, FeatureMapKind::kRelu, KeyNorm::kL2, 1.0f, 1.0f},
    {"silu", 4, 2, 37, FeatureMapKind::kSilu, KeyNorm::kNone, 1.0f, 1.0f},
    {"silu_l2", 4, 2, 37, FeatureMapKind::kSilu, KeyNorm::kL2, 0.125f, 1.0f},
    {"silu_l1", 4, 2, 37, FeatureMapKind::kSilu, KeyNorm::kL1, 0.125f, 1.0f},
    {"near_zero_l1", 4, 2, 37, FeatureMapKind::kIdentity, KeyNorm::kL1, 1.0f, 1e-9f},
    {"near_zero_l2", 4, 2, 37, FeatureMapKind::kIdentity, KeyNorm::kL2, 1.0f, 1e-5f},
    {"many_rows", 301, 4, 33, FeatureMapKind::kSilu, KeyNorm::kL2, 0.125f, 1.0f},
    {"dpfp", 4, 2, 16, FeatureMapKind::kDpfp, KeyNorm::kNone, 1.0f, 1.0f, 1},
    {"dpfp_sum", 4, 2, 16, FeatureMapKind::kDpfp, KeyNorm::kSum, 0.25f, 1.0f, 3},
    {"dpfp_odd", 4, 3, 37, FeatureMapKind::kDpfp, KeyNorm::kSum, 1.0f, 1.0f, 5},
    {"dpfp_all_rolls", 4, 3, 3, FeatureMapKind::kDpfp, KeyNorm::kNone, 1.0f, 1.0f, 5},
    {"dpfp_one_value", 4, 3, 1, FeatureMapKind::kDpfp, KeyNorm::kSum, 1.0f, 1.0f, 1},
    {"dpfp_many_rows", 301, 4, 16, FeatureMapKind::kDpfp, KeyNorm::kSum, 1.0f, 1.0f, 2},
    {"favor", 4, 2, 16, FeatureMapKind::kFavor, KeyNorm::kNone, 1.0f, 1.0f, 0, 8},
    {"favor_sum", 4, 2, 16, FeatureMapKind::kFavor, KeyNorm::kSum, 0.25f, 1.0f, 0, 64},
    {"favor_odd", 4, 3, 37, FeatureMapKind::kFavor, KeyNorm::kSum, 1.0f, 0.5f, 0, 53},
    {"favor_far_out", 4, 2, 16, FeatureMapKind::kFavor, KeyNorm::kNone, 1.0f, 8.0f, 0, 20},
    {"favor_many_rows", 301, 4, 16, FeatureMapKind::kFavor, KeyNorm::kSum, 1.0f, 1.0f, 0, 33},
    {"relu_shifted_sum", 4, 2, 37, FeatureMapKind::kRelu, KeyNorm::kShiftedSum, 0.125f, 1.0f},
    {"nothing_shifted_sum", 4, 2, 37, FeatureMapKind::kRelu, KeyNorm::kShiftedSum, 1.0f, 1e-9f},
    {"product", 4, 6, 64, FeatureMapKind::kElementwiseProduct, KeyNorm::kNone, 1.0f, 1.0f},
    {"product_odd_l2", 4, 3, 37, FeatureMapKind::kElementwiseProduct, KeyNorm::kL2, 0.125f, 1.0f},
    {"product_one_value", 4, 5, 1, FeatureMapKind::kElementwiseProduct, KeyNorm::kNone, 0.5f, 1.0f},
    {"product_256", 2, 5, 256, FeatureMapKind::kElementwiseProduct, KeyNorm::kNone, 1.0f, 1.0f},
    {"product_many_rows", 301, 4, 33, FeatureMapKind::kElementwiseProduct, KeyNorm::kNone, 1.0f, 1.0f},
    {"t2r", 4, 6, 64, FeatureMapKind::kT2r, KeyNorm::kNone, 1.0f, 1.0f},
    {"t2r_odd_shifted_sum", 4, 3, 37, FeatureMapKind::kT2r, KeyNorm::kShiftedSum, 0.125f, 1.0f},
    {"t2r_128", 2, 4, 128, FeatureMapKind::kT2r, KeyNorm::kSum, 1.0f, 1.0f},
    {"hedgehog", 4, 6, 64, FeatureMapKind::kHedgehog, KeyNorm::kNone, 1.0f, 1.0f},
    {"hedgehog_odd_shifted_sum", 4, 3, 37, FeatureMapKind::kHedgehog, KeyNorm::kShiftedSum, 0.125f, 1.0f},
    {"hedgehog_far_out", 4, 3, 37, FeatureMapKind::kHedgehog, KeyNorm::kNone, 1.0f, 60.0f},
    {"hedgehog_256", 2, 5, 256, FeatureMapKind::kHedgehog, KeyNorm::kNone, 1.0f, 1.0f},
    {"hedgehog_many_rows", 301, 4, 33, FeatureMapKind::kHedgehog, KeyNorm::kL2, 1.0f, 1.0f},
};

struct Data {
  explicit Data(const Case& c)
      : x(Matrix::Random(c.rows, int64_t{c.heads} * c.dim, 1, c.deviation)),
        projection(Normal(ProjectionFloats(c.map, c.dim, c.projections), 2,
                          IsLearned(c.map) ? 1.0f / std::sqrt(static_cast<float>(c.dim)) : 1.0f)),
        y(Matrix::Poisoned(c.rows, int64_t{c.heads} * FeatureCount(c.map, c.dim, c.rolls, c.projections), 7)) {}

  FeatureMapParams Params(const Case& c) {
    FeatureMapParams p;
    p.rows = c.rows;
    p.heads = c.heads;
    p.dim = c.dim;
    p.map = c.map;
    p.rolls = c.rolls;
    p.projections = c.projections;
    p.projection = projection.data();
    p.norm = c.norm;
    p.scale = c.scale;
    p.x = x.data();
    p.ldx = x.stride;
    p.y = y.data();
    p.ldy = y.stride;
    return p;
  }

  Matrix x;
  std::vector<float> projection;
  Matrix y;
};

// exp turns an absolute error of its argument, which grows with it, into a relative one.
double Tolerance(const Case& c) {
  const bool exponentiates = c.map == FeatureMapKind::kFavor || c.map == FeatureMapKind::kHedgehog;
  return exponentiates ? 1e-6 * (1 + 8 * c.deviation) : IsLearned(c.map) ? 3e-6 : 1e-6;
}

// What a learned map adds up may cancel.
double Floor(const Case& c) { return IsLearned(c.map) && c.map != FeatureMapKind::kHedgehog ? 3.0 : 1e-30; }

using FeatureMapTest = OpTest;
INSTANTIATE_TEST_SUITE_P(Targets, FeatureMapTest, testing::ValuesIn(SimdTargets()));

TEST_P(FeatureMapTest, AgreesWithTheReference) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    Data expected(c);
    FeatureMapReference(expected.Params(c));
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      Data actual(c);
      FeatureMap(On(pool), actual.Params(c));
      EXPECT_TRUE(Near(actual.y, expected.y, Tolerance(c), Floor(c))) << threads << " threads";
    }
  }
}

TEST_P(FeatureMapTest, ARowsBitsDependOnThatRowAlone) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    ThreadPool one(1);
    Data alone(c);
    for (int r = 0; r < c.rows; ++r) {
      FeatureMapParams p = alone.Params(c);
      p.rows = 1;
      p.x = alone.x.row(r);
      p.y = alone.y.row(r);
      FeatureMap(On(one), p);
    }
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      Data together(c);
      FeatureMap(On(pool), together.Params(c));
      EXPECT_TRUE(SameBits(together.y, alone.y)) << threads << " threads";
    }
  }
}

TEST_P(FeatureMapTest, WorksInPlace) {
  ThreadPool pool(1);
  for (const Case& c : kCases) {
    if (!c.elementwise()) continue;
    SCOPED_TRACE(c.name);
    Data expected(c);
    expected.y = expected.x;
    FeatureMapReference(expected.Params(c));
    Data in_place(c);
    FeatureMapParams p = in_place.Params(c);
    p.y = in_place.x.data();
    p.ldy = in_place.x.stride;
    FeatureMap(On(pool), p);
    EXPECT_TRUE(Near(in_place.x, expected.y, 1e-6));
  }
}

TEST_P(FeatureMapTest, NaNComesOutOfEveryMap) {
  ThreadPool pool(1);
  for (const FeatureMapKind map :
       {FeatureMapKind::kIdentity, FeatureMapKind::kElu1, FeatureMapKind::kRelu, FeatureMapKind::kSilu}) {
    const Case c = {"nan", 1, 1, 37, map, KeyNorm::kNone, 1.0f, 1.0f};
    Data data(c);
    data.x.row(0)[3] = kNaN;
    data.x.row(0)[36] = kNaN;
    FeatureMap(On(pool), data.Params(c));
    EXPECT_TRUE(std::isnan(data.y.row(0)[3]));
    EXPECT_TRUE(std::isnan(data.y.row(0)[36]));
    EXPECT_FALSE(std::isnan(data.y.row(0)[35]));
  }
}

TEST_P(FeatureMapTest, NaNReachesEveryFeatureThatItShould) {
  ThreadPool pool(1);
  for (const Case& c : {Case{"dpfp", 2, 2, 9, FeatureMapKind::kDpfp, KeyNorm::kSum, 1.0f, 1.0f, 2},
                        Case{"favor", 2, 2, 9, FeatureMapKind::kFavor, KeyNorm::kNone, 1.0f, 1.0f, 0, 7},
                        Case{"product", 2, 2, 9, FeatureMapKind::kElementwiseProduct, KeyNorm::kNone, 1.0f, 1.0f},
                        Case{"t2r", 2, 2, 9, FeatureMapKind::kT2r, KeyNorm::kNone, 1.0f, 1.0f},
                        Case{"hedgehog", 2, 2, 9, FeatureMapKind::kHedgehog, KeyNorm::kNone, 1.0f, 1.0f}}) {
    Data good(c), bad(c);
    bad.x.row(1)[3] = kNaN;  // of the first head
    FeatureMap(On(pool), good.Params(c));
    FeatureMap(On(pool), bad.Params(c));
    const int32_t features = good.Params(c).features();
    EXPECT_TRUE(SameBits(std::span(bad.y.row(0), 2 * features), std::span(good.y.row(0), 2 * features)));
    EXPECT_TRUE(SameBits(std::span(bad.y.row(1) + features, features), std::span(good.y.row(1) + features, features)));
    for (int32_t i = 0; i < features; ++i) EXPECT_TRUE(std::isnan(bad.y.row(1)[i])) << c.name << " " << i;
  }
}

TEST_P(FeatureMapTest, FeaturesThatSumToZeroStayZero) {
  ThreadPool pool(1);
  const std::vector<float> x(8);
  std::vector<float> y(32, kNaN);
  FeatureMap(On(pool), {.rows = 1,
                        .heads = 1,
                        .dim = 8,
                        .map = FeatureMapKind::kDpfp,
                        .rolls = 2,
                        .norm = KeyNorm::kSum,
                        .scale = 0.5f,
                        .x = x.data(),
                        .ldx = 8,
                        .y = y.data(),
                        .ldy = 32});
  EXPECT_THAT(y, testing::Each(0.0f));
}

}  // namespace
}  // namespace palimpsest
