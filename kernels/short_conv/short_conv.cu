// A thread takes one channel of one sequence through time; neighbours in a warp are neighbours in memory.
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/ops.h"
#include "kernels/short_conv/short_conv_values.h"

namespace palimpsest::cuda {
namespace {

__global__ void __launch_bounds__(kElementThreads) ShortConvKernel(ShortConvParams p) {
  int64_t s, c;
  if (!ElementPlace(p.rows.num_sequences, p.channels, s, c)) return;
  const int32_t slot = p.rows.slot[s];
  if (slot < 0) return;
  const int64_t first = p.rows.row_begin[s], length = p.rows.row_begin[s + 1] - first, history = p.width - 1;
  float* const tail = history == 0 ? nullptr : p.tail.At(slot) + c;
  // Time 0 is the call's first row; the state holds times -history to -1.
  const auto input = [&](int64_t time) {
    return time < 0 ? tail[(history + time) * p.channels] : p.x[(first + time) * p.ldx + c];
  };
  for (int64_t t = 0; t < length; ++t) {
    float sum = p.bias == nullptr ? 0.0f : p.bias[c];
    for (int64_t j = 0; j < p.width; ++j) sum = fmaf(p.weight[j * p.channels + c], input(t - history + j), sum);
    p.y[(first + t) * p.ldy + c] = ConvActivated(p, c, sum);
  }
  // Ascending, so that what is still needed of the tail is not yet overwritten.
  for (int64_t j = 0; length > 0 && j < history; ++j) tail[j * p.channels] = input(length - history + j);
}

}  // namespace

cudaError_t Run(const ShortConvParams& p, const Target& target) {
  return Launch(ShortConvKernel, ElementShape(p.rows.num_sequences, p.channels), target, p);
}

}  // namespace palimpsest::cuda
