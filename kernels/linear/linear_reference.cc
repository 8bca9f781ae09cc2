#include "kernels/linear/linear.h"

namespace palimpsest {

void LinearReference(const float* weights, int64_t out, int64_t in, const float* x, int64_t ldx, int32_t rows,
                     double* y) {
  for (int32_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < out; ++o) {
      double sum = 0.0;
      for (int64_t i = 0; i < in; ++i) sum += double{x[r * ldx + i]} * double{weights[o * in + i]};
      y[r * out + o] = sum;
    }
  }
}

}  // namespace palimpsest
