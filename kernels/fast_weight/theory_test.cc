// What theory says of fast-weight memories, without training: bounds, exact cases and expectations that hold for the
// equations of 2102.11174 and so must hold for the ops, by steps and by chunks.
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention_norm/attention_norm.h"
#include "kernels/common/op_testing.h"
#include "kernels/fast_weight/fast_weight.h"
#include "kernels/feature_map/feature_map.h"

namespace palimpsest {
namespace {

using Rows = std::vector<std::vector<float>>;

// One memory of one head, written and read through the ops. Keys of E features, values of `values` numbers.
class Memory {
 public:
  Memory(UpdateRule rule, int32_t features, int32_t values, bool by_chunks)
      : rule_(rule), E_(features), V_(values), by_chunks_(by_chunks), pool_(1) {
    state_.assign((int64_t{E_} * V_ + 15) / 16 * 16, 0.0f);
  }

  // Writes the pairs in order, each with strength `beta` (delta rule).
  void Write(const Rows& keys, const Rows& values, float beta = 1.0f) {
    Write(keys, values, std::vector<float>(keys.size(), beta));
  }
  void Write(const Rows& keys, const Rows& values, const std::vector<float>& betas) {
    if (!keys.empty()) Run(keys, keys, values, betas);
  }
  // What each query reads. Nothing is written: the values are the reads of zero strength, or zeros.
  Rows Read(const Rows& queries) {
    const std::vector<float> kept = state_;
    Rows result;
    for (const std::vector<float>& query : queries) {
      const Rows zero = {std::vector<float>(V_, 0.0f)};
      result.push_back(Run({query}, {std::vector<float>(E_, 0.0f)}, zero, {0.0f}).front());
      state_ = kept;
    }
    return result;
  }

 private:
  Rows Run(const Rows& queries, const Rows& keys, const Rows& values, const std::vector<float>& betas) {
    const auto flat = [](const Rows& rows) {
      std::vector<float> all;
      for (const auto& row : rows) all.insert(all.end(), row.begin(), row.end());
      return all;
    };
    const std::vector<float> q = flat(queries), k = flat(keys), v = flat(values);
    std::vector<float> out(queries.size() * V_);
    const auto rows = static_cast<int32_t>(queries.size());
    const int32_t at_once = by_chunks_ ? rows : 1;
    const std::vector<int32_t> slot = {0};
    for (int32_t at = 0; at < rows; at += at_once) {
      const std::vector<int32_t> row_begin = {0, at_once};
      FastWeight(On(pool_), {.shape = {.heads = 1, .value_heads = 1, .key_dim = E_, .value_dim = V_},
                             .rule = rule_,
                             .rows = {1, row_begin.data(), slot.data()},
                             .state = {reinterpret_cast<std::byte*>(state_.data()), 0},
                             .q = q.data() + int64_t{at} * E_,
                             .ldq = E_,
                             .k = k.data() + int64_t{at} * E_,
                             .ldk = E_,
                             .v = v.data() + int64_t{at} * V_,
                             .ldv = V_,
                             .beta = rule_ == UpdateRule::kSum ? nullptr : betas.data() + at,
                             .out = out.data() + int64_t{at} * V_,
                             .ldout = V_});
    }
    Rows result;
    for (int32_t r = 0; r < rows; ++r) result.emplace_back(out.begin() + int64_t{r} * V_, out.begin() + (r + 1) * V_);
    return result;
  }

  const UpdateRule rule_;
  const int32_t E_, V_;
  const bool by_chunks_;
  ThreadPool pool_;
  std::vector<float> state_;
};

double Dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

double SquaredError(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return sum;
}

Rows Gaussian(int32_t count, int32_t dim, uint32_t seed) {
  const std::vector<float> all = Normal(int64_t{count} * dim, seed);
  Rows rows;
  for (int32_t r = 0; r < count; ++r) rows.emplace_back(all.begin() + r * dim, all.begin() + (r + 1) * dim);
  return rows;
}

Rows UnitRows(int32_t count, int32_t dim, uint32_t seed) {
  Rows rows = Gaussian(count, dim, seed);
  for (auto& row : rows) {
    const double length = std::sqrt(Dot(row, row));
    for (float& value : row) value = static_cast<float>(value / length);
  }
  return rows;
}

// Gram-Schmidt; count <= dim.
Rows OrthonormalRows(int32_t count, int32_t dim, uint32_t seed) {
  Rows rows = Gaussian(count, dim, seed);
  for (int32_t i = 0; i < count; ++i) {
    for (int pass = 0; pass < 2; ++pass) {
      for (int32_t j = 0; j < i; ++j) {
        const double along = Dot(rows[i], rows[j]);
        for (int32_t c = 0; c < dim; ++c) rows[i][c] -= static_cast<float>(along * rows[j][c]);
      }
    }
    const double length = std::sqrt(Dot(rows[i], rows[i]));
    for (float& value : rows[i]) value = static_cast<float>(value / length);
  }
  return rows;
}

Rows OneHot(int32_t count, int32_t dim) {
  Rows rows(count, std::vector<float>(dim, 0.0f));
  for (int32_t r = 0; r < count; ++r) rows[r][r % dim] = 1.0f;
  return rows;
}

// FAVOR+ projects with values drawn from one seed.
Rows Features(const Rows& x, FeatureMapKind map, KeyNorm norm, int32_t rolls = 0, int32_t projections = 0) {
  ThreadPool pool(1);
  const auto dim = static_cast<int32_t>(x[0].size());
  const int32_t features = FeatureCount(map, dim, rolls, projections);
  const std::vector<float> projection = Normal(int64_t{dim} * projections, 13);
  Rows result;
  for (const auto& row : x) {
    std::vector<float> y(features);
    FeatureMap(On(pool), {.rows = 1,
                          .heads = 1,
                          .dim = dim,
                          .map = map,
                          .rolls = rolls,
                          .projections = projections,
                          .projection = projection.data(),
                          .norm = norm,
                          .x = row.data(),
                          .ldx = dim,
                          .y = y.data(),
                          .ldy = features});
    result.push_back(y);
  }
  return result;
}

class Theory : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(By, Theory, testing::Bool(), [](const auto& info) { return info.param ? "Chunks" : "Steps"; });

// Predictions of all queries form a matrix of rank E at most, the targets a permutation: half the mean squared error is
// at least (1 - E / U) / 2 whatever the rule, the map and a scalar normaliser (Eckart and Young). A memory that
// answered better would remember more than it can hold.
TEST_P(Theory, NoMemoryHoldsMoreThanItsRank) {
  constexpr int32_t kDim = 16, kPairs = 100;
  struct Case {
    FeatureMapKind map;
    int32_t rolls = 0;
    int32_t projections = 0;
  };
  for (const Case& c : {Case{FeatureMapKind::kElu1}, Case{FeatureMapKind::kIdentity}, Case{FeatureMapKind::kDpfp, 1},
                        Case{FeatureMapKind::kDpfp, 2}, Case{FeatureMapKind::kFavor, 0, 12}}) {
    for (const UpdateRule rule : {UpdateRule::kSum, UpdateRule::kDelta}) {
      const Rows keys = Features(Gaussian(kPairs, kDim, 11), c.map, KeyNorm::kL2, c.rolls, c.projections);
      const auto E = static_cast<int32_t>(keys[0].size());
      const Rows values = OneHot(kPairs, kPairs);
      Memory memory(rule, E, kPairs, GetParam());
      memory.Write(keys, values);
      const Rows read = memory.Read(keys);
      double loss = 0.0, scaled = 0.0;
      for (int32_t i = 0; i < kPairs; ++i) {
        loss += 0.5 * SquaredError(read[i], values[i]) / kPairs;
        // The best that any scalar could make of this prediction.
        const double along = Dot(read[i], values[i]), size = Dot(read[i], read[i]);
        scaled += 0.5 * (1.0 - along * along / size) / kPairs;
      }
      const double bound = 0.5 * std::max(0.0, 1.0 - 1.0 * E / kPairs);
      EXPECT_GE(loss, bound - 1e-5) << "E " << E;
      EXPECT_GE(scaled, bound - 1e-5) << "E " << E;
      EXPECT_LT(scaled, 0.5) << "it remembers nothing";
    }
  }
}

TEST_P(Theory, OrthonormalKeysAreExact) {
  constexpr int32_t kFeatures = 48, kPairs = 40, kValues = 9;
  const Rows keys = OrthonormalRows(kPairs, kFeatures, 3);
  const Rows first = Gaussian(kPairs, kValues, 4), second = Gaussian(kPairs, kValues, 5);
  for (const UpdateRule rule : {UpdateRule::kSum, UpdateRule::kDelta}) {
    Memory memory(rule, kFeatures, kValues, GetParam());
    memory.Write(keys, first);
    Rows read = memory.Read(keys);
    for (int32_t i = 0; i < kPairs; ++i) EXPECT_LT(SquaredError(read[i], first[i]), 1e-9);
    // Written once more, the delta rule replaces and the sum rule adds.
    memory.Write(keys, second);
    read = memory.Read(keys);
    for (int32_t i = 0; i < kPairs; ++i) {
      std::vector<float> expected = second[i];
      if (rule == UpdateRule::kSum) {
        for (int32_t c = 0; c < kValues; ++c) expected[c] += first[i][c];
      }
      EXPECT_LT(SquaredError(read[i], expected), 1e-9);
    }
  }
}

// A key written c times with distinct one-hot values reads back their average under the normalised sum rule, a loss of
// (c - 1) / (2 c); the delta rule reads back the last.
TEST_P(Theory, ANormalisedSumAveragesWhatADeltaReplaces) {
  constexpr int32_t kFeatures = 8, kTimes = 5;
  const Rows key = Features(Gaussian(1, kFeatures, 6), FeatureMapKind::kElu1, KeyNorm::kSum);
  const Rows keys(kTimes, key[0]), values = OneHot(kTimes, kTimes);
  Memory sum(UpdateRule::kSum, kFeatures, kTimes, GetParam());
  sum.Write(keys, values);
  // z = kTimes k, so the denominator of a read with k is kTimes k k.
  std::vector<float> z(16, 0.0f), q = key[0], k = key[0];
  ThreadPool pool(1);
  for (int32_t i = 0; i < kTimes; ++i) {
    q = key[0];
    const std::vector<int32_t> row_begin = {0, 1}, slot = {0};
    AttentionNorm(On(pool), {.heads = 1,
                             .dim = kFeatures,
                             .rows = {1, row_begin.data(), slot.data()},
                             .z = {reinterpret_cast<std::byte*>(z.data()), 0},
                             .eps = 0.0f,
                             .q = q.data(),
                             .ldq = kFeatures,
                             .k = k.data(),
                             .ldk = kFeatures});
  }
  const std::vector<float> average = sum.Read({q}).front();
  for (const float value : average) EXPECT_NEAR(value, 1.0 / kTimes, 1e-6);
  EXPECT_NEAR(0.5 * SquaredError(average, values.back()), 0.5 * (kTimes - 1.0) / kTimes, 1e-6);

  Rows unit_keys = keys;
  const double length = std::sqrt(Dot(key[0], key[0]));
  for (auto& row : unit_keys) {
    for (float& value : row) value = static_cast<float>(value / length);
  }
  Memory delta(UpdateRule::kDelta, kFeatures, kTimes, GetParam());
  delta.Write(unit_keys, values);
  EXPECT_LT(SquaredError(delta.Read({unit_keys[0]}).front(), values.back()), 1e-10);
}

// After a write with strength beta, a read with its key k gives (1 - a) old + a v, a = beta k.k: between the old value
// and the new for keys that sum to one, since then k.k <= 1.
TEST_P(Theory, AReadAfterAWriteLiesBetweenOldAndNew) {
  constexpr int32_t kFeatures = 24, kValues = 7;
  const Rows keys = Features(Gaussian(60, kFeatures, 7), FeatureMapKind::kElu1, KeyNorm::kSum);
  const Rows values = Gaussian(60, kValues, 8);
  Memory memory(UpdateRule::kDelta, kFeatures, kValues, GetParam());
  memory.Write(keys, values, 0.9f);
  for (int32_t i = 0; i < 20; ++i) {
    const float beta = 0.05f * static_cast<float>(i + 1);
    const std::vector<float> before = memory.Read({keys[i]}).front();
    memory.Write({keys[i]}, {values[20 + i]}, beta);
    const std::vector<float> after = memory.Read({keys[i]}).front();
    const double a = beta * Dot(keys[i], keys[i]);
    ASSERT_LE(a, 1.0);
    for (int32_t c = 0; c < kValues; ++c) {
      EXPECT_NEAR(after[c], (1.0 - a) * before[c] + a * values[20 + i][c], 2e-6);
    }
  }
}

// The same with keys normalised by the accumulator, read with the normalised key: a = beta' kappa.kappa. All keys are
// normalised in one call and all but the last are written before it, by steps or by chunks.
TEST_P(Theory, AReadAfterAWriteWithNormalisedKeysLiesBetweenOldAndNew) {
  constexpr int32_t kFeatures = 24, kValues = 7;
  const Rows values = Gaussian(100, kValues, 10);
  for (const int32_t n : {1, 2, 40, 100}) {
    const Rows keys = Features(Gaussian(n, kFeatures, 9), FeatureMapKind::kElu1, KeyNorm::kSum);
    std::vector<float> k, beta(n, 0.7f), z(32, 0.0f);
    for (const auto& key : keys) k.insert(k.end(), key.begin(), key.end());
    std::vector<float> q = k;
    ThreadPool pool(1);
    const std::vector<int32_t> row_begin = {0, n}, slot = {0};
    AttentionNorm(On(pool), {.heads = 1,
                             .dim = kFeatures,
                             .rows = {1, row_begin.data(), slot.data()},
                             .z = {reinterpret_cast<std::byte*>(z.data()), 0},
                             .normalise_keys = true,
                             .q = q.data(),
                             .ldq = kFeatures,
                             .k = k.data(),
                             .ldk = kFeatures,
                             .beta = beta.data()});
    Memory memory(UpdateRule::kDelta, kFeatures, kValues, GetParam());
    Rows kappas;
    for (int32_t i = 0; i < n; ++i) kappas.emplace_back(k.begin() + i * kFeatures, k.begin() + (i + 1) * kFeatures);
    memory.Write({kappas.begin(), kappas.end() - 1}, {values.begin(), values.begin() + n - 1},
                 {beta.begin(), beta.end() - 1});
    const std::vector<float>& kappa = kappas.back();
    const std::vector<float> before = memory.Read({kappa}).front();
    memory.Write({kappa}, {values[n - 1]}, {beta.back()});
    const std::vector<float> after = memory.Read({kappa}).front();
    const double a = beta.back() * Dot(kappa, kappa);
    // D is what z, the sum of the keys before, makes of this key: a = beta k.k D / (D + eps)^2.
    double D = n == 1 ? 1.0 : 0.0;
    for (int32_t i = 0; i + 1 < n; ++i) D += Dot(keys[i], keys.back());
    const double expected = 0.7 * Dot(keys.back(), keys.back()) * D / std::pow(D + 1e-5, 2);
    EXPECT_NEAR(a, expected, 1e-5 * expected) << n;
    for (int32_t c = 0; c < kValues; ++c) {
      EXPECT_NEAR(after[c], (1.0 - a) * before[c] + a * values[n - 1][c], 5e-6 * (1.0 + std::abs(before[c]))) << n;
    }
  }
}

// Mean squared error of an item, over all that were written, for random unit keys in 64 dimensions and one-hot values.
double MeanError(UpdateRule rule, int32_t pairs, bool by_chunks, int trials) {
  constexpr int32_t kFeatures = 64;
  double mean = 0.0;
  for (int trial = 0; trial < trials; ++trial) {
    const Rows keys = UnitRows(pairs, kFeatures, 100 * pairs + trial), values = OneHot(pairs, pairs);
    Memory memory(rule, kFeatures, pairs, by_chunks);
    memory.Write(keys, values);
    const Rows read = memory.Read(keys);
    for (int32_t i = 0; i < pairs; ++i) mean += SquaredError(read[i], values[i]) / pairs / trials;
  }
  return mean;
}

// Crosstalk of the sum rule grows without bound, (n - 1) / E.
TEST_P(Theory, RandomKeysInterfereUnderTheSumRule) {
  for (const int32_t n : {16, 32, 64, 128, 256, 512}) {
    const double expected = (n - 1) / 64.0;
    EXPECT_NEAR(MeanError(UpdateRule::kSum, n, GetParam(), std::max(256 / n, 1)), expected, 0.06 * expected) << n;
  }
}

// Under the delta rule with beta 1 old items fade and the error stays below 2: e_0 = 0 for the item just written, and
// for the m-th write after it e_(m+1) = e_m (1 - 2/E) + (2/E)(1 - r^m) + (1/E)(2 - r^(i+m)), r = 1 - 1/E, i items
// before.
double DeltaTheory(int32_t n, int32_t features) {
  const double E = features, r = 1.0 - 1.0 / E;
  double mean = 0.0;
  for (int32_t i = 1; i <= n; ++i) {
    double e = 0.0;
    for (int32_t m = 0; m < n - i; ++m) {
      e = e * (1.0 - 2.0 / E) + 2.0 / E * (1.0 - std::pow(r, m)) + (2.0 - std::pow(r, i + m)) / E;
    }
    mean += e / n;
  }
  return mean;
}

TEST_P(Theory, RandomKeysFadeUnderTheDeltaRule) {
  for (const int32_t n : {16, 32, 64, 128, 256, 512}) {
    const double expected = DeltaTheory(n, 64);
    EXPECT_NEAR(MeanError(UpdateRule::kDelta, n, GetParam(), 512 / n), expected, 0.08 * expected) << n;
    EXPECT_LT(expected, 2.0);
    if (n >= 128) {
      EXPECT_LT(expected, 0.7 * (n - 1) / 64.0) << "worse than the sum rule";
    }
  }
}

// Mean squared cosine of the features of Gaussian inputs: how much two random keys disturb each other.
TEST(TheoryOfFeatures, TheMapsSetTheCrosstalk) {
  struct Case {
    FeatureMapKind map;
    int32_t rolls;
    double expected;
  };
  for (const Case& c : {Case{FeatureMapKind::kIdentity, 0, 0.0155}, Case{FeatureMapKind::kElu1, 0, 0.476},
                        Case{FeatureMapKind::kDpfp, 1, 0.0195}, Case{FeatureMapKind::kDpfp, 2, 0.0160},
                        Case{FeatureMapKind::kDpfp, 3, 0.0149}}) {
    const Rows x = Features(Gaussian(300, 64, 12), c.map, KeyNorm::kL2, c.rolls);
    double mean = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
      for (size_t j = 0; j < i; ++j) mean += std::pow(Dot(x[i], x[j]), 2);
    }
    mean /= 0.5 * static_cast<double>(x.size()) * static_cast<double>(x.size() - 1);
    EXPECT_NEAR(mean, c.expected, 0.04 * c.expected) << static_cast<int>(c.map) << " " << c.rolls;
  }
}

}  // namespace
}  // namespace palimpsest
