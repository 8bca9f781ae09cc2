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
    {"near_zero_l2", 4, 2, 37, FeatureMapKind::kIdentity, KeyNorm::kL2, 1.0f, 1e-5f},
    {"many_rows", 301, 4, 33, FeatureMapKind::kSilu, KeyNorm::kL2, 0.125f, 1.0f},
};

struct Data {
  explicit Data(const Case& c)
      : x(Matrix::Random(c.rows, int64_t{c.heads} * c.dim, 1, c.deviation)),
        y(Matrix::Poisoned(c.rows, int64_t{c.heads} * c.dim, 7)) {}

  FeatureMapParams Params(const Case& c) {
    FeatureMapParams p;
    p.rows = c.rows;
    p.heads = c.heads;
    p.dim = c.dim;
    p.map = c.map;
    p.norm = c.norm;
    p.scale = c.scale;
    p.x = x.data();
    p.ldx = x.stride;
    p.y = y.data();
    p.ldy = y.stride;
    return p;
  }

  Matrix x;
  Matrix y;
};

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
      FeatureMap({&pool}, actual.Params(c));
      EXPECT_TRUE(Near(actual.y, expected.y, 1e-6)) << threads << " threads";
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
      FeatureMap({&one}, p);
    }
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      Data together(c);
      FeatureMap({&pool}, together.Params(c));
      EXPECT_TRUE(SameBits(together.y, alone.y)) << threads << " threads";
    }
  }
}

TEST_P(FeatureMapTest, WorksInPlace) {
  ThreadPool pool(1);
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    Data expected(c);
    expected.y = expected.x;
    FeatureMapReference(expected.Params(c));
    Data in_place(c);
    FeatureMapParams p = in_place.Params(c);
    p.y = in_place.x.data();
    p.ldy = in_place.x.stride;
    FeatureMap({&pool}, p);
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
    FeatureMap({&pool}, data.Params(c));
    EXPECT_TRUE(std::isnan(data.y.row(0)[3]));
    EXPECT_TRUE(std::isnan(data.y.row(0)[36]));
    EXPECT_FALSE(std::isnan(data.y.row(0)[35]));
  }
}

}  // namespace
}  // namespace palimpsest
