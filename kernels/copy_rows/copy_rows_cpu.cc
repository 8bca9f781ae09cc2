#include <cstring>

#include "kernels/common/device.h"
#include "kernels/common/grain.h"
#include "kernels/copy_rows/copy_rows.h"

namespace palimpsest {

void CopyRows(const ExecContext& ctx, const CopyRowsParams& p) {
  if (ctx.device != nullptr) return ctx.device->Run(p);
  ctx.pool->ParallelFor(p.rows, RowsPerTask(p.dim), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t from = p.from == nullptr ? r : p.from[r], to = p.to == nullptr ? r : p.to[r];
      std::memcpy(p.y + to * p.ldy, p.x + from * p.ldx, static_cast<size_t>(p.dim) * sizeof(float));
    }
  });
}

}  // namespace palimpsest
