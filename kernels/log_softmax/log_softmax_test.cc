#include "kernels/log_softmax/log_softmax.h"

#include <string>
#include <vector>

#include "kernels/common/op_testing.h"

namespace palimpsest {
namespace {

struct Case {
  const char* name;
  int32_t rows;
  int32_t dim;
  float deviation;
};
constexpr Case kCases[] = {{"base", 4, 256, 1.0f},           {"one_value", 3, 1, 1.0f},
                           {"below_one_vector", 4, 5, 1.0f}, {"odd", 5, 203, 3.0f},
                           {"vocabulary", 2, 50007, 1.0f},   {"one_far_above", 3, 300, 40.0f},
                           {"many_rows", 301, 70, 2.0f}};

Matrix RunLogSoftmax(int threads, const Matrix& x, const std::vector<float>* shift) {
  ThreadPool pool(threads);
  Matrix y = Matrix::Poisoned(x.rows, x.width, 7);
  LogSoftmax(On(pool), {.rows = static_cast<int32_t>(x.rows),
                        .dim = static_cast<int32_t>(x.width),
                        .x = x.data(),
                        .ldx = x.stride,
                        .shift = shift == nullptr ? nullptr : shift->data(),
                        .y = y.data(),
                        .ldy = y.stride});
  return y;
}

class LogSoftmaxTest : public OpTest {};

TEST_P(LogSoftmaxTest, AgreesWithTheReferenceAndDependsOnItsOwnRowAlone) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    const Matrix x = Matrix::Random(c.rows, c.dim, 1, c.deviation);
    const std::vector<float> shift = Normal(c.rows, 2);
    Matrix expected = Matrix::Poisoned(c.rows, c.dim, 7);
    LogSoftmaxReference({.rows = c.rows,
                         .dim = c.dim,
                         .x = x.data(),
                         .ldx = x.stride,
                         .shift = shift.data(),
                         .y = expected.data(),
                         .ldy = expected.stride});
    const Matrix y = RunLogSoftmax(1, x, &shift);
    EXPECT_TRUE(Near(y, expected, 2e-6, 1.0));
    EXPECT_TRUE(SameBits(RunLogSoftmax(3, x, &shift), y));
    Matrix last = Matrix::Poisoned(1, c.dim);
    std::copy_n(x.row(c.rows - 1), c.dim, last.row(0));
    const std::vector<float> last_shift = {shift.back()};
    const Matrix alone = RunLogSoftmax(2, last, &last_shift);
    EXPECT_TRUE(SameBits(std::span(alone.row(0), c.dim), std::span(y.row(c.rows - 1), c.dim)));
  }
}

TEST_P(LogSoftmaxTest, InPlaceAndWithoutShift) {
  Matrix x = Matrix::Random(6, 77, 3);
  const Matrix apart = RunLogSoftmax(2, x, nullptr);
  ThreadPool pool(2);
  LogSoftmax(On(pool), {.rows = 6, .dim = 77, .x = x.data(), .ldx = x.stride, .y = x.data(), .ldy = x.stride});
  for (int64_t r = 0; r < 6; ++r) EXPECT_TRUE(SameBits(std::span(x.row(r), 77), std::span(apart.row(r), 77)));
}

TEST_P(LogSoftmaxTest, WhatIsNotFiniteSpoilsItsOwnRow) {
  for (const float bad : {kNaN, kInfinity, -kInfinity}) {
    Matrix x = Matrix::Random(3, 40, 4);
    const Matrix good = RunLogSoftmax(1, x, nullptr);
    x.row(1)[17] = bad;
    const Matrix y = RunLogSoftmax(1, x, nullptr);
    for (const int64_t r : {0, 2}) EXPECT_TRUE(SameBits(std::span(y.row(r), 40), std::span(good.row(r), 40)));
    for (int64_t i = 0; i < 40; ++i) EXPECT_TRUE(std::isnan(y.row(1)[i]));
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, LogSoftmaxTest, testing::ValuesIn(SimdTargets()));

}  // namespace
}  // namespace palimpsest
