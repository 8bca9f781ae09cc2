// Inside short_conv: what a device does with one channel.
#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/math.h"
#include "kernels/short_conv/short_conv.h"

namespace palimpsest::cuda {

__device__ __forceinline__ float ConvActivated(const ShortConvParams& p, int64_t c, float sum) {
  return p.activation == ConvActivation::kSilu && c >= p.linear_channels ? Silu(sum) : sum;
}

// A tail takes in x.
__device__ __forceinline__ void MoveTail(const ShortConvParams& p, int32_t slot, int32_t c, float x) {
  float* const tail = p.tail.At(slot) + c;
  const int history = p.width - 1;
  for (int j = 0; j < history; ++j) tail[j * p.channels] = j + 1 < history ? tail[(j + 1) * p.channels] : x;
}

// One row of a sequence, one channel of it, by one thread. What it loads is asked for apart from the rest, so that the
// thread can ask for more before it waits; of long convolutions, that is the first kHeld inputs of the tail.
class ShortConvStep {
 public:
  __device__ __forceinline__ void Load(const ShortConvParams& p, int32_t slot, int32_t c) {
    const float* const tail = p.tail.At(slot) + c;
    const float* const weight = p.weight + c;
    const int history = p.width - 1;
    sum_ = p.bias == nullptr ? 0.0f : p.bias[c];
    last_weight_ = weight[history * p.channels];
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (j >= history) break;
      held_[j] = tail[j * p.channels];
      held_weights_[j] = weight[j * p.channels];
    }
  }

  // The output of the row's input x, which the tail takes in if it is to.
  __device__ __forceinline__ float Finish(const ShortConvParams& p, int32_t slot, int32_t c, float x,
                                          bool moves_tail) const {
    float* const tail = p.tail.At(slot) + c;
    const int history = p.width - 1;
    float sum = sum_;
    const auto take = [&](int j, float weight, float input) {
      sum = fmaf(weight, input, sum);
      if (moves_tail && j > 0) tail[(j - 1) * p.channels] = input;
    };
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (j < history) take(j, held_weights_[j], held_[j]);
    }
#pragma unroll 1
    for (int j = kHeld; j < history; ++j) {
      take(j, p.weight[j * p.channels + c], tail[j * p.channels]);
    }
    take(history, last_weight_, x);
    return ConvActivated(p, c, sum);
  }

 private:
  static constexpr int kHeld = 3;
  float held_[kHeld], held_weights_[kHeld];
  float sum_, last_weight_;
};

}  // namespace palimpsest::cuda
