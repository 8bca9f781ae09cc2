#include "kernels/gate/gate.h"

#include <cmath>
#include <vector>

#include "kernels/common/op_testing.h"

namespace palimpsest {
namespace {

struct Case {
  const char* name;
  int32_t rows;
  int32_t heads;
  bool has_b;
  bool has_decay;
  float beta_scale;
  float deviation;  // of the projections
  DecayKind decay_kind = DecayKind::kSoftplus;
  int32_t decay_heads = 0;
  int32_t decay_channels = 1;
  float lower_bound = -kInfinity;
  float divisor = 1.0f;
  bool has_a_log = true;
  bool has_bias = true;
  bool has_beta = true;

  int32_t heads_of_decay() const { return decay_heads == 0 ? heads : decay_heads; }
  int32_t decays() const { return heads_of_decay() * decay_channels; }
};

constexpr DecayKind kSoftplus = DecayKind::kSoftplus, kSigmoid = DecayKind::kSigmoid;
constexpr DecayKind kLogSigmoid = DecayKind::kLogSigmoid;

constexpr Case kCases[] = {
    {"base", 5, 6, true, true, 1.0f, 2.0f},
    {"one_row", 1, 6, true, true, 1.0f, 2.0f},
    {"one_head", 5, 1, true, true, 1.0f, 2.0f},
    {"a_vector_and_a_bit", 5, 19, true, true, 1.0f, 2.0f},
    {"no_decay", 5, 6, true, false, 1.0f, 2.0f},
    {"no_b", 5, 6, false, true, 1.0f, 2.0f},
    {"negative_eigenvalues", 5, 6, true, true, 2.0f, 2.0f},
    {"small", 5, 19, true, true, 1.0f, 1e-4f},
    {"saturated", 5, 19, true, true, 1.0f, 30.0f},
    {"many_rows", 1700, 33, true, true, 1.0f, 2.0f},
    {"three_writes_to_a_row", 5, 18, true, true, 1.0f, 2.0f, kSoftplus, 6},
    {"by_channel", 5, 3, true, true, 1.0f, 2.0f, kSoftplus, 0, 37},
    {"by_channel_many_rows", 300, 4, true, true, 1.0f, 2.0f, kSoftplus, 0, 64},
    {"by_channel_without_scale", 5, 3, true, true, 1.0f, 2.0f, kSoftplus, 0, 37, -kInfinity, 1.0f, false},
    {"by_channel_without_bias", 5, 3, true, true, 1.0f, 2.0f, kSoftplus, 0, 37, -kInfinity, 1.0f, true, false},
    {"sigmoid_by_channel", 5, 3, true, true, 1.0f, 2.0f, kSigmoid, 0, 37, -5.0f},
    {"sigmoid_by_head", 5, 19, true, true, 1.0f, 2.0f, kSigmoid, 0, 1, -5.0f},
    {"sigmoid_without_scale", 5, 4, false, true, 1.0f, 2.0f, kSigmoid, 0, 64, -0.60653066f, 1.0f, false, true, false},
    {"sigmoid_saturated", 5, 3, true, true, 1.0f, 30.0f, kSigmoid, 0, 37, -5.0f},
    {"log_sigmoid", 5, 4, false, true, 1.0f, 2.0f, kLogSigmoid, 0, 64, -kInfinity, 16.0f, false, true, false},
    {"log_sigmoid_odd", 5, 3, true, true, 1.0f, 2.0f, kLogSigmoid, 2, 19, -kInfinity, 16.0f, false},
    {"log_sigmoid_without_bias", 5, 3, true, true, 1.0f, 2.0f, kLogSigmoid, 0, 19, -kInfinity, 16.0f, false, false},
    {"log_sigmoid_cut_off", 5, 3, true, true, 1.0f, 8.0f, kLogSigmoid, 0, 37, -0.25f, 16.0f, false},
    {"log_sigmoid_far_out", 5, 3, true, true, 1.0f, 1e4f, kLogSigmoid, 0, 37, -kInfinity, 16.0f, false},
    {"wider_than_beta", 5, 2, true, true, 1.0f, 2.0f, kSoftplus, 9, 5},
};

struct Data {
  explicit Data(const Case& c)
      : b(Matrix::Random(c.rows, c.heads, 1, c.deviation)),
        a(Matrix::Random(c.rows, c.decays(), 2, c.deviation, 5)),
        a_log(Normal(c.heads_of_decay(), 3)),
        dt_bias(Normal(c.decays(), 4)),
        beta(Matrix::Poisoned(c.rows, c.heads, 0)),
        log_decay(Matrix::Poisoned(c.rows, c.decays(), 0)) {}

  GateParams Params(const Case& c) {
    GateParams p;
    p.rows = c.rows;
    p.heads = c.heads;
    p.b = c.has_b ? b.data() : nullptr;
    p.ldb = b.stride;
    p.beta_scale = c.beta_scale;
    p.beta = c.has_beta ? beta.data() : nullptr;
    p.decay_kind = c.decay_kind;
    p.decay_heads = c.decay_heads;
    p.decay_channels = c.decay_channels;
    p.lower_bound = c.lower_bound;
    p.divisor = c.divisor;
    if (c.has_decay) {
      p.a = a.data();
      p.lda = a.stride;
      p.a_log = c.has_a_log ? a_log.data() : nullptr;
      p.dt_bias = c.has_bias ? dt_bias.data() : nullptr;
      p.log_decay = log_decay.data();
    }
    return p;
  }

  Matrix b;
  Matrix a;
  std::vector<float> a_log;
  std::vector<float> dt_bias;
  Matrix beta;
  Matrix log_decay;
};

using GateTest = OpTest;
INSTANTIATE_TEST_SUITE_P(Targets, GateTest, testing::ValuesIn(SimdTargets()));

TEST_P(GateTest, AgreesWithTheReference) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    Data expected(c);
    GateReference(expected.Params(c));
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      Data actual(c);
      Gate(On(pool), actual.Params(c));
      EXPECT_TRUE(Near(actual.beta, expected.beta, 1e-6)) << threads << " threads";
      // a + dt_bias is rounded, which is 40 times as much of e^-40; a decay of 1e-9 forgets nothing.
      EXPECT_TRUE(Near(actual.log_decay, expected.log_decay, 1e-6, /*floor=*/1e-3)) << threads << " threads";
    }
  }
}

TEST_P(GateTest, ARowsBitsDependOnThatRowAlone) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    ThreadPool one(1);
    Data alone(c);
    for (int r = 0; r < c.rows; ++r) {
      GateParams p = alone.Params(c);
      p.rows = 1;
      if (c.has_b) p.b = alone.b.row(r);
      if (c.has_beta) p.beta = alone.beta.row(r);
      if (c.has_decay) {
        p.a = alone.a.row(r);
        p.log_decay = alone.log_decay.row(r);
      }
      Gate(On(one), p);
    }
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      Data together(c);
      Gate(On(pool), together.Params(c));
      EXPECT_TRUE(SameBits(together.beta, alone.beta)) << threads << " threads";
      EXPECT_TRUE(SameBits(together.log_decay, alone.log_decay)) << threads << " threads";
    }
  }
}

TEST_P(GateTest, NaNComesOutAndExtremesStayInRange) {
  ThreadPool pool(1);
  const std::vector<float> b = {kNaN, -1e30f, 1e30f, 0.0f};
  const std::vector<float> a = {kNaN, -1e30f, 1e30f, 19.999f};
  const std::vector<float> zero(4);
  std::vector<float> beta(4);
  std::vector<float> log_decay(4);
  GateParams p;
  p.rows = 1;
  p.heads = 4;
  p.b = b.data();
  p.beta = beta.data();
  p.a = a.data();
  p.a_log = zero.data();
  p.dt_bias = zero.data();
  p.log_decay = log_decay.data();
  Gate(On(pool), p);
  EXPECT_TRUE(std::isnan(beta[0]));
  EXPECT_EQ(beta[1], 0.0f);
  EXPECT_EQ(beta[2], 1.0f);
  EXPECT_EQ(beta[3], 0.5f);
  EXPECT_TRUE(std::isnan(log_decay[0]));
  EXPECT_EQ(log_decay[1], 0.0f);
  EXPECT_EQ(log_decay[2], -1e30f);
  EXPECT_NEAR(log_decay[3], -19.999f, 1e-5f);

  p.a_log = nullptr;
  p.decay_kind = DecayKind::kSigmoid;
  p.lower_bound = -5.0f;
  Gate(On(pool), p);
  EXPECT_TRUE(std::isnan(log_decay[0]));
  EXPECT_EQ(log_decay[1], 0.0f);
  EXPECT_EQ(log_decay[2], -5.0f);

  p.decay_kind = DecayKind::kLogSigmoid;
  p.divisor = 16.0f;
  Gate(On(pool), p);
  EXPECT_TRUE(std::isnan(log_decay[0]));
  EXPECT_EQ(log_decay[1], -5.0f);
  EXPECT_EQ(log_decay[2], 0.0f);
  p.lower_bound = -kInfinity;
  Gate(On(pool), p);
  EXPECT_TRUE(std::isnan(log_decay[0]));
  EXPECT_EQ(log_decay[1], -6.25e28f);
}

}  // namespace
}  // namespace palimpsest
