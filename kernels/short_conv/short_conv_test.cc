#include "kernels/short_conv/short_conv.h"

#include <cmath>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include "kernels/common/op_testing.h"

namespace palimpsest {
namespace {

struct Case {
  const char* name;
  std::vector<int32_t> lengths;  // of the sequences
  int32_t channels;
  int32_t width;
  bool bias;
  int32_t linear_channels;
  ConvActivation activation;
  int64_t padding = 3;  // of rows of x; a device reads 16 bytes at a time where that leaves them aligned
};

const Case kCases[] = {
    {"base", {1, 7, 2}, 64, 4, false, 0, ConvActivation::kSilu},
    {"one_step", {1}, 64, 4, false, 0, ConvActivation::kSilu},
    {"many_steps", std::vector<int32_t>(64, 1), 129, 4, false, 0, ConvActivation::kSilu},
    {"an_empty_sequence", {3, 0, 2}, 64, 4, false, 0, ConvActivation::kSilu},
    {"no_multiple_of_lanes", {1, 7, 2}, 203, 4, false, 0, ConvActivation::kSilu},
    {"bias", {1, 7, 2}, 37, 4, true, 0, ConvActivation::kSilu},
    {"width_1", {1, 7, 2}, 37, 1, false, 0, ConvActivation::kSilu},
    {"width_2", {1, 7, 2}, 37, 2, false, 0, ConvActivation::kSilu},
    {"width_11", {1, 7, 12, 2}, 37, 11, true, 0, ConvActivation::kSilu},
    {"linear", {1, 7, 2}, 37, 4, true, 0, ConvActivation::kNone},
    {"linear_in_part", {1, 7, 2}, 203, 4, false, 61, ConvActivation::kSilu},
    {"linear_beyond", {1, 7, 2}, 203, 4, false, 500, ConvActivation::kSilu},
    {"long", {700, 1}, 129, 4, false, 61, ConvActivation::kSilu},
    {"width_30", {300, 1, 30, 29}, 20, 30, false, 0, ConvActivation::kSilu},
    {"aligned", {1, 7, 2}, 64, 4, false, 0, ConvActivation::kSilu, 4},
    {"aligned_long", {700, 0, 1, 9, 2, 130}, 132, 4, true, 62, ConvActivation::kSilu, 4},
    {"aligned_width_2", {1, 7, 2, 30}, 64, 2, false, 0, ConvActivation::kSilu, 4},
    {"aligned_width_30", {300, 1, 30, 29}, 20, 30, true, 0, ConvActivation::kSilu, 4},
};

// Slots in another order than the sequences, with a gap, as a batch has them.
int32_t SlotOf(int32_t sequence, int32_t sequences) { return 2 * (sequences - 1 - sequence) + 1; }

struct Data {
  explicit Data(const Case& c)
      : sequences(static_cast<int32_t>(c.lengths.size())),
        history(int64_t{c.width - 1} * c.channels),
        slot_floats((history + 15) / 16 * 16 + 16),
        states(Normal((2 * sequences + 1) * slot_floats, 1)),
        weight(Normal(int64_t{c.width} * c.channels, 2)),
        bias(Normal(c.channels, 3)) {
    row_begin.push_back(0);
    for (int32_t s = 0; s < sequences; ++s) {
      row_begin.push_back(row_begin.back() + c.lengths[s]);
      slot.push_back(SlotOf(s, sequences));
    }
    x = Matrix::Random(row_begin.back(), c.channels, 4, 1.0f, c.padding);
    y = Matrix::Poisoned(row_begin.back(), c.channels, c.padding + 4);
  }

  ShortConvParams Params(const Case& c) {
    ShortConvParams p;
    p.rows = {sequences, row_begin.data(), slot.data()};
    p.channels = c.channels;
    p.width = c.width;
    p.weight = weight.data();
    p.bias = c.bias ? bias.data() : nullptr;
    p.linear_channels = c.linear_channels;
    p.activation = c.activation;
    p.tail = {reinterpret_cast<std::byte*>(states.data()), slot_floats * static_cast<int64_t>(sizeof(float))};
    p.x = x.data();
    p.ldx = x.stride;
    p.y = y.data();
    p.ldy = y.stride;
    return p;
  }

  int32_t sequences;
  int64_t history;
  int64_t slot_floats;
  std::vector<float> states;
  std::vector<float> weight;
  std::vector<float> bias;
  std::vector<int32_t> row_begin;
  std::vector<int32_t> slot;
  Matrix x;
  Matrix y;
};

using ShortConvTest = OpTest;
INSTANTIATE_TEST_SUITE_P(Targets, ShortConvTest, testing::ValuesIn(SimdTargets()));

TEST_P(ShortConvTest, AgreesWithTheReference) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    Data expected(c);
    ShortConvReference(expected.Params(c));
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      Data actual(c);
      ShortConv(On(pool), actual.Params(c));
      const double floor = std::max(1.0, c.width / 4.0);  // what the rounding of long sums is relative to
      EXPECT_TRUE(Near(actual.y, expected.y, 1e-6, floor)) << threads << " threads";
      // The state holds inputs as they came, and nothing of another slot moves.
      EXPECT_TRUE(SameBits(actual.states, expected.states)) << threads << " threads";
    }
  }
}

TEST_P(ShortConvTest, AnySplitOfASequenceGivesTheSameBitsAndState) {
  for (const Case& c : kCases) {
    for (const int32_t piece : {1, 2, 3, 5}) {
      SCOPED_TRACE(testing::Message() << c.name << " in pieces of " << piece);
      ThreadPool pool(2);
      Data whole(c);
      ShortConv(On(pool), whole.Params(c));

      ThreadPool one(1);
      Data split(c);
      for (int32_t s = 0; s < split.sequences; ++s) {
        for (int32_t begin = split.row_begin[s]; begin < split.row_begin[s + 1]; begin += piece) {
          const std::vector<int32_t> piece_rows = {0, std::min(piece, split.row_begin[s + 1] - begin)};
          ShortConvParams p = split.Params(c);
          p.rows = {1, piece_rows.data(), &split.slot[s]};
          p.x = split.x.row(begin);
          p.y = split.y.row(begin);
          ShortConv(On(one), p);
        }
      }
      EXPECT_TRUE(SameBits(split.y, whole.y));
      EXPECT_TRUE(SameBits(split.states, whole.states));
    }
  }
}

TEST_P(ShortConvTest, LastTapMultipliesTheCurrentRow) {
  ThreadPool pool(1);
  const std::vector<float> weight = {0.0f, 0.0f, 1000.0f, 1.0f};
  const std::vector<float> x = {1.0f, 2.0f, 3.0f};
  const std::vector<int32_t> row_begin = {0, 3}, slot = {0};
  std::vector<float> tail(16);
  std::vector<float> y(3);
  ShortConvParams p;
  p.rows = {1, row_begin.data(), slot.data()};
  p.channels = 1;
  p.width = 4;
  p.weight = weight.data();
  p.activation = ConvActivation::kNone;
  p.tail = {reinterpret_cast<std::byte*>(tail.data()), 64};
  p.x = x.data();
  p.ldx = 1;
  p.y = y.data();
  p.ldy = 1;
  ShortConv(On(pool), p);
  EXPECT_THAT(y, testing::ElementsAre(1.0f, 1002.0f, 2003.0f));
  EXPECT_THAT(std::span(tail).first(3), testing::ElementsAre(1.0f, 2.0f, 3.0f));
}

}  // namespace
}  // namespace palimpsest
