#include "kernels/linear/linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/common/op_testing.h"
#include "kernels/common/random_values.h"

namespace palimpsest {
namespace {

std::vector<BF16> ToBF16(const std::vector<float>& values) {
  std::vector<BF16> bits;
  for (const float value : values) bits.push_back(BF16FromFloat(value));
  return bits;
}

std::vector<float> ToFloat(const std::vector<BF16>& bits) {
  std::vector<float> values;
  for (const BF16 b : bits) values.push_back(FloatFromBF16(b));
  return values;
}

// Equality of bits: NaN equals itself, zero differs from minus zero.
testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return testing::AssertionFailure() << a.size() << " values against " << b.size();
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) {
      return testing::AssertionFailure() << "value " << i << " is " << a[i] << " against " << b[i];
    }
  }
  return testing::AssertionSuccess();
}

// Said where a sum is too far from the truth.
constexpr const char* kBound =
    "\n(A GPU's tensor cores truncate, an instruction's 16 products at a time: should a sum be a little outside, that "
    "is "
    "why; far outside, or in f32 arithmetic, a product is wrong.)";

// Of the sum of the products' sizes. The vendor's library, which chunks go through, lets the tensor cores add up all of
// `in` without a rounding: on an H100 the truncations came to 3.5e-7 for 5632 products, ours to less than 3e-7.
bool rows_are_steps = true;  // of calls on a device
double Allowed() { return rows_are_steps ? 3e-7 : 7e-7; }
int32_t StepRows(int32_t rows) { return rows_are_steps ? rows : 0; }

bool UseTarget(const std::string& target) {
  if (TestDevice() == nullptr) return UseSimdTarget(target);
  rows_are_steps = target == "STEPS";
  return true;
}

// y starts as NaN, so that a value left out shows.
std::vector<float> RunLinear(const PackedLinear& weights, LinearMath math, const std::vector<float>& x, int32_t rows,
                             int threads) {
  ThreadPool pool(threads);
  std::vector<float> y(int64_t{rows} * weights.out(), kNaN);
  Linear(On(pool), {.weights = &weights,
                    .math = math,
                    .x = x.data(),
                    .ldx = weights.in(),
                    .y = y.data(),
                    .ldy = weights.out(),
                    .rows = rows,
                    .step_rows = StepRows(rows)});
  return y;
}

// Runs a test once on each target that this machine has, or on a device for either kind of row.
std::vector<std::string> Targets() {
  if (TestDevice() != nullptr) return {"STEPS", "CHUNKS"};
  const std::string best = SimdTargetName();
  std::vector<std::string> names;
  for (const char* name : {"AVX3_BF16", "AVX3", "AVX2", "PORTABLE"}) {
    if (UseSimdTarget(name)) names.push_back(name);
  }
  UseSimdTarget(best);
  return names;
}

struct Case {
  const char* name;
  int64_t out;
  int64_t in;
  int32_t rows;
  DType dtype;
  LinearMath math;
  friend void PrintTo(const Case& c, std::ostream* os) { *os << c.name; }
};

constexpr Case kCases[] = {
    {"base", 96, 64, 4, DType::kF32, LinearMath::kF32},
    {"one_row", 96, 64, 1, DType::kF32, LinearMath::kF32},
    {"one_output", 1, 64, 3, DType::kF32, LinearMath::kF32},
    {"one_input", 96, 1, 3, DType::kF32, LinearMath::kF32},
    {"one_of_each", 1, 1, 1, DType::kF32, LinearMath::kF32},
    {"odd_everything", 77, 53, 7, DType::kF32, LinearMath::kF32},
    {"a_tile_and_a_bit", 130, 40, 13, DType::kF32, LinearMath::kF32},
    {"several_blocks_of_rows", 33, 3000, 101, DType::kF32, LinearMath::kF32},
    {"f16", 77, 53, 7, DType::kF16, LinearMath::kF32},
    {"bf16_weights", 96, 64, 4, DType::kBF16, LinearMath::kF32},
    {"bf16_weights_one_row", 321, 64, 1, DType::kBF16, LinearMath::kF32},
    {"bf16_weights_odd", 77, 53, 7, DType::kBF16, LinearMath::kF32},
    {"bf16_weights_one_input", 31, 1, 2, DType::kBF16, LinearMath::kF32},
    {"bf16_weights_many_rows", 130, 40, 29, DType::kBF16, LinearMath::kF32},
    {"bf16_math", 96, 64, 4, DType::kBF16, LinearMath::kBF16},
    {"bf16_math_one_row", 321, 64, 1, DType::kBF16, LinearMath::kBF16},
    {"bf16_math_odd", 77, 53, 7, DType::kBF16, LinearMath::kBF16},
    {"bf16_math_one_input", 31, 1, 2, DType::kBF16, LinearMath::kBF16},
    {"bf16_math_many_rows", 130, 40, 29, DType::kBF16, LinearMath::kBF16},
    {"bf16_math_long", 40, 1031, 12, DType::kBF16, LinearMath::kBF16},
};

class LinearCase : public testing::TestWithParam<Case> {
 protected:
  LinearCase() : target_(SimdTargetName()) {
    const Case& c = GetParam();
    x_ = Normal(c.rows * c.in, 1);
    weights_ = Normal(c.out * c.in, 2);
    if (c.dtype == DType::kF32) {
      packed_ = PackedLinear::Pack(c.dtype, weights_.data(), c.out, c.in, TestDevice());
    } else if (c.dtype == DType::kBF16) {
      const std::vector<BF16> bits = ToBF16(weights_);
      weights_ = ToFloat(bits);
      packed_ = PackedLinear::Pack(c.dtype, bits.data(), c.out, c.in, TestDevice());
    } else {
      std::vector<uint16_t> bits;  // halves between 1 and 2, and their negatives
      for (size_t i = 0; i < weights_.size(); ++i) bits.push_back(0x3C00 | (i * 37 % 1024) | (i % 3 == 0 ? 0x8000 : 0));
      for (size_t i = 0; i < weights_.size(); ++i) weights_[i] = FloatFromF16(bits[i]);
      packed_ = PackedLinear::Pack(c.dtype, bits.data(), c.out, c.in, TestDevice());
    }
  }
  ~LinearCase() override {
    UseSimdTarget(target_);
    rows_are_steps = true;
  }

  std::string target_;
  std::vector<float> x_;
  std::vector<float> weights_;
  PackedLinear packed_;
};

TEST_P(LinearCase, AgreesWithTheReferenceOnEveryTarget) {
  const Case& c = GetParam();
  std::vector<float> x = x_;
  if (c.math == LinearMath::kBF16) x = ToFloat(ToBF16(x));  // the one rounding that kBF16 allows itself
  std::vector<double> expected(c.rows * c.out);
  LinearReference(weights_.data(), c.out, c.in, x.data(), c.in, c.rows, expected.data());
  for (const std::string& target : Targets()) {
    SCOPED_TRACE(target);
    ASSERT_TRUE(UseTarget(target));
    const std::vector<float> y = RunLinear(packed_, c.math, x_, c.rows, 2);
    for (int64_t r = 0; r < c.rows; ++r) {
      for (int64_t o = 0; o < c.out; ++o) {
        // A chain of n roundings to 24 bits: the error grows like sqrt(n) times the sum's size, at worst like n.
        double size = 0.0;
        for (int64_t i = 0; i < c.in; ++i) size += std::abs(double{x[r * c.in + i]} * double{weights_[o * c.in + i]});
        ASSERT_NEAR(y[r * c.out + o], expected[r * c.out + o], size * Allowed())
            << "row " << r << " output " << o << kBound;
      }
    }
  }
}

TEST_P(LinearCase, ARowHasTheSameBitsInAnyBatchAndOnAnyNumberOfThreads) {
  const Case& c = GetParam();
  for (const std::string& target : Targets()) {
    SCOPED_TRACE(target);
    ASSERT_TRUE(UseTarget(target));
    const std::vector<float> together = RunLinear(packed_, c.math, x_, c.rows, 1);
    for (int threads = 2; threads <= 4; ++threads) {
      ASSERT_TRUE(SameBits(RunLinear(packed_, c.math, x_, c.rows, threads), together)) << threads << " threads";
    }
    for (const int32_t batch : {1, 2, 5, 12}) {
      std::vector<float> apart;
      for (int32_t r = 0; r < c.rows; r += batch) {
        const int32_t rows = std::min(batch, c.rows - r);
        const std::vector<float> some(x_.begin() + r * c.in, x_.begin() + (r + rows) * c.in);
        const std::vector<float> y = RunLinear(packed_, c.math, some, rows, 2);
        apart.insert(apart.end(), y.begin(), y.end());
      }
      ASSERT_TRUE(SameBits(apart, together)) << "in batches of " << batch;
    }
  }
}

TEST_P(LinearCase, AccumulatingAddsTheFinishedSumOnce) {
  const Case& c = GetParam();
  for (const std::string& target : Targets()) {
    SCOPED_TRACE(target);
    ASSERT_TRUE(UseTarget(target));
    const std::vector<float> sum = RunLinear(packed_, c.math, x_, c.rows, 1);
    const std::vector<float> before = Normal(sum.size(), 3);
    std::vector<float> y = before;
    ThreadPool pool(2);
    Linear(On(pool), {.weights = &packed_,
                      .math = c.math,
                      .x = x_.data(),
                      .ldx = c.in,
                      .y = y.data(),
                      .ldy = c.out,
                      .rows = c.rows,
                      .accumulate = true,
                      .step_rows = StepRows(c.rows)});
    std::vector<float> expected = before;
    for (size_t i = 0; i < sum.size(); ++i) expected[i] += sum[i];
    ASSERT_TRUE(SameBits(y, expected));
  }
}

TEST_P(LinearCase, ABiasIsAddedLast) {
  const Case& c = GetParam();
  const std::vector<float> bias = Normal(c.out, 4);
  for (const std::string& target : Targets()) {
    SCOPED_TRACE(target);
    ASSERT_TRUE(UseTarget(target));
    for (const bool accumulate : {false, true}) {
      std::vector<float> expected = Normal(int64_t{c.rows} * c.out, 3), y = expected;
      ThreadPool pool(2);
      LinearParams p = {&packed_, c.math, x_.data(), c.in, expected.data(), c.out, c.rows, accumulate};
      p.step_rows = StepRows(c.rows);
      Linear(On(pool), p);
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += bias[i % c.out];
      p.y = y.data();
      p.bias = bias.data();
      Linear(On(pool), p);
      if (rows_are_steps) {
        ASSERT_TRUE(SameBits(y, expected));
      } else {  // the vendor's library has more digits of the sum when it adds the bias
        for (size_t i = 0; i < y.size(); ++i) ASSERT_FLOAT_EQ(y[i], expected[i]) << "value " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, LinearCase, testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(LinearTest, WidenedBF16WeightsGiveTheBitsOfTheSameWeightsInFloat32) {
  const int64_t out = 45, in = 71;
  const std::vector<BF16> bits = ToBF16(Normal(out * in, 4));
  const std::vector<float> wide = ToFloat(bits);
  const std::vector<float> x = Normal(9 * in, 5);
  EXPECT_TRUE(SameBits(
      RunLinear(PackedLinear::Pack(DType::kBF16, bits.data(), out, in, TestDevice()), LinearMath::kF32, x, 9, 2),
      RunLinear(PackedLinear::Pack(DType::kF32, wide.data(), out, in, TestDevice()), LinearMath::kF32, x, 9, 2)));
}

TEST(LinearTest, TargetsWithFusedMultiplyAddGiveTheSameBitsInFloat32) {
  const std::string best = SimdTargetName();
  const std::vector<float> weights = Normal(50 * 200, 6);
  const std::vector<float> x = Normal(14 * 200, 7);
  const PackedLinear packed = PackedLinear::Pack(DType::kF32, weights.data(), 50, 200, TestDevice());
  if (!UseSimdTarget("AVX2")) GTEST_SKIP() << "no AVX2 here";
  const std::vector<float> avx2 = RunLinear(packed, LinearMath::kF32, x, 14, 1);
  UseSimdTarget(best);
  EXPECT_TRUE(SameBits(avx2, RunLinear(packed, LinearMath::kF32, x, 14, 1))) << best;
}

TEST(LinearTest, StackedMatricesComputeWhatEachComputesAlone) {
  const int64_t in = 37;
  const std::vector<int64_t> outs = {5, 64, 0, 31};
  std::vector<std::vector<float>> matrices;
  std::vector<PackedLinear::Source> sources;
  for (const int64_t out : outs) matrices.push_back(Normal(out * in, 8 + out));
  for (size_t i = 0; i < outs.size(); ++i) sources.push_back({DType::kF32, matrices[i].data(), outs[i]});
  const PackedLinear stacked = PackedLinear::PackStacked(sources, in, TestDevice());
  ASSERT_EQ(stacked.out(), 100);
  const int32_t rows = 3;
  const std::vector<float> x = Normal(rows * in, 9);
  const std::vector<float> y = RunLinear(stacked, LinearMath::kF32, x, rows, 2);
  int64_t first = 0;
  for (size_t i = 0; i < outs.size(); ++i) {
    if (outs[i] == 0) continue;
    const PackedLinear alone = PackedLinear::Pack(DType::kF32, matrices[i].data(), outs[i], in, TestDevice());
    const std::vector<float> expected = RunLinear(alone, LinearMath::kF32, x, rows, 2);
    for (int32_t r = 0; r < rows; ++r) {
      for (int64_t o = 0; o < outs[i]; ++o) ASSERT_EQ(y[r * 100 + first + o], expected[r * outs[i] + o]);
    }
    first += outs[i];
  }
}

TEST(LinearTest, WritesOnlyItsOwnColumnsWhenRowsAreFurtherApart) {
  const int64_t out = 35, in = 6, ldx = 11, ldy = 50;
  const int32_t rows = 13;
  const std::vector<float> weights = Normal(out * in, 10);
  const std::vector<float> x = Normal(rows * ldx, 11);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::vector<BF16> bits = ToBF16(weights);
    const PackedLinear packed = dtype == DType::kF32 ? PackedLinear::Pack(dtype, weights.data(), out, in, TestDevice())
                                                     : PackedLinear::Pack(dtype, bits.data(), out, in, TestDevice());
    std::vector<float> y(rows * ldy, 7.0f);
    ThreadPool pool(2);
    const LinearMath math = dtype == DType::kF32 ? LinearMath::kF32 : LinearMath::kBF16;
    Linear(On(pool), {&packed, math, x.data(), ldx, y.data(), ldy, rows});
    for (int32_t r = 0; r < rows; ++r) {
      for (int64_t o = out; o < ldy; ++o) ASSERT_EQ(y[r * ldy + o], 7.0f) << "row " << r << " column " << o;
    }
  }
}

TEST(LinearTest, ARowOfNaNStaysAlone) {
  const int64_t out = 40, in = 33;
  const std::vector<BF16> bits = ToBF16(Normal(out * in, 12));
  const PackedLinear packed = PackedLinear::Pack(DType::kBF16, bits.data(), out, in, TestDevice());
  std::vector<float> x = Normal(15 * in, 13);
  for (const LinearMath math : {LinearMath::kF32, LinearMath::kBF16}) {
    const std::vector<float> clean = RunLinear(packed, math, x, 15, 2);
    std::vector<float> poisoned = x;
    for (int64_t i = 0; i < in; ++i) poisoned[6 * in + i] = kNaN;
    std::vector<float> y = RunLinear(packed, math, poisoned, 15, 2);
    for (int64_t o = 0; o < out; ++o) {
      ASSERT_TRUE(std::isnan(y[6 * out + o]));
      y[6 * out + o] = clean[6 * out + o];
    }
    EXPECT_TRUE(SameBits(y, clean));
  }
}

// What a launch looks like depends on the number of rows and on the size of the matrix; a row's bits do not depend on
// the first. A real device gets the matrices of a model of 1.3B, and as many rows as the bounds between launches and
// between kernels of a library may lie at; who is slower, smaller matrices that meet the same bounds.
TEST(LinearTest, ARowHasTheSameBitsAmongAnyNumberOfRows) {
  struct Size {
    int64_t out, in;
  };
  const bool fast = TestDevice() != nullptr && TestDevice()->info().name != "emulator";
  std::vector<Size> sizes = {{2064, 130}, {80, 1032}, {61, 1031}};
  std::vector<int32_t> counts = {1, 8, 9, 16, 17, 32, 33, 65, 129, 260};
  if (fast) {
    sizes.insert(sizes.end(), {{2048, 2048}, {5632, 2048}, {2048, 5632}});
    counts.resize(65);
    std::iota(counts.begin(), counts.end(), 1);
    counts.insert(counts.end(), {127, 128, 129, 255, 256, 257, 300, 2048});
  }
  const std::string best = SimdTargetName();
  for (const Size& size : sizes) {
    SCOPED_TRACE(testing::Message() << size.out << " x " << size.in);
    const std::vector<float> x = Normal(counts.back() * size.in, 15);
    const std::vector<BF16> bits = ToBF16(Normal(size.out * size.in, 16));
    const std::vector<float> weights = ToFloat(bits), rounded = ToFloat(ToBF16(x));
    const PackedLinear packed = PackedLinear::Pack(DType::kBF16, bits.data(), size.out, size.in, TestDevice());
    for (const std::string& target : Targets()) {
      SCOPED_TRACE(target);
      ASSERT_TRUE(UseTarget(target));
      const std::vector<float> most = RunLinear(packed, LinearMath::kBF16, x, counts.back(), 2);
      for (const int32_t rows : counts) {
        const std::vector<float> y = RunLinear(packed, LinearMath::kBF16, x, rows, 2);
        ASSERT_TRUE(SameBits(y, {most.begin(), most.begin() + int64_t{rows} * size.out})) << rows << " rows";
      }
      for (int64_t i = 0; i < 997; ++i) {
        const int64_t r = i * 31 % counts.back(), o = i * 7919 % size.out;
        double expected = 0.0, magnitude = 0.0;
        for (int64_t c = 0; c < size.in; ++c) {
          const double product = double{rounded[r * size.in + c]} * double{weights[o * size.in + c]};
          expected += product;
          magnitude += std::abs(product);
        }
        ASSERT_NEAR(most[r * size.out + o], expected, magnitude * Allowed())
            << "row " << r << " output " << o << kBound;
      }
    }
  }
  UseSimdTarget(best);
  rows_are_steps = true;
}

// What a device can do in the same launch: a norm before the product, a gate behind it.
struct Folded {
  int64_t out, in;
  bool swiglu;
  std::vector<BF16> bits;
  std::vector<float> weights, norm;
  PackedLinear packed;

  Folded(int64_t out, int64_t in, bool swiglu)
      : out(out),
        in(in),
        swiglu(swiglu),
        bits(ToBF16(Normal(out * in, 17))),
        weights(ToFloat(bits)),
        norm(Normal(in, 18)),
        packed(PackedLinear::Pack(DType::kBF16, bits.data(), out, in, TestDevice())) {}

  static constexpr float kEps = 1e-5f;
  int64_t columns() const { return swiglu ? out / 2 : out; }

  std::vector<float> Run(const std::vector<float>& x, int32_t rows) const {
    EXPECT_TRUE(Folds(packed, LinearMath::kBF16));
    ThreadPool pool(1);
    std::vector<float> y(rows * out, kNaN), written;
    Linear(On(pool), {.weights = &packed,
                      .math = LinearMath::kBF16,
                      .x = x.data(),
                      .ldx = in,
                      .y = y.data(),
                      .ldy = out,
                      .rows = rows,
                      .step_rows = StepRows(rows),
                      .norm_weight = norm.data(),
                      .norm_eps = kEps,
                      .swiglu = swiglu});
    for (int32_t r = 0; r < rows; ++r) {
      written.insert(written.end(), y.begin() + r * out, y.begin() + r * out + columns());
    }
    return written;
  }

  // A sum and how far from it one may be. What is rounded to bf16 may fall to the other side where the factor of a
  // chunk's row differs in its last digit, which it does not change in a step's.
  struct Sum {
    double value, allowed;
  };
  Sum Truth(const float* x, int64_t o) const {
    double squares = 0.0, value = 0.0, size = 0.0, largest = 0.0;
    for (int64_t i = 0; i < in; ++i) squares += double{x[i]} * x[i];
    const double factor = 1.0 / std::sqrt(squares / static_cast<double>(in) + double{kEps});
    for (int64_t i = 0; i < in; ++i) {
      const auto before = rows_are_steps ? x[i] * norm[i] : static_cast<float>(x[i] * factor) * norm[i];
      const double product = double{FloatFromBF16(BF16FromFloat(before))} * weights[o * in + i];
      value += product;
      size += std::abs(product);
      largest = std::max(largest, std::abs(product));
    }
    if (rows_are_steps) return {value * factor, size * factor * 2 * Allowed()};
    return {value, size * 2 * Allowed() + largest / 64};
  }
  Sum Expected(const float* x, int64_t column) const {
    if (!swiglu) return Truth(x, column);
    const Sum gate = Truth(x, column), up = Truth(x, column + out / 2);
    const double silu = gate.value / (1.0 + std::exp(-gate.value));
    return {silu * up.value, 1.2 * gate.allowed * std::abs(up.value) + std::abs(silu) * up.allowed + 1e-6};
  }
};

TEST(LinearFolds, AgreeWithTheNormTheProductAndTheGate) {
  if (TestDevice() == nullptr) GTEST_SKIP() << "only a device folds";
  constexpr std::pair<int64_t, int64_t> kSizes[] = {{64, 96}, {2096, 136}, {96, 1032}, {48, 1031}};
  for (const auto& [out, in] : kSizes) {
    for (const bool swiglu : {false, true}) {
      const Folded folded(out, in, swiglu);
      ASSERT_TRUE(FoldsSwiglu(folded.packed));
      const std::vector<float> x = Normal(70 * in, 19);
      for (const std::string& target : Targets()) {
        ASSERT_TRUE(UseTarget(target));
        for (const int32_t rows : {1, 9, 17, 70}) {
          SCOPED_TRACE(testing::Message()
                       << out << " x " << in << (swiglu ? " gated, " : ", ") << target << ", " << rows);
          const std::vector<float> y = folded.Run(x, rows);
          for (int64_t i = 0; i < rows * folded.columns(); i += 1 + i % 5) {
            const auto [expected, allowed] =
                folded.Expected(x.data() + i / folded.columns() * in, i % folded.columns());
            ASSERT_NEAR(y[i], expected, allowed) << "value " << i << kBound;
          }
        }
      }
    }
  }
  rows_are_steps = true;
}

TEST(LinearFolds, ARowHasTheSameBitsAmongAnyNumberOfRows) {
  if (TestDevice() == nullptr) GTEST_SKIP() << "only a device folds";
  constexpr int32_t kMost = 140;
  constexpr std::pair<int64_t, int64_t> kSizes[] = {{2064, 130}, {96, 1032}, {64, 1031}};
  for (const auto& [out, in] : kSizes) {
    for (const bool swiglu : {false, true}) {
      const Folded folded(out, in, swiglu);
      const std::vector<float> x = Normal(kMost * in, 20);
      for (const std::string& target : Targets()) {
        ASSERT_TRUE(UseTarget(target));
        const std::vector<float> most = folded.Run(x, kMost);
        for (const int32_t rows : {1, 8, 9, 16, 17, 33, 65, 129}) {
          ASSERT_TRUE(SameBits(folded.Run(x, rows), {most.begin(), most.begin() + rows * folded.columns()}))
              << out << " x " << in << ", " << target << ", " << rows << " rows";
        }
      }
    }
  }
  rows_are_steps = true;
}

// Rows that are further apart than they are long, behind whose ends there is something else.
TEST(LinearFolds, ReadNothingBehindARowsEnd) {
  if (TestDevice() == nullptr) GTEST_SKIP() << "only a device folds";
  const int64_t in = 6, ldx = 8;
  const Folded folded(32, in, false);
  for (const std::string& target : Targets()) {
    ASSERT_TRUE(UseTarget(target));
    for (const int32_t rows : {3, 40}) {
      const std::vector<float> x = Normal(rows * in, 22);
      std::vector<float> apart(rows * ldx, kNaN), y(rows * folded.out, kNaN);
      for (int32_t r = 0; r < rows; ++r) std::copy_n(x.begin() + r * in, in, apart.begin() + r * ldx);
      ThreadPool pool(1);
      Linear(On(pool), {.weights = &folded.packed,
                        .math = LinearMath::kBF16,
                        .x = apart.data(),
                        .ldx = ldx,
                        .y = y.data(),
                        .ldy = folded.out,
                        .rows = rows,
                        .step_rows = StepRows(rows),
                        .norm_weight = folded.norm.data(),
                        .norm_eps = Folded::kEps});
      EXPECT_TRUE(SameBits(y, folded.Run(x, rows))) << target << ", " << rows << " rows";
    }
  }
  rows_are_steps = true;
}

TEST(LinearFolds, AreNotOfAProcessorNorInFloat32) {
  const std::vector<float> weights = Normal(32 * 8, 21);
  const std::vector<BF16> bits = ToBF16(weights);
  EXPECT_FALSE(Folds(PackedLinear::Pack(DType::kBF16, bits.data(), 32, 8), LinearMath::kBF16));
  EXPECT_FALSE(Folds(PackedLinear::Pack(DType::kF32, weights.data(), 32, 8, TestDevice()), LinearMath::kF32));
  EXPECT_FALSE(FoldsSwiglu(PackedLinear::Pack(DType::kBF16, bits.data(), 24, 8, TestDevice())));
}

TEST(LinearTest, NothingToDoIsDone) {
  const std::vector<float> weights = Normal(4, 14);
  const PackedLinear packed = PackedLinear::Pack(DType::kF32, weights.data(), 2, 2, TestDevice());
  EXPECT_TRUE(RunLinear(packed, LinearMath::kF32, {}, 0, 2).empty());
  const PackedLinear no_outputs = PackedLinear::Pack(DType::kF32, weights.data(), 0, 2, TestDevice());
  EXPECT_TRUE(RunLinear(no_outputs, LinearMath::kF32, {1.0f, 2.0f}, 1, 2).empty());
}

}  // namespace
}  // namespace palimpsest
