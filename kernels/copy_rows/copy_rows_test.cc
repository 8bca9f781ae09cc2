#include "kernels/copy_rows/copy_rows.h"

#include <vector>

#include "kernels/common/op_testing.h"

namespace palimpsest {
namespace {

constexpr int64_t kDim = 301;

Matrix Expected(const Matrix& x, const std::vector<int32_t>& from, const std::vector<int32_t>& to, int64_t rows,
                const Matrix& shape) {
  Matrix y = Matrix::Poisoned(shape.rows, shape.width, shape.stride - shape.width);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(x.row(from.empty() ? r : from[r]), kDim, y.row(to.empty() ? r : to[r]));
  }
  return y;
}

TEST(CopyRows, GathersScattersAndCopies) {
  ThreadPool pool(2);
  const Matrix x = Matrix::Random(9, kDim, 1);
  const std::vector<int32_t> none, from = {8, 0, 3, 3}, to = {1, 6, 0, 2};
  for (const auto& [gather, scatter] : {std::pair(from, to), {from, none}, {none, to}, {none, none}}) {
    Matrix y = Matrix::Poisoned(7, kDim, 5);
    CopyRows(On(pool), {.rows = 4,
                        .dim = kDim,
                        .from = gather.empty() ? nullptr : gather.data(),
                        .x = x.data(),
                        .ldx = x.stride,
                        .to = scatter.empty() ? nullptr : scatter.data(),
                        .y = y.data(),
                        .ldy = y.stride});
    EXPECT_TRUE(SameBits(y, Expected(x, gather, scatter, 4, y)));
  }
}

TEST(CopyRows, OfNoRowsDoesNothing) {
  ThreadPool pool(1);
  CopyRows(On(pool), {.rows = 0, .dim = kDim});
}

}  // namespace
}  // namespace palimpsest
