#include "kernels/attention_norm/attention_norm.h"

#include <cmath>
#include <string>
#include <vector>

#include "kernels/common/op_testing.h"

namespace palimpsest {
namespace {

struct Case {
  const char* name;
  int32_t heads;
  int32_t dim;
  bool keys;
  bool scaled;
  std::vector<int32_t> lengths;
};

const std::vector<Case>& Cases() {
  static const auto* const cases = new std::vector<Case>{
      {"output", 2, 64, false, false, {5, 1, 70}},
      {"output_scaled_denominator", 2, 64, false, true, {5, 1, 70}},
      {"keys", 2, 64, true, false, {5, 1, 70}},
      {"odd", 3, 37, true, false, {9, 2}},
      {"one_feature", 3, 1, true, false, {4}},
      {"wide", 1, 1029, true, false, {3, 200}},
      {"steps", 4, 32, true, false, {1, 1, 1, 1, 1, 1, 1}},
      {"an_empty_sequence", 2, 16, true, true, {3, 0, 2}},
  };
  return *cases;
}

// Features are positive, as the paper's maps make them, and sum to about one.
Matrix Features(int64_t rows, const Case& c, uint32_t seed) {
  Matrix m = Matrix::Random(rows, int64_t{c.heads} * c.dim, seed);
  for (float& value : m.values) value = std::abs(value) / static_cast<float>(c.dim);
  return m;
}

struct Data {
  explicit Data(const Case& c) : c(c) {
    for (const int32_t length : c.lengths) row_begin.push_back(row_begin.back() + length);
    for (size_t s = 0; s < c.lengths.size(); ++s) slots.push_back(static_cast<int32_t>(c.lengths.size() - 1 - s));
    const int32_t rows = row_begin.back();
    q = Features(rows, c, 1);
    k = Features(rows, c, 2);
    beta = Normal(int64_t{rows} * c.heads, 3);
    stride = (int64_t{c.heads} * c.dim + 15) / 16 * 16;
    z.assign(stride * std::ssize(slots), 0.0f);
  }

  // Rows [begin, end) of sequence `s`, or all of all.
  AttentionNormParams Params() {
    AttentionNormParams p;
    p.heads = c.heads;
    p.dim = c.dim;
    p.rows = {static_cast<int32_t>(slots.size()), row_begin.data(), slots.data()};
    p.z = {reinterpret_cast<std::byte*>(z.data()), stride * int64_t{sizeof(float)}};
    p.normalise_keys = c.keys;
    p.scale = 0.25f;
    p.scaled_denominator = c.scaled;
    p.q = q.data();
    p.ldq = q.stride;
    p.k = k.data();
    p.ldk = k.stride;
    p.beta = beta.data();
    return p;
  }
  void Run(int threads) {
    ThreadPool pool(threads);
    AttentionNorm(On(pool), Params());
  }

  const Case& c;
  std::vector<int32_t> row_begin = {0}, slots;
  Matrix q, k;
  std::vector<float> beta, z;
  int64_t stride = 0;
};

void ExpectSame(const Data& a, const Data& b) {
  EXPECT_TRUE(SameBits(a.q, b.q));
  EXPECT_TRUE(SameBits(a.k, b.k));
  EXPECT_TRUE(SameBits(a.beta, b.beta));
  EXPECT_TRUE(SameBits(a.z, b.z));
}

using AttentionNormTest = OpTest;
INSTANTIATE_TEST_SUITE_P(Targets, AttentionNormTest, testing::ValuesIn(SimdTargets()));

TEST_P(AttentionNormTest, AgreesWithTheReference) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(c.name);
    Data expected(c), actual(c);
    for (int call = 0; call < 2; ++call) {  // the second from a z that is not fresh
      AttentionNormReference(expected.Params());
      actual.Run(2);
      EXPECT_TRUE(Near(actual.q, expected.q, 1e-5));
      EXPECT_TRUE(Near(actual.k, expected.k, 1e-5));
      EXPECT_TRUE(Near(actual.beta, expected.beta, 1e-5));
      EXPECT_TRUE(Near(actual.z, expected.z, 1e-5));
    }
  }
}

TEST_P(AttentionNormTest, KeysAreLeftAloneUnlessTheyAreNormalised) {
  for (const Case& c : Cases()) {
    Data before(c), after(c);
    after.Run(1);
    const bool untouched = SameBits(before.k, after.k) && SameBits(before.beta, after.beta);
    EXPECT_EQ(untouched, !c.keys) << c.name;
  }
}

TEST_P(AttentionNormTest, BitsDependOnTheSequenceAlone) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(c.name);
    Data together(c);
    together.Run(1);
    for (int threads = 2; threads <= 4; ++threads) {
      Data more(c);
      more.Run(threads);
      ExpectSame(more, together);
    }
    // Row by row, each sequence by itself.
    Data apart(c);
    ThreadPool pool(1);
    for (size_t s = 0; s < c.lengths.size(); ++s) {
      for (int32_t row = apart.row_begin[s]; row < apart.row_begin[s + 1]; ++row) {
        AttentionNormParams p = apart.Params();
        const std::vector<int32_t> one = {0, 1};
        p.rows = {1, one.data(), &apart.slots[s]};
        p.q = apart.q.row(row);
        p.k = apart.k.row(row);
        p.beta += int64_t{row} * c.heads;
        AttentionNorm(On(pool), p);
      }
    }
    ExpectSame(apart, together);
  }
}

TEST_P(AttentionNormTest, NaNStaysInItsHeadAndSequence) {
  const Case& c = Cases()[2];
  Data good(c), bad(c);
  bad.k.row(1)[3] = kNaN;  // first head of the first sequence, whose slot is the last
  good.Run(2);
  bad.Run(2);
  EXPECT_TRUE(std::isnan(bad.q.row(1)[0]));
  for (int64_t r = 0; r < good.q.rows; ++r) {
    const int64_t from = r < good.row_begin[1] ? c.dim : 0;
    EXPECT_TRUE(SameBits(std::span(bad.q.row(r) + from, bad.q.width - from),
                         std::span(good.q.row(r) + from, good.q.width - from)));
  }
}

}  // namespace
}  // namespace palimpsest
