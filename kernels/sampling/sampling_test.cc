#include "kernels/sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "kernels/common/op_testing.h"
#include "kernels/sampling/philox.h"

namespace palimpsest {
namespace {

using testing::Each;
using testing::ElementsAre;

constexpr float kHuge = std::numeric_limits<float>::max();

int32_t DrawAt(const std::vector<float>& logits, const SamplingSettings& settings, int64_t position,
               std::span<const int32_t> recent = {}) {
  static ThreadPool pool(1);
  SampleRow row;
  row.logits = logits.data();
  row.settings = &settings;
  row.recent = recent;
  row.position = position;
  Sample(On(pool), {&row, 1}, static_cast<int32_t>(logits.size()));
  EXPECT_TRUE(row.finite);
  return row.token;
}

SampleRow ReportOf(const std::vector<float>& logits, int32_t target, int32_t top) {
  ThreadPool pool(1);
  SampleRow row;
  row.logits = logits.data();
  row.target = target;
  row.top_logprobs = top;
  Sample(On(pool), {&row, 1}, static_cast<int32_t>(logits.size()));
  return row;
}

std::vector<double> LogSoftmax(const std::vector<float>& logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double total = 0.0;
  for (const float x : logits) total += std::exp(x - max);
  std::vector<double> result;
  for (const float x : logits) result.push_back(x - max - std::log(total));
  return result;
}

// Pearson's statistic in standard deviations from its mean; classes expected less than 5 times are pooled.
double ChiSquareDeviations(const std::vector<int64_t>& counts, const std::vector<double>& probability, int64_t draws) {
  double statistic = 0.0;
  int classes = 0;
  double rest_expected = 0.0;
  double rest_count = 0.0;
  const auto add = [&](double count, double expected) {
    statistic += (count - expected) * (count - expected) / expected;
    ++classes;
  };
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = probability[i] * draws;
    if (expected >= 5.0) {
      add(counts[i], expected);
    } else {
      rest_expected += expected;
      rest_count += counts[i];
    }
  }
  if (rest_expected >= 5.0) add(rest_count, rest_expected);
  if (classes < 2) return 0.0;
  return (statistic - (classes - 1)) / std::sqrt(2.0 * (classes - 1));
}

constexpr int32_t kSeen[] = {49, 3, 2, 3, 3, 1};
constexpr int32_t kOutside[] = {-1, 50, 3, 1 << 30};

struct Case {
  const char* name;
  int32_t vocabulary;
  float deviation;  // of the logits
  void (*change)(SamplingSettings& s);
  std::span<const int32_t> recent;
};

constexpr Case kCases[] = {
    {"plain", 1000, 2.0f, [](SamplingSettings&) {}, {}},
    {"one_token", 1, 2.0f, [](SamplingSettings&) {}, {}},
    {"two_tokens", 2, 2.0f, [](SamplingSettings&) {}, {}},
    {"below_one_vector", 13, 2.0f, [](SamplingSettings&) {}, {}},
    {"all_equal", 1000, 0.0f, [](SamplingSettings&) {}, {}},
    {"flat", 3001, 0.1f, [](SamplingSettings&) {}, {}},
    {"cold", 1000, 2.0f, [](SamplingSettings& s) { s.temperature = 0.3f; }, {}},
    {"hot", 1000, 2.0f, [](SamplingSettings& s) { s.temperature = 5.0f; }, {}},
    {"nearly_greedy", 1000, 2.0f, [](SamplingSettings& s) { s.temperature = 1e-3f; }, {}},
    {"hottest", 1000, 2.0f, [](SamplingSettings& s) { s.temperature = 100.0f; }, {}},
    {"top_k", 1000, 2.0f, [](SamplingSettings& s) { s.top_k = 40; }, {}},
    {"top_k_1", 1000, 2.0f, [](SamplingSettings& s) { s.top_k = 1; }, {}},
    {"top_k_of_nearly_all", 1000, 0.5f, [](SamplingSettings& s) { s.top_k = 999; }, {}},
    {"top_k_of_all", 1000, 0.5f, [](SamplingSettings& s) { s.top_k = 1000; }, {}},
    {"top_k_of_more_than_all", 1000, 0.5f, [](SamplingSettings& s) { s.top_k = 5000; }, {}},
    {"top_k_among_ties", 1000, 0.0f, [](SamplingSettings& s) { s.top_k = 37; }, {}},
    {"top_p", 1000, 2.0f, [](SamplingSettings& s) { s.top_p = 0.9f; }, {}},
    {"top_p_tiny", 1000, 2.0f, [](SamplingSettings& s) { s.top_p = 1e-6f; }, {}},
    {"top_p_nearly_one", 1000, 2.0f, [](SamplingSettings& s) { s.top_p = 0.999999f; }, {}},
    {"top_p_flat", 3001, 0.1f, [](SamplingSettings& s) { s.top_p = 0.8f; }, {}},
    {"top_p_among_ties", 1000, 0.0f, [](SamplingSettings& s) { s.top_p = 0.25f; }, {}},
    {"top_p_cold",
     1000,
     2.0f,
     [](SamplingSettings& s) {
       s.temperature = 0.3f;
       s.top_p = 0.9f;
     },
     {}},
    {"min_p", 1000, 2.0f, [](SamplingSettings& s) { s.min_p = 0.05f; }, {}},
    {"min_p_nearly_one", 1000, 2.0f, [](SamplingSettings& s) { s.min_p = 0.999f; }, {}},
    {"top_k_top_p",
     1000,
     1.0f,
     [](SamplingSettings& s) {
       s.top_k = 100;
       s.top_p = 0.7f;
     },
     {}},
    {"top_k_min_p",
     1000,
     1.0f,
     [](SamplingSettings& s) {
       s.top_k = 100;
       s.min_p = 0.2f;
     },
     {}},
    {"top_p_min_p",
     1000,
     1.0f,
     [](SamplingSettings& s) {
       s.top_p = 0.9f;
       s.min_p = 0.1f;
     },
     {}},
    {"bias",
     50,
     1.0f,
     [](SamplingSettings& s) {
       s.logit_bias = {{0, 2.0f}, {49, -2.0f}};
     },
     {}},
    {"repetition", 50, 1.0f, [](SamplingSettings& s) { s.repetition_penalty = 2.0f; }, kSeen},
    {"repetition_below_one", 50, 1.0f, [](SamplingSettings& s) { s.repetition_penalty = 0.5f; }, kSeen},
    {"presence", 50, 1.0f, [](SamplingSettings& s) { s.presence_penalty = 1.5f; }, kSeen},
    {"frequency", 50, 1.0f, [](SamplingSettings& s) { s.frequency_penalty = 0.5f; }, kSeen},
    {"negative_penalties", 50, 1.0f,
     [](SamplingSettings& s) {
       s.presence_penalty = -1.0f;
       s.frequency_penalty = -0.5f;
     },
     kSeen},
    {"recent_outside_the_vocabulary", 50, 1.0f, [](SamplingSettings& s) { s.presence_penalty = 1.5f; }, kOutside},
    {"everything", 1000, 2.0f,
     [](SamplingSettings& s) {
       s.logit_bias = {{3, 4.0f}, {7, -100.0f}, {999, 100.0f}};
       s.repetition_penalty = 1.3f;
       s.presence_penalty = 0.4f;
       s.frequency_penalty = 0.2f;
       s.temperature = 8.0f;
       s.top_k = 200;
       s.top_p = 0.95f;
       s.min_p = 0.01f;
     },
     kSeen},
};

using SamplingTest = OpTest;
INSTANTIATE_TEST_SUITE_P(Targets, SamplingTest, testing::ValuesIn(SimdTargets()));

TEST_P(SamplingTest, DrawsEachTokenAsOftenAsTheReferenceSays) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    const std::vector<float> logits = Normal(c.vocabulary, 5, c.deviation);
    SamplingSettings settings;
    settings.seed = 123;
    c.change(settings);
    const std::vector<double> probability = SamplingDistributionReference(logits, settings, c.recent);
    const int64_t draws = TestDevice() == nullptr ? 10000 : 2000;  // one by one, on an emulator perhaps
    std::vector<int64_t> counts(c.vocabulary, 0);
    for (int64_t position = 0; position < draws; ++position) {
      ++counts[DrawAt(logits, settings, position, c.recent)];
    }
    for (int32_t id = 0; id < c.vocabulary; ++id) {
      if (probability[id] == 0.0) {
        ASSERT_EQ(counts[id], 0) << "token " << id << " is outside the support";
      }
      if (probability[id] * draws > 40.0) {
        ASSERT_GT(counts[id], 0) << "token " << id << " is inside the support";
      }
    }
    EXPECT_LT(ChiSquareDeviations(counts, probability, draws), 5.0);
  }
}

TEST_P(SamplingTest, TheChiSquareTestNoticesAWrongTemperature) {
  const std::vector<float> logits = Normal(1000, 5, 2.0f);
  const std::vector<double> probability = SamplingDistributionReference(logits, {.temperature = 1.2f}, {});
  std::vector<int64_t> counts(1000, 0);
  for (int64_t position = 0; position < 20000; ++position) ++counts[DrawAt(logits, {}, position)];
  EXPECT_GT(ChiSquareDeviations(counts, probability, 20000), 5.0);
}

TEST_P(SamplingTest, TiesAtACutKeepTheLowerIds) {
  std::vector<float> logits(500, 1.0f);
  logits[250] = 2.0f;
  logits[499] = -0.0f;
  std::set<int32_t> drawn;
  for (int64_t position = 0; position < 2000; ++position) drawn.insert(DrawAt(logits, {.top_k = 4}, position));
  EXPECT_THAT(drawn, ElementsAre(0, 1, 2, 250));
}

TEST_P(SamplingTest, TopPKeepsExactlyTheTokensThatReachIt) {
  // Probabilities 1/2, 1/4, 1/8, 1/8, which are exact.
  const std::vector<float> logits = {0.0f, std::log(4.0f), std::log(2.0f), 0.0f};
  const auto support = [&](float top_p) {
    std::set<int32_t> drawn;
    for (int64_t position = 0; position < 500; ++position) drawn.insert(DrawAt(logits, {.top_p = top_p}, position));
    return drawn;
  };
  EXPECT_THAT(support(0.4f), ElementsAre(1));
  EXPECT_THAT(support(0.6f), ElementsAre(1, 2));
  EXPECT_THAT(support(0.8f), ElementsAre(0, 1, 2));
  EXPECT_THAT(support(0.9f), ElementsAre(0, 1, 2, 3));
}

// What a device draws: sums of integers, whose order does not show.
int32_t DrawFromIntegers(const std::vector<float>& logits, const SamplingSettings& settings, int64_t position) {
  const auto n = static_cast<int32_t>(logits.size());
  const auto scale = static_cast<float>(1.0 / double{settings.temperature});
  std::vector<int32_t> ranked(n);
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const float max = logits[ranked[0]];
  const auto relative = [&](int32_t id) { return std::exp((logits[id] - max) * scale); };
  const auto weight = [&](int32_t id) { return static_cast<uint64_t>(double{relative(id)} * 0x1p40 + 0.5); };
  size_t kept = settings.top_k > 0 && settings.top_k < n ? settings.top_k : n;
  if (settings.top_p < 1.0f) {
    uint64_t total = 0, sum = 0;
    for (size_t i = 0; i < kept; ++i) total += weight(ranked[i]);
    const auto goal = static_cast<uint64_t>(static_cast<double>(total) * double{settings.top_p});
    size_t nucleus = 0;
    while (sum < std::max<uint64_t>(goal, 1)) sum += weight(ranked[nucleus++]);
    kept = nucleus;
  }
  std::vector<uint64_t> shares(n, 0);
  uint64_t total = 0;
  for (size_t i = 0; i < kept; ++i) {
    if (relative(ranked[i]) < settings.min_p) continue;
    total += shares[ranked[i]] = weight(ranked[i]);
  }
  const auto product = static_cast<unsigned __int128>(total) * UniformBits(settings.seed, position);
  const auto point = static_cast<uint64_t>(product >> 64);
  uint64_t sum = 0;
  for (int32_t id = 0;; ++id) {
    sum += shares[id];
    if (sum > point) return id;
  }
}

TEST_P(SamplingTest, ADeviceKeepsExactlyTheRanksThatItShould) {
  if (TestDevice() == nullptr) GTEST_SKIP() << "the processor sums in floating point";
  const std::pair<const char*, void (*)(std::vector<float>&)> kChanges[] = {
      {"normal", [](std::vector<float>&) {}},
      {"all equal", [](std::vector<float>& logits) { std::fill(logits.begin(), logits.end(), -2.5f); }},
      {"ties",
       [](std::vector<float>& logits) {
         for (float& x : logits) x = std::round(x);
       }},
      {"nearly equal",
       [](std::vector<float>& logits) {
         for (float& x : logits) x = 7.0f + 1e-3f * x;
       }},
      {"far apart",
       [](std::vector<float>& logits) {
         for (float& x : logits) x *= 300.0f;
       }},
      {"one huge", [](std::vector<float>& logits) { logits[logits.size() / 3] = 1e30f; }},
      {"one very small", [](std::vector<float>& logits) { logits[logits.size() / 3] = -kHuge; }},
  };
  const SamplingSettings kSettings[] = {
      {},
      {.temperature = 0.8f, .top_k = 50},
      {.temperature = 0.8f, .top_p = 0.9f},
      {.temperature = 0.8f, .top_k = 50, .top_p = 0.9f},
      {.temperature = 3.0f, .top_k = 2500, .top_p = 0.999f},
      {.temperature = 0.02f, .top_k = 1100, .top_p = 0.5f},
      {.temperature = 50.0f, .top_p = 0.7f, .min_p = 0.9f},
  };
  int draws = 0, others = 0;
  for (const int32_t vocabulary : {4000, 30001, 36865, 248320}) {
    for (const auto& [name, change] : std::span(kChanges).first(vocabulary < 100000 ? std::size(kChanges) : 1)) {
      std::vector<float> logits = Normal(vocabulary, 7, 3.0f);
      change(logits);
      for (const SamplingSettings& settings : kSettings) {
        for (int64_t position = 0; position < (vocabulary < 10000 ? 5 : 1); ++position) {
          const int32_t expected = DrawFromIntegers(logits, settings, position);
          const int32_t drawn = DrawAt(logits, settings, position);
          ++draws;
          if (drawn == expected) continue;
          ++others;
          std::printf("%s, %d tokens, settings %d, position %d: %d, expected %d\n", name, vocabulary,
                      static_cast<int>(&settings - kSettings), static_cast<int>(position), drawn, expected);
        }
      }
    }
  }
  // A device's exponential may round otherwise, which moves a draw only where it lies next to a border.
  EXPECT_LE(others, draws / 50);
}

TEST_P(SamplingTest, TemperatureZeroTakesTheLowestIdOfTheGreatestLogit) {
  for (const int32_t vocabulary : {1, 2, 15, 16, 17, 333}) {
    std::vector<float> logits = Normal(vocabulary, 3);
    const auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    EXPECT_EQ(DrawAt(logits, {.temperature = 0.0f}, 0), best);
    for (const int32_t first : {0, vocabulary / 2, vocabulary - 1}) {
      std::fill(logits.begin(), logits.end(), -1.0f);
      std::fill(logits.begin() + first, logits.end(), 0.0f);
      logits.back() = -0.0f;
      EXPECT_EQ(DrawAt(logits, {.temperature = 0.0f, .top_k = 3, .top_p = 0.1f}, 0), first);
    }
  }
  EXPECT_EQ(DrawAt(std::vector<float>(9, -7.0f), {.logit_bias = {{5, 1.0f}}, .temperature = 0.0f}, 0), 5);
}

TEST_P(SamplingTest, RepetitionPenaltyMovesAnySignTowardsLess) {
  const std::vector<int32_t> recent = {0, 1};
  const SamplingSettings settings = {.repetition_penalty = 2.0f, .temperature = 0.0f};
  EXPECT_EQ(DrawAt({1.5f, -5.0f, 1.0f}, settings, 0, recent), 2);    // 1.5 becomes 0.75
  EXPECT_EQ(DrawAt({-9.0f, -1.0f, -1.5f}, settings, 0, recent), 2);  // -1 becomes -2
}

TEST_P(SamplingTest, ExtremeValuesDrawWithinTheVocabulary) {
  const std::vector<std::vector<float>> rows = {
      {1e30f, -1e30f, 0.0f},         {-1e30f, -1e30f, -1e30f}, {kHuge, -kHuge, kHuge},
      {-kHuge, -kHuge, -kHuge},      {1e-45f, 0.0f, -1e-45f},  {kHuge},
      std::vector<float>(70, 1e30f),
  };
  std::vector<SamplingSettings> settings;
  for (const float temperature : {0.0f, 1e-45f, 1e-3f, 1.0f, 100.0f}) {
    for (const float top_p : {1e-7f, 0.5f, std::nextafter(1.0f, 0.0f), 1.0f}) {
      for (const int32_t top_k : {0, 1, 2}) {
        for (const float min_p : {0.0f, 0.5f, std::nextafter(1.0f, 0.0f)}) {
          settings.push_back({.temperature = temperature, .top_k = top_k, .top_p = top_p, .min_p = min_p});
          settings.push_back(settings.back());
          settings.back().logit_bias = {{0, 100.0f}};
          settings.back().repetition_penalty = 1e-30f;
          settings.back().frequency_penalty = 10.0f;
        }
      }
    }
  }
  const std::vector<int32_t> recent(256, 0);
  for (const std::vector<float>& logits : rows) {
    for (const SamplingSettings& s : settings) {
      for (int64_t position = 0; position < 4; ++position) {
        const int32_t token = DrawAt(logits, s, position, recent);
        ASSERT_GE(token, 0);
        ASSERT_LT(token, logits.size());
        if (s.logit_bias.empty() && s.temperature <= 1.0f && logits.size() == 3 && logits[0] == 1e30f) {
          ASSERT_EQ(token, 0);
        }
      }
    }
  }
}

TEST_P(SamplingTest, ARowThatIsNotFiniteSaysSoAndNothingElse) {
  ThreadPool pool(1);
  const SamplingSettings settings;
  for (const int32_t vocabulary : {1, 16, 37, 1000}) {
    for (const int32_t at : {0, vocabulary / 2, vocabulary - 1}) {
      for (const float value : {kNaN, -kNaN, kInfinity, -kInfinity}) {
        std::vector<float> logits = Normal(vocabulary, 3);
        logits[at] = value;
        SampleRow row;
        row.logits = logits.data();
        row.settings = &settings;
        row.want_logprob = true;
        row.top_logprobs = 5;
        Sample(On(pool), {&row, 1}, vocabulary);
        EXPECT_FALSE(row.finite);
        EXPECT_EQ(row.token, -1);
        EXPECT_EQ(row.logprob, 0.0f);
        EXPECT_TRUE(row.top.empty());
      }
    }
  }
}

TEST_P(SamplingTest, LogprobsAreThoseOfTheRawLogits) {
  for (const int32_t vocabulary : {1, 5, 256, 257, 4096, 50000, 262144}) {
    for (const float deviation : {0.0f, 0.01f, 3.0f, 1000.0f}) {
      SCOPED_TRACE(testing::Message() << vocabulary << " tokens, deviation " << deviation);
      const std::vector<float> logits = Normal(vocabulary, 11, deviation);
      const std::vector<double> expected = LogSoftmax(logits);
      const SampleRow row = ReportOf(logits, vocabulary - 1, 0);
      EXPECT_EQ(row.token, vocabulary - 1);
      EXPECT_NEAR(row.logprob, expected.back(), 1e-5 + 1e-7 * std::abs(expected.back()));
    }
  }
}

TEST_P(SamplingTest, LogprobOfADrawnTokenIgnoresHowItWasDrawn) {
  ThreadPool pool(1);
  const std::vector<float> logits = Normal(300, 12);
  const std::vector<double> expected = LogSoftmax(logits);
  const SamplingSettings settings = {
      .logit_bias = {{4, 50.0f}}, .repetition_penalty = 3.0f, .temperature = 0.5f, .top_k = 3};
  const std::vector<int32_t> recent = {4, 4};
  SampleRow row;
  row.logits = logits.data();
  row.settings = &settings;
  row.recent = recent;
  row.want_logprob = true;
  row.top_logprobs = 2;
  Sample(On(pool), {&row, 1}, 300);
  EXPECT_EQ(row.token, 4);
  EXPECT_NEAR(row.logprob, expected[4], 1e-5);
  ASSERT_EQ(row.top.size(), 2);
  EXPECT_NEAR(row.top[0].logprob, *std::max_element(expected.begin(), expected.end()), 1e-5);
}

TEST_P(SamplingTest, LogprobsOfExtremeLogitsAreFinite) {
  EXPECT_EQ(ReportOf({kHuge, -kHuge}, 1, 0).logprob, -kHuge);
  EXPECT_EQ(ReportOf({kHuge, -kHuge}, 0, 0).logprob, 0.0f);
  EXPECT_NEAR(ReportOf({1e30f, 1e30f}, 0, 0).logprob, -std::log(2.0f), 1e-6f);
}

TEST_P(SamplingTest, TopLogprobsAreThoseOfAFullSort) {
  for (const int32_t vocabulary : {1, 3, 20, 100, 1000, 33333}) {
    for (const bool ties : {false, true}) {
      std::vector<float> logits = Normal(vocabulary, 13);
      if (ties) {
        for (float& x : logits) x = std::round(x);
      }
      const std::vector<double> expected = LogSoftmax(logits);
      std::vector<int32_t> ranked(vocabulary);
      std::iota(ranked.begin(), ranked.end(), 0);
      std::stable_sort(ranked.begin(), ranked.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
      for (const int32_t top : {1, 5, 20, 60}) {
        SCOPED_TRACE(testing::Message() << top << " of " << vocabulary << (ties ? " with ties" : ""));
        const SampleRow row = ReportOf(logits, -1, top);
        ASSERT_EQ(row.top.size(), std::min(top, vocabulary));
        for (size_t i = 0; i < row.top.size(); ++i) {
          EXPECT_EQ(row.top[i].id, ranked[i]);
          EXPECT_NEAR(row.top[i].logprob, expected[ranked[i]], 1e-5);
        }
      }
    }
  }
}

void ExpectTheSameAnswersAloneAndTogether(int32_t vocabulary, int count, int most_threads) {
  const std::vector<SamplingSettings> settings = {{.seed = 1},
                                                  {.temperature = 0.0f},
                                                  {.top_k = 40, .seed = 2},
                                                  {.top_p = 0.9f, .seed = 3},
                                                  {.min_p = 0.1f},
                                                  {.repetition_penalty = 1.5f, .top_k = 40, .top_p = 0.9f},
                                                  {.logit_bias = {{1, 2.0f}, {5000, 9.0f}}, .top_k = 2000}};
  const std::vector<int32_t> recent = {3, vocabulary - 1, 3};
  std::vector<std::vector<float>> logits;
  for (int r = 0; r < count; ++r) logits.push_back(Normal(vocabulary, r));
  logits[17][5] = kNaN;
  const auto make = [&](int r) {
    SampleRow row;
    row.logits = logits[r].data();
    row.settings = &settings[r % settings.size()];
    row.recent = recent;
    row.position = r * 1000;
    row.want_logprob = true;
    row.top_logprobs = r % 4;
    return row;
  };
  std::vector<SampleRow> alone;
  for (int r = 0; r < count; ++r) {
    ThreadPool pool(1);
    alone.push_back(make(r));
    Sample(On(pool), {&alone.back(), 1}, vocabulary);
  }
  for (int threads = 1; threads <= most_threads; ++threads) {
    ThreadPool pool(threads);
    std::vector<SampleRow> rows;
    for (int r = 0; r < count; ++r) rows.push_back(make(r));
    Sample(On(pool), rows, vocabulary);
    for (int r = 0; r < count; ++r) {
      SCOPED_TRACE(testing::Message() << "row " << r << ", " << threads << " threads");
      EXPECT_EQ(rows[r].finite, r != 17);
      EXPECT_EQ(rows[r].token, alone[r].token);
      EXPECT_TRUE(SameBits({&rows[r].logprob, 1}, {&alone[r].logprob, 1}));
      ASSERT_EQ(rows[r].top.size(), alone[r].top.size());
      for (size_t i = 0; i < rows[r].top.size(); ++i) {
        EXPECT_EQ(rows[r].top[i].id, alone[r].top[i].id);
        EXPECT_TRUE(SameBits({&rows[r].top[i].logprob, 1}, {&alone[r].top[i].logprob, 1}));
      }
    }
  }
}

TEST_P(SamplingTest, RowsGiveTheSameAnswersAloneTogetherAndOnAnyNumberOfThreads) {
  ExpectTheSameAnswersAloneAndTogether(6001, 23, 4);
}

// A device has several blocks for a row of a large vocabulary, unless there are many rows.
TEST_P(SamplingTest, RowsOfALargeVocabularyGiveTheSameAnswersAloneAndTogether) {
  ExpectTheSameAnswersAloneAndTogether(33001, 70, 1);
}

TEST(UniformAtTest, PhiloxGivesThePublishedVectors) {
  // kat_vectors of Random123, philox4x32 with 10 rounds.
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}), ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(UniformAtTest, DependsOnEveryBitOfSeedAndPositionAndStaysInRange) {
  std::set<double> values;
  const auto add = [&](uint64_t seed, int64_t position) {
    const double u = UniformAt(seed, position);
    EXPECT_GE(u, 0.0);
    EXPECT_LT(u, 1.0);
    values.insert(u);
  };
  add(0, 0);
  for (int bit = 0; bit < 64; ++bit) add(uint64_t{1} << bit, 0);
  for (int bit = 0; bit < 64; ++bit) add(0, static_cast<int64_t>(uint64_t{1} << bit));
  EXPECT_EQ(values.size(), 129);
  EXPECT_EQ(UniformAt(0, 0), (uint64_t{0x6627e8d5} << 21 | 0xe169c58d >> 11) * 0x1p-53);
}

}  // namespace
}  // namespace palimpsest
