#include "kernels/fast_weight/fast_weight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <ostream>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/common/aligned_buffer.h"
#include "kernels/common/op_testing.h"
#include "kernels/common/simd.h"

namespace palimpsest {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return testing::AssertionFailure() << a.size() << " values against " << b.size();
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) {
      return testing::AssertionFailure() << "value " << i << " is " << a[i] << " against " << b[i];
    }
  }
  return testing::AssertionSuccess();
}

// The largest difference, relative to the largest value expected; infinite if a value is not finite.
double RelativeError(const std::vector<float>& actual, const std::vector<float>& expected) {
  double error = 0.0, size = 1e-30;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(actual[i])) return std::numeric_limits<double>::infinity();
    error = std::max(error, std::abs(double{actual[i]} - double{expected[i]}));
    size = std::max(size, std::abs(double{expected[i]}));
  }
  return error / size;
}

enum class Keys { kUnit, kNearlyEqual };
enum class Decay { kMild, kStrong, kMixed };  // a step's log: about -0.05; -5 to -20; mostly mild, sometimes -1000

struct Case {
  const char* name;
  UpdateRule rule = UpdateRule::kDelta;
  FastWeightShape shape = {.heads = 2, .value_heads = 2, .key_dim = 64, .value_dim = 64};
  std::vector<int32_t> lengths = {65};
  float max_beta = 1.0f;
  Keys keys = Keys::kUnit;
  Decay decay = Decay::kMild;
  DType dtype = DType::kF32;  // of the states
  int32_t sub_steps = 1;
  double tolerance = 3e-6;
  friend void PrintTo(const Case& c, std::ostream* os) { *os << c.name; }
};

// The inputs of a call, and its outputs, which start as NaN. Sequence s uses slot (3 s + 1) of twice as many as needed.
struct Call {
  explicit Call(const Case& c, uint32_t seed = 1)
      : shape(c.shape), rule(c.rule), sub_steps(c.sub_steps), dtype(c.dtype) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    row_begin = {0};
    for (const int32_t length : c.lengths) row_begin.push_back(row_begin.back() + length);
    for (size_t s = 0; s < c.lengths.size(); ++s) slot.push_back(static_cast<int32_t>(3 * s + 1));
    const int64_t rows = row_begin.back();
    const int32_t K = shape.key_dim;
    q.resize(rows * shape.heads * K);
    for (float& value : q) value = normal(random) / std::sqrt(static_cast<float>(K));
    std::vector<float> common(K);
    for (float& value : common) value = normal(random);
    k.resize(q.size() * sub_steps);
    for (int64_t at = 0; at < static_cast<int64_t>(k.size()); at += K) {
      double squares = 0.0;
      for (int32_t i = 0; i < K; ++i) {
        k[at + i] = c.keys == Keys::kUnit ? normal(random) : common[i] + 0.05f * normal(random);
        squares += double{k[at + i]} * k[at + i];
      }
      for (int32_t i = 0; i < K; ++i) k[at + i] = static_cast<float>(k[at + i] / std::sqrt(squares));
    }
    v.resize(rows * sub_steps * shape.value_heads * shape.value_dim);
    for (float& value : v) value = normal(random);
    beta.resize(rows * sub_steps * shape.value_heads);
    for (float& value : beta) value = c.max_beta * uniform(random);
    log_decay.resize(rows * shape.value_heads * (DecaysChannels(rule) ? K : 1));
    for (float& value : log_decay) {
      value = c.decay == Decay::kStrong ? -5.0f - 15.0f * uniform(random) : -0.1f * uniform(random);
      if (c.decay == Decay::kMixed && uniform(random) < 0.1f) value = -1000.0f;
    }
    if (rule == UpdateRule::kLowRank) {
      // As RWKV-7 has them: what is removed lies along a unit vector, with a strength of up to max_beta for each
      // channel.
      remove.resize(log_decay.size());
      insert.resize(remove.size());
      for (int64_t at = 0; at < static_cast<int64_t>(remove.size()); at += K) {
        double squares = 0.0;
        for (int32_t i = 0; i < K; ++i) {
          remove[at + i] = normal(random);
          squares += double{remove[at + i]} * remove[at + i];
        }
        for (int32_t i = 0; i < K; ++i) {
          remove[at + i] = static_cast<float>(-remove[at + i] / std::sqrt(squares));
          insert[at + i] = -remove[at + i] * c.max_beta * uniform(random);
        }
      }
    }
    out.assign(v.size() / sub_steps, kNaN);
    std::vector<float> before((3 * slot.size() + 1) * slot_floats());
    for (float& value : before) value = normal(random);
    SetStates(before);
  }

  int64_t slot_floats() const { return (shape.state_floats() + 15) / 16 * 16; }

  // The states as float32, whatever they are kept as; slots are as many values apart.
  std::vector<float> States() const {
    if (dtype == DType::kF32) return states;
    std::vector<float> floats(rounded_states.size());
    std::ranges::transform(rounded_states, floats.begin(), FloatFromBF16);
    return floats;
  }
  void SetStates(const std::vector<float>& floats) {
    if (dtype == DType::kF32) {
      states = floats;
      return;
    }
    rounded_states.resize(floats.size());
    std::ranges::transform(floats, rounded_states.begin(), BF16FromFloat);
  }

  FastWeightParams Params() {
    FastWeightParams params;
    params.shape = shape;
    params.rule = rule;
    params.sub_steps = sub_steps;
    params.rows = {static_cast<int32_t>(slot.size()), row_begin.data(), slot.data()};
    params.state = {dtype == DType::kF32 ? reinterpret_cast<std::byte*>(states.data())
                                         : reinterpret_cast<std::byte*>(rounded_states.data()),
                    slot_floats() * SizeOf(dtype), dtype};
    params.q = q.data();
    params.ldq = shape.heads * shape.key_dim;
    params.k = k.data();
    params.ldk = sub_steps * params.ldq;
    params.v = v.data();
    params.ldv = int64_t{sub_steps} * shape.value_heads * shape.value_dim;
    params.beta = Corrects(rule) ? beta.data() : nullptr;
    params.log_decay = Decays(rule) ? log_decay.data() : nullptr;
    params.remove = rule == UpdateRule::kLowRank ? remove.data() : nullptr;
    params.insert = rule == UpdateRule::kLowRank ? insert.data() : nullptr;
    params.out = out.data();
    params.ldout = int64_t{shape.value_heads} * shape.value_dim;
    return params;
  }

  // Rows [begin, begin + length) of sequence s alone, as a call of its own.
  FastWeightParams Part(int32_t s, int32_t begin, int32_t length, std::vector<int32_t>& rows) {
    FastWeightParams params = Params();
    const int64_t row = row_begin[s] + begin;
    rows = {0, length};
    params.rows = {1, rows.data(), &slot[s]};
    params.q += row * params.ldq;
    params.k += row * params.ldk;
    params.v += row * params.ldv;
    const int64_t channels = int64_t{shape.value_heads} * shape.key_dim;
    if (params.beta != nullptr) params.beta += row * sub_steps * shape.value_heads;
    if (params.log_decay != nullptr) params.log_decay += row * (DecaysChannels(rule) ? channels : shape.value_heads);
    if (params.remove != nullptr) params.remove += row * channels;
    if (params.insert != nullptr) params.insert += row * channels;
    params.out += row * params.ldout;
    return params;
  }

  void Run(int threads = 2) {
    ThreadPool pool(threads);
    FastWeight(On(pool), Params());
  }

  // Sequence by sequence, in calls of `rows` rows.
  void RunInCallsOf(int32_t rows, int threads = 2) {
    ThreadPool pool(threads);
    for (int32_t s = 0; s < static_cast<int32_t>(slot.size()); ++s) {
      const int32_t length = row_begin[s + 1] - row_begin[s];
      for (int32_t begin = 0; begin < length; begin += rows) {
        std::vector<int32_t> row_range;
        FastWeight(On(pool), Part(s, begin, std::min(rows, length - begin), row_range));
      }
    }
  }

  FastWeightShape shape;
  UpdateRule rule;
  int32_t sub_steps;
  DType dtype;
  std::vector<int32_t> row_begin, slot;
  std::vector<float> q, k, v, beta, log_decay, remove, insert, out;
  std::vector<float> states;  // as the dtype says, this one or
  std::vector<BF16> rounded_states;
};

// A device does not care.
std::vector<std::string> Targets() {
  const std::string best = SimdTargetName();
  if (TestDevice() != nullptr) return {best};
  std::vector<std::string> names;
  for (const char* name : {"AVX3", "AVX2", "PORTABLE"}) {
    if (UseSimdTarget(name)) names.push_back(name);
  }
  UseSimdTarget(best);
  return names;
}

constexpr FastWeightShape kShape24x40 = {.heads = 2, .value_heads = 2, .key_dim = 24, .value_dim = 40};
constexpr FastWeightShape kShape64 = {.heads = 2, .value_heads = 2, .key_dim = 64, .value_dim = 64};
constexpr FastWeightShape kShape128 = {.heads = 1, .value_heads = 1, .key_dim = 128, .value_dim = 128};
constexpr FastWeightShape kShape16 = {.heads = 3, .value_heads = 3, .key_dim = 16, .value_dim = 16};
constexpr FastWeightShape kShapeShared = {.heads = 2, .value_heads = 6, .key_dim = 32, .value_dim = 48};
constexpr FastWeightShape kShapeOdd = {.heads = 1, .value_heads = 2, .key_dim = 7, .value_dim = 5};
constexpr FastWeightShape kShapeOne = {.heads = 1, .value_heads = 1, .key_dim = 1, .value_dim = 1};

const UpdateRule kSum = UpdateRule::kSum, kDelta = UpdateRule::kDelta, kGated = UpdateRule::kGatedDelta;
const UpdateRule kChannel = UpdateRule::kChannelGatedDelta, kLowRank = UpdateRule::kLowRank;
const UpdateRule kChannelSum = UpdateRule::kChannelGatedSum;
const DType kBF16 = DType::kBF16;
constexpr double kHalfUnit = 0x1p-8;  // of bfloat16, relative: the most that one rounding does
const Case kCases[] = {
    {.name = "base"},
    {.name = "sum", .rule = kSum},
    {.name = "gated", .rule = kGated},
    {.name = "length_1", .lengths = {1}},
    {.name = "length_2", .lengths = {2}},
    {.name = "length_63", .lengths = {63}},
    {.name = "length_64", .lengths = {64}},
    {.name = "length_130", .lengths = {130}},
    {.name = "sum_length_1", .rule = kSum, .lengths = {1}},
    {.name = "sum_length_130", .rule = kSum, .lengths = {130}},
    {.name = "gated_length_1", .rule = kGated, .lengths = {1}},
    {.name = "gated_length_2", .rule = kGated, .lengths = {2}},
    {.name = "gated_length_130", .rule = kGated, .lengths = {130}},
    {.name = "ragged", .rule = kGated, .lengths = {1, 0, 70, 1, 3, 64, 1, 65}},
    {.name = "batch_of_steps", .rule = kGated, .lengths = {1, 1, 1, 1, 1, 1, 1, 1, 1}},
    {.name = "k24_v40", .rule = kGated, .shape = kShape24x40, .lengths = {1, 2, 65, 130}},
    {.name = "k128_v128", .rule = kGated, .shape = kShape128, .lengths = {1, 2, 65, 130}},
    {.name = "k16_v16", .rule = kGated, .shape = kShape16, .lengths = {1, 2, 65, 130}},
    {.name = "k7_v5", .rule = kGated, .shape = kShapeOdd, .lengths = {1, 2, 65, 130}, .tolerance = 1e-5},
    {.name = "k1_v1", .rule = kGated, .shape = kShapeOne, .lengths = {1, 2, 65}, .tolerance = 1e-5},
    {.name = "shared_keys", .rule = kGated, .shape = kShapeShared, .lengths = {1, 2, 65, 130}},
    {.name = "sum_k24_v40", .rule = kSum, .shape = kShape24x40, .lengths = {1, 2, 65, 130}},
    {.name = "delta_k24_v40", .shape = kShape24x40, .lengths = {1, 2, 65, 130}},
    {.name = "beta_to_2", .lengths = {1, 65, 130}, .max_beta = 2.0f},
    {.name = "gated_beta_to_2", .rule = kGated, .lengths = {1, 65, 130}, .max_beta = 2.0f},
    {.name = "near_equal_keys", .lengths = {65, 130}, .keys = Keys::kNearlyEqual},
    {.name = "near_equal_keys_beta_to_2",
     .lengths = {65, 130},
     .max_beta = 2.0f,
     .keys = Keys::kNearlyEqual,
     .tolerance = 1e-5},
    {.name = "strong_decay", .rule = kGated, .lengths = {1, 65, 130}, .decay = Decay::kStrong},
    {.name = "mixed_decay", .rule = kGated, .lengths = {1, 65, 130}, .decay = Decay::kMixed},
    {.name = "everything_hard",
     .rule = kGated,
     .shape = kShape24x40,
     .lengths = {1, 2, 64, 130},
     .max_beta = 2.0f,
     .keys = Keys::kNearlyEqual,
     .decay = Decay::kMixed,
     .tolerance = 1e-5},
    {.name = "channel", .rule = kChannel},
    {.name = "channel_length_1", .rule = kChannel, .lengths = {1}},
    {.name = "channel_ragged", .rule = kChannel, .lengths = {1, 0, 70, 1, 3, 64, 1, 130}},
    {.name = "channel_k24_v40", .rule = kChannel, .shape = kShape24x40, .lengths = {1, 2, 65, 130}},
    {.name = "channel_k128_v128", .rule = kChannel, .shape = kShape128, .lengths = {1, 2, 65}},
    {.name = "channel_k7_v5", .rule = kChannel, .shape = kShapeOdd, .lengths = {1, 2, 65}, .tolerance = 1e-5},
    {.name = "channel_shared_keys", .rule = kChannel, .shape = kShapeShared, .lengths = {1, 2, 65}},
    {.name = "channel_everything_hard",
     .rule = kChannel,
     .shape = kShape24x40,
     .lengths = {1, 2, 64, 130},
     .max_beta = 2.0f,
     .keys = Keys::kNearlyEqual,
     .decay = Decay::kMixed,
     .tolerance = 1e-5},
    {.name = "low_rank", .rule = kLowRank},
    {.name = "low_rank_length_1", .rule = kLowRank, .lengths = {1}},
    {.name = "low_rank_ragged", .rule = kLowRank, .lengths = {1, 0, 70, 1, 3, 64, 1, 130}},
    {.name = "low_rank_k24_v40", .rule = kLowRank, .shape = kShape24x40, .lengths = {1, 2, 65, 130}},
    {.name = "low_rank_k128_v128", .rule = kLowRank, .shape = kShape128, .lengths = {1, 2, 65}},
    {.name = "low_rank_k7_v5", .rule = kLowRank, .shape = kShapeOdd, .lengths = {1, 2, 65}, .tolerance = 1e-5},
    {.name = "low_rank_shared_keys", .rule = kLowRank, .shape = kShapeShared, .lengths = {1, 2, 65}},
    {.name = "low_rank_strong_decay", .rule = kLowRank, .lengths = {1, 65}, .decay = Decay::kMixed},
    {.name = "channel_sum", .rule = kChannelSum},
    {.name = "channel_sum_length_1", .rule = kChannelSum, .lengths = {1}},
    {.name = "channel_sum_ragged", .rule = kChannelSum, .lengths = {1, 0, 70, 1, 3, 64, 1, 130}},
    {.name = "channel_sum_k24_v40", .rule = kChannelSum, .shape = kShape24x40, .lengths = {1, 2, 65, 130}},
    {.name = "channel_sum_k128_v128", .rule = kChannelSum, .shape = kShape128, .lengths = {1, 2, 65}},
    {.name = "channel_sum_k7_v5", .rule = kChannelSum, .shape = kShapeOdd, .lengths = {1, 2, 65}, .tolerance = 1e-5},
    {.name = "channel_sum_shared_keys", .rule = kChannelSum, .shape = kShapeShared, .lengths = {1, 2, 65}},
    {.name = "channel_sum_strong_decay", .rule = kChannelSum, .lengths = {1, 65}, .decay = Decay::kMixed},
    // One rounding at the end, or one after each chunk: what the first did to later rows adds to it.
    {.name = "bf16_sum", .rule = kSum, .lengths = {1, 64}, .dtype = kBF16, .tolerance = kHalfUnit},
    {.name = "bf16_delta", .lengths = {1, 2, 64}, .dtype = kBF16, .tolerance = kHalfUnit},
    {.name = "bf16_gated", .rule = kGated, .lengths = {1, 2, 64, 65, 130}, .dtype = kBF16, .tolerance = 3 * kHalfUnit},
    {.name = "bf16_channel", .rule = kChannel, .lengths = {1, 2, 64, 130}, .dtype = kBF16, .tolerance = 3 * kHalfUnit},
    {.name = "bf16_low_rank", .rule = kLowRank, .lengths = {1, 64, 130}, .dtype = kBF16, .tolerance = 3 * kHalfUnit},
    {.name = "bf16_channel_sum",
     .rule = kChannelSum,
     .lengths = {1, 2, 64, 130},
     .dtype = kBF16,
     .tolerance = 3 * kHalfUnit},
    {.name = "bf16_k128_v128",
     .rule = kGated,
     .shape = kShape128,
     .lengths = {1, 2, 65},
     .dtype = kBF16,
     .tolerance = 3 * kHalfUnit},
    {.name = "two_writes", .lengths = {1, 65, 130}, .sub_steps = 2},
    {.name = "three_writes_sum", .rule = kSum, .lengths = {1, 2, 65}, .sub_steps = 3},
    {.name = "three_writes_gated_ragged", .rule = kGated, .lengths = {1, 0, 70, 1, 3, 64, 1, 65}, .sub_steps = 3},
    {.name = "two_writes_gated_k128_v128", .rule = kGated, .shape = kShape128, .lengths = {1, 2, 65}, .sub_steps = 2},
    {.name = "two_writes_gated_k7_v5",
     .rule = kGated,
     .shape = kShapeOdd,
     .lengths = {1, 2, 65},
     .sub_steps = 2,
     .tolerance = 1e-5},
    {.name = "three_writes_gated_shared_keys",
     .rule = kGated,
     .shape = kShapeShared,
     .lengths = {1, 2, 65, 130},
     .sub_steps = 3},
    {.name = "two_writes_gated_everything_hard",
     .rule = kGated,
     .shape = kShape24x40,
     .lengths = {1, 2, 64, 130},
     .max_beta = 2.0f,
     .keys = Keys::kNearlyEqual,
     .decay = Decay::kMixed,
     .sub_steps = 2,
     .tolerance = 1e-5},
    {.name = "three_writes_channel_ragged", .rule = kChannel, .lengths = {1, 0, 70, 1, 3, 64, 1, 65}, .sub_steps = 3},
    {.name = "two_writes_channel_shared_keys",
     .rule = kChannel,
     .shape = kShapeShared,
     .lengths = {1, 2, 65},
     .sub_steps = 2},
    {.name = "three_writes_channel_k24_v40",
     .rule = kChannel,
     .shape = kShape24x40,
     .lengths = {1, 2, 65},
     .sub_steps = 3},
    {.name = "two_writes_channel_sum", .rule = kChannelSum, .lengths = {1, 2, 65, 130}, .sub_steps = 2},
    {.name = "three_writes_channel_sum_k7_v5",
     .rule = kChannelSum,
     .shape = kShapeOdd,
     .lengths = {1, 2, 65},
     .sub_steps = 3,
     .tolerance = 1e-5},
    {.name = "bf16_two_writes_gated",
     .rule = kGated,
     .lengths = {1, 2, 64, 65, 130},
     .dtype = kBF16,
     .sub_steps = 2,
     .tolerance = 3 * kHalfUnit},
    {.name = "bf16_three_writes_channel",
     .rule = kChannel,
     .lengths = {1, 2, 64, 130},
     .dtype = kBF16,
     .sub_steps = 3,
     .tolerance = 3 * kHalfUnit},
    {.name = "bf16_two_writes_k7_v5",
     .rule = kGated,
     .shape = kShapeOdd,
     .lengths = {1, 2, 3},
     .dtype = kBF16,
     .sub_steps = 2,
     .tolerance = 4 * kHalfUnit},
    {.name = "bf16_k16_v16",
     .rule = kGated,
     .shape = kShape16,
     .lengths = {1, 2, 65},
     .dtype = kBF16,
     .tolerance = 3 * kHalfUnit},
    {.name = "bf16_k24_v40",
     .rule = kGated,
     .shape = kShape24x40,
     .lengths = {1, 2, 5},
     .dtype = kBF16,
     .tolerance = 3 * kHalfUnit},
    {.name = "bf16_k7_v5",
     .rule = kGated,
     .shape = kShapeOdd,
     .lengths = {1, 2, 5},
     .dtype = kBF16,
     .tolerance = 3 * kHalfUnit},
};

class FastWeightCase : public testing::TestWithParam<Case> {
 protected:
  FastWeightCase() : best_(SimdTargetName()) {}
  ~FastWeightCase() override { UseSimdTarget(best_); }
  std::string best_;
};

TEST_P(FastWeightCase, AgreesWithTheRecurrenceInDoublePrecisionOnEveryTarget) {
  Call expected(GetParam());
  FastWeightReference(expected.Params());
  for (const std::string& target : Targets()) {
    SCOPED_TRACE(target);
    ASSERT_TRUE(UseSimdTarget(target));
    Call call(GetParam());
    call.Run();
    EXPECT_LT(RelativeError(call.out, expected.out), GetParam().tolerance);
    EXPECT_LT(RelativeError(call.States(), expected.States()), GetParam().tolerance);
  }
}

TEST_P(FastWeightCase, ChunksAgreeWithSteps) {
  Call chunks(GetParam());
  chunks.Run();
  Call steps(GetParam());
  steps.RunInCallsOf(1);
  // Steps round a state of bfloat16 after every row.
  const double tolerance = GetParam().dtype == kBF16 ? 8 * kHalfUnit : 2 * GetParam().tolerance;
  EXPECT_LT(RelativeError(chunks.out, steps.out), tolerance);
  EXPECT_LT(RelativeError(chunks.States(), steps.States()), tolerance);
}

TEST_P(FastWeightCase, BitsDependNeitherOnThreadsNorOnNeighboursNorOnTheCutIntoCalls) {
  for (const std::string& target : Targets()) {
    SCOPED_TRACE(target);
    ASSERT_TRUE(UseSimdTarget(target));
    Call together(GetParam());
    together.Run(1);
    for (int threads = 2; threads <= 4; ++threads) {
      Call call(GetParam());
      call.Run(threads);
      ASSERT_TRUE(SameBits(call.out, together.out)) << threads << " threads";
      ASSERT_TRUE(SameBits(call.States(), together.States())) << threads << " threads";
    }
    for (const int32_t rows : {64, 128, 1 << 20}) {
      Call call(GetParam());
      call.RunInCallsOf(rows);
      ASSERT_TRUE(SameBits(call.out, together.out)) << "in calls of " << rows << " rows";
      ASSERT_TRUE(SameBits(call.States(), together.States())) << "in calls of " << rows << " rows";
    }
  }
}

TEST_P(FastWeightCase, ASequenceOfNaNStaysAlone) {
  Call clean(GetParam());
  clean.Run();
  const int32_t last = static_cast<int32_t>(clean.slot.size()) - 1;
  Call poisoned(GetParam());
  const int64_t value_floats = int64_t{poisoned.shape.value_heads} * poisoned.shape.value_dim;
  std::fill(poisoned.v.begin() + int64_t{poisoned.row_begin[last]} * poisoned.sub_steps * value_floats,
            poisoned.v.end(), kNaN);
  poisoned.Run();
  const auto own_out = poisoned.out.begin() + poisoned.row_begin[last] * value_floats;
  const std::vector<float> expected = clean.States();
  std::vector<float> states = poisoned.States();
  const int64_t own_state = poisoned.slot[last] * poisoned.slot_floats();
  EXPECT_TRUE(std::all_of(own_out, poisoned.out.end(), [](float value) { return std::isnan(value); }));
  EXPECT_TRUE(std::isnan(states[own_state]));
  std::copy(clean.out.begin() + poisoned.row_begin[last] * value_floats, clean.out.end(), own_out);
  std::copy_n(expected.begin() + own_state, poisoned.slot_floats(), states.begin() + own_state);
  EXPECT_TRUE(SameBits(poisoned.out, clean.out));
  EXPECT_TRUE(SameBits(states, expected));
}

INSTANTIATE_TEST_SUITE_P(Table, FastWeightCase, testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

// ------------------------------------------------------------------------------------------------------- laws

// K unit vectors as keys, one per row, on an empty memory.
Call OrthonormalKeys(UpdateRule rule, int32_t K) {
  Call call({.name = "", .rule = rule, .shape = {1, 1, K, 40}, .lengths = {K}});
  std::fill(call.k.begin(), call.k.end(), 0.0f);
  for (int32_t row = 0; row < K; ++row) call.k[row * K + (row * 5 + 3) % K] = 1.0f;
  std::fill(call.beta.begin(), call.beta.end(), 1.0f);
  std::fill(call.log_decay.begin(), call.log_decay.end(), 0.0f);
  if (rule == UpdateRule::kLowRank) {  // as the delta rule
    call.insert = call.k;
    std::ranges::transform(call.k, call.remove.begin(), std::negate<>());
  }
  std::fill(call.states.begin(), call.states.end(), 0.0f);
  return call;
}

void ExpectRowsReadNothingOfTheRowsAfterThem(const Case& c) {
  for (const int32_t good_rows : {1, 3, 8, 37, 64, 100}) {
    Call clean(c), poisoned(c);
    clean.Run();
    for (std::vector<float>* values : {&poisoned.q, &poisoned.k, &poisoned.v, &poisoned.beta, &poisoned.log_decay,
                                       &poisoned.remove, &poisoned.insert}) {
      std::fill(values->begin() + values->size() / c.lengths[0] * good_rows, values->end(), kNaN);
    }
    poisoned.Run();
    const size_t good_values = clean.out.size() / c.lengths[0] * good_rows;
    clean.out.resize(good_values);
    poisoned.out.resize(good_values);
    EXPECT_TRUE(SameBits(poisoned.out, clean.out)) << good_rows << " rows";
  }
}

class EveryRule : public testing::TestWithParam<UpdateRule> {};

TEST_P(EveryRule, OrthonormalKeysReadBackExactlyWhatWasWritten) {
  for (const int32_t rows_per_call : {1, 32}) {
    Call call = OrthonormalKeys(GetParam(), 32);
    call.RunInCallsOf(rows_per_call);
    Call reading = call;
    reading.rule = UpdateRule::kSum;  // with a value of zero: only reads
    reading.q = call.k;
    std::fill(reading.v.begin(), reading.v.end(), 0.0f);
    reading.Run();
    EXPECT_EQ(reading.out, call.v);
  }
}

TEST_P(EveryRule, ARowReadsNothingOfTheRowsAfterIt) {
  ExpectRowsReadNothingOfTheRowsAfterThem({.name = "", .rule = GetParam(), .shape = kShape24x40, .lengths = {130}});
}

TEST_P(EveryRule, NorWithSeveralWrites) {
  if (!HasSubSteps(GetParam())) GTEST_SKIP() << "one write to a row";
  ExpectRowsReadNothingOfTheRowsAfterThem(
      {.name = "", .rule = GetParam(), .shape = kShape24x40, .lengths = {130}, .sub_steps = 2});
}

// A call of one sequence whose first writes of a row have the row's decay and whose others have none, each as a row of
// its own. Only the last write's q is a query.
Call WritesAsRows(const Call& call) {
  Call rows = call;
  const int64_t n = call.sub_steps, query = call.q.size() / call.row_begin.back();
  const int64_t gates = call.log_decay.size() / call.row_begin.back();
  rows.sub_steps = 1;
  rows.row_begin = {0, static_cast<int32_t>(call.row_begin.back() * n)};
  rows.q.assign(call.q.size() * n, 7.0f);
  rows.log_decay.assign(call.log_decay.size() * n, 0.0f);
  for (int64_t row = 0; row < call.row_begin.back(); ++row) {
    std::copy_n(&call.q[row * query], query, &rows.q[(row * n + n - 1) * query]);
    std::copy_n(&call.log_decay[row * gates], gates, &rows.log_decay[row * n * gates]);
  }
  rows.out.assign(call.out.size() * n, kNaN);
  return rows;
}

// The outputs of every n-th row.
std::vector<float> EveryNthRow(const std::vector<float>& out, int64_t n, int64_t width) {
  std::vector<float> result;
  for (size_t at = (n - 1) * width; at < out.size(); at += n * width) {
    result.insert(result.end(), out.begin() + at, out.begin() + at + width);
  }
  return result;
}

TEST_P(EveryRule, SeveralWritesAreRowsOfWhichTheLastIsRead) {
  if (!HasSubSteps(GetParam())) GTEST_SKIP() << "one write to a row";
  for (const FastWeightShape& shape : {kShape64, kShape24x40}) {
    for (const int32_t n : {2, 3}) {
      Call call({.name = "", .rule = GetParam(), .shape = shape, .lengths = {5}, .sub_steps = n});
      const int64_t width = int64_t{shape.value_heads} * shape.value_dim;
      Call rows = WritesAsRows(call), chunk = call;
      chunk.Run();
      call.RunInCallsOf(1);
      rows.RunInCallsOf(1);
      const std::vector<float> out = EveryNthRow(rows.out, n, width);
      EXPECT_TRUE(SameBits(call.out, out)) << n << " writes";
      EXPECT_TRUE(SameBits(call.states, rows.states)) << n << " writes";
      EXPECT_LT(RelativeError(chunk.out, out), 3e-6) << n << " writes";
      EXPECT_LT(RelativeError(chunk.states, rows.states), 3e-6) << n << " writes";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, EveryRule, testing::Values(kSum, kDelta, kGated, kChannel, kLowRank, kChannelSum));

TEST(FastWeightLaws, WhatIsWrittenWithFullStrengthIsReadInTheSameRow) {
  for (const int32_t rows_per_call : {1, 64}) {
    Call call({.name = "", .lengths = {130}});
    call.q = call.k;
    std::fill(call.beta.begin(), call.beta.end(), 1.0f);
    call.RunInCallsOf(rows_per_call);
    EXPECT_LT(RelativeError(call.out, call.v), 1e-5);
  }
}

TEST(FastWeightLaws, WritingAgainUnderTheSameKeyReplacesTheValue) {
  Call call = OrthonormalKeys(kDelta, 8);
  call.k = {};
  for (int row = 0; row < 8; ++row) call.k.insert(call.k.end(), {0, 0, 1, 0, 0, 0, 0, 0});
  call.q = call.k;
  call.Run();
  EXPECT_LT(RelativeError(call.out, call.v), 1e-6);
  const int32_t V = call.shape.value_dim;
  for (int32_t i = 0; i < V; ++i) {
    EXPECT_NEAR(call.states[call.slot[0] * call.slot_floats() + i * 8 + 2], call.v[7 * V + i], 1e-6);
  }
}

TEST(FastWeightLaws, WritingWithNoStrengthChangesNothing) {
  for (const int32_t rows_per_call : {1, 64}) {
    Call call({.name = "", .lengths = {65}});
    std::fill(call.beta.begin(), call.beta.end(), 0.0f);
    const std::vector<float> before = call.states;
    call.RunInCallsOf(rows_per_call);
    EXPECT_EQ(call.states, before);
  }
}

TEST(FastWeightLaws, TotalDecayForgetsAllThatWasBefore) {
  for (const float log_decay : {-200.0f, -std::numeric_limits<float>::infinity()}) {
    for (const int32_t rows_per_call : {1, 64}) {
      Call call({.name = "", .rule = kGated, .lengths = {20}});
      const int64_t heads = call.shape.value_heads;
      std::fill_n(call.log_decay.begin() + 10 * heads, heads, log_decay);
      call.RunInCallsOf(rows_per_call);
      Call after({.name = "", .rule = kGated, .lengths = {20}});
      std::fill_n(after.log_decay.begin() + 10 * heads, heads, log_decay);
      std::fill(after.states.begin(), after.states.end(), 0.0f);
      std::vector<int32_t> rows;
      ThreadPool pool(1);
      FastWeight(On(pool), after.Part(0, 10, 10, rows));
      const int64_t half = call.out.size() / 2;
      EXPECT_LT(RelativeError({call.out.begin() + half, call.out.end()}, {after.out.begin() + half, after.out.end()}),
                3e-6);
    }
  }
}

TEST(FastWeightTest, ABF16StateIsRoundedOnceAtTheEndOfAChunk) {
  for (const UpdateRule rule : {kSum, kDelta, kGated, kChannel, kLowRank, kChannelSum}) {
    for (const auto& [length, sub_steps] : {std::pair{1, 1}, {64, 1}, {1, 3}, {64, 2}}) {
      if (sub_steps > 1 && !HasSubSteps(rule)) continue;
      Call rounded({.name = "", .rule = rule, .lengths = {length}, .dtype = kBF16, .sub_steps = sub_steps});
      Call exact({.name = "", .rule = rule, .lengths = {length}, .sub_steps = sub_steps});
      exact.states = rounded.States();
      rounded.Run();
      FastWeightReference(exact.Params());
      EXPECT_LT(RelativeError(rounded.out, exact.out), 3e-6) << "it is read before it is rounded";
      const std::vector<float> states = rounded.States();
      for (size_t i = 0; i < states.size(); ++i) {
        ASSERT_LE(std::abs(states[i] - exact.states[i]), std::abs(exact.states[i]) * kHalfUnit + 1e-5) << i;
      }
    }
  }
}

TEST(FastWeightTest, ADecayThatIsNotANumberIsNotHidden) {
  Call call({.name = "", .rule = kGated, .lengths = {1, 2, 65}});
  std::fill(call.log_decay.begin(), call.log_decay.end(), kNaN);
  call.Run();
  EXPECT_TRUE(std::all_of(call.out.begin(), call.out.end(), [](float value) { return std::isnan(value); }));
}

TEST(FastWeightTest, TouchesOnlyTheSlotsOfItsSequences) {
  Call call({.name = "", .lengths = {1, 70}});
  const std::vector<float> before = call.states;
  call.Run();
  for (const int64_t untouched : {0, 2, 3, 5, 6}) {
    const auto begin = untouched * call.slot_floats();
    EXPECT_TRUE(
        std::equal(before.begin() + begin, before.begin() + begin + call.slot_floats(), call.states.begin() + begin))
        << "slot " << untouched;
  }
}

TEST(FastWeightTest, RowsMayLieFurtherApartThanTheyAreLong) {
  for (const FastWeightShape& shape : {kShape24x40, kShape64}) {
    const Case c = {.name = "", .rule = kGated, .shape = shape, .lengths = {1, 67}};
    Call dense(c);
    dense.Run();
    Call wide(c);
    const int64_t rows = wide.row_begin.back(), apart = 301;
    const auto spread = [&](const std::vector<float>& values) {
      std::vector<float> result(rows * apart, kNaN);
      const int64_t width = values.size() / rows;
      for (int64_t row = 0; row < rows; ++row) std::copy_n(&values[row * width], width, &result[row * apart]);
      return result;
    };
    wide.q = spread(wide.q);
    wide.k = spread(wide.k);
    wide.v = spread(wide.v);
    wide.out.assign(rows * apart, -7.0f);
    FastWeightParams params = wide.Params();
    params.ldq = params.ldk = params.ldv = params.ldout = apart;
    ThreadPool pool(2);
    FastWeight(On(pool), params);
    EXPECT_TRUE(SameBits(wide.states, dense.states));
    const int64_t width = dense.out.size() / rows;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < apart; ++i) {
        ASSERT_EQ(wide.out[row * apart + i], i < width ? dense.out[row * width + i] : -7.0f) << row << ", " << i;
      }
    }
  }
}

TEST(FastWeightTest, ManySequencesGiveTheBitsOfEachAlone) {
  // So many that a device shares its work out otherwise.
  const FastWeightShape shape = {.heads = 1, .value_heads = 4, .key_dim = 128, .value_dim = 128};
  const Case c = {.name = "", .rule = kGated, .shape = shape, .lengths = {66, 3, 2, 2, 2, 2, 2, 2, 2}};
  Call together(c), alone(c);
  together.Run();
  alone.RunInCallsOf(1 << 20);
  EXPECT_TRUE(SameBits(together.out, alone.out));
  EXPECT_TRUE(SameBits(together.states, alone.states));
}

// Steps of several sequences, now and then a chunk of some of them, with and without the replay form.
class ReplayTest : public testing::TestWithParam<std::tuple<UpdateRule, DType>> {
 protected:
  static constexpr int32_t kInterval = 4;
  static constexpr FastWeightShape kShapes[] = {
      {.heads = 1, .value_heads = 2, .key_dim = 16, .value_dim = 18},
      {.heads = 2, .value_heads = 2, .key_dim = 64, .value_dim = 48},
      {.heads = 1, .value_heads = 1, .key_dim = 128, .value_dim = 40},
  };

  // What each slot keeps beside its state; begins as zeros.
  struct Kept {
    Kept(const FastWeightShape& shape, size_t slots)
        : floats(shape.value_heads * (kInterval - 1) * FastWeightReplay::entry_floats(shape)),
          written(slots * floats),
          pending(slots * 16) {}
    FastWeightReplay Replay() {
      return {.interval = kInterval,
              .written = {reinterpret_cast<std::byte*>(written.data()), floats * int64_t{sizeof(float)}},
              .pending = {reinterpret_cast<std::byte*>(pending.data()), 64}};
    }
    int64_t floats;
    std::vector<float> written;
    std::vector<int32_t> pending;
  };
};

TEST_P(ReplayTest, GivesTheBitsOfWritingAtEveryStep) {
  if (TestDevice() == nullptr) GTEST_SKIP() << "only a device leaves out writes";
  ThreadPool pool(1);
  const auto [rule, dtype] = GetParam();
  for (const FastWeightShape& shape : kShapes) {
    const Case steps = {.name = "", .rule = rule, .shape = shape, .lengths = {1, 1, 1}, .dtype = dtype};
    const Case mixture = {.name = "", .rule = rule, .shape = shape, .lengths = {1, 5, 1}, .dtype = dtype};
    Call plain(steps, 0), replayed(steps, 0);
    Kept kept(shape, 3 * 3 + 1);
    const auto flush = [&](const FastWeightParams& p) {
      FlushReplay(On(pool), {.shape = p.shape, .rule = p.rule, .rows = p.rows, .state = p.state, .replay = p.replay});
    };
    for (uint32_t pass = 1; pass <= 13; ++pass) {
      const bool chunk = pass % 5 == 0;
      Call a(chunk ? mixture : steps, pass), b(chunk ? mixture : steps, pass);
      a.SetStates(plain.States());
      b.SetStates(replayed.States());
      a.Run();
      FastWeightParams p = b.Params();
      p.rows.num_steps = chunk ? 1 : 3;  // of the mixture, the last sequence's one row counts among the rest
      p.replay = kept.Replay();
      FastWeight(On(pool), p);
      AdvanceReplay(On(pool), {.rows = p.rows, .interval = kInterval, .pending = p.replay.pending});
      ASSERT_TRUE(SameBits(b.out, a.out)) << "K " << shape.key_dim << ", pass " << pass;
      plain.SetStates(a.States());
      replayed.SetStates(b.States());
    }
    // The last write was some steps ago.
    EXPECT_FALSE(SameBits(replayed.States(), plain.States()));
    FastWeightParams p = replayed.Params();
    p.replay = kept.Replay();
    p.rows.num_steps = 0;
    flush(p);
    AdvanceReplay(On(pool), {.rows = p.rows, .interval = kInterval, .pending = p.replay.pending});
    EXPECT_TRUE(SameBits(replayed.States(), plain.States())) << "K " << shape.key_dim;
    flush(p);  // there is nothing left to add
    EXPECT_TRUE(SameBits(replayed.States(), plain.States())) << "K " << shape.key_dim;
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, ReplayTest,
                         testing::Combine(testing::Values(kSum, kDelta, kGated),
                                          testing::Values(DType::kF32, DType::kBF16)));

}  // namespace
}  // namespace palimpsest
