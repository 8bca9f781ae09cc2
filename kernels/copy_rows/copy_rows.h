// Moves rows about: gathers them by index, scatters them, or takes a part of each.
//
//   y[to[r]] = x[from[r]]        to and from may be missing: r then
#pragma once

#include <cstdint>

#include "kernels/common/thread_pool.h"

namespace palimpsest {

struct CopyRowsParams {
  int32_t rows = 0;
  int64_t dim = 0;
  const int32_t* from = nullptr;  // [rows] or null
  const float* x = nullptr;       // row stride ldx
  int64_t ldx = 0;
  const int32_t* to = nullptr;  // [rows], distinct, or null
  float* y = nullptr;           // row stride ldy; the rows written do not overlap those read
  int64_t ldy = 0;
};
void CopyRows(const ExecContext& ctx, const CopyRowsParams& params);

}  // namespace palimpsest
