// Depthwise causal convolution over time, with the last inputs of each sequence kept in its state.
//
//   y_t[c] = act( sum_{j < width} w[c, j] x_{t - (width-1) + j}[c] + bias[c] )      index width-1 is the current row
#pragma once

#include <cstdint>

#include "kernels/common/ragged.h"
#include "kernels/common/thread_pool.h"

namespace palimpsest {

enum class ConvActivation : uint8_t { kNone, kSilu };

// The first `linear_channels` channels can differ from the rest: q and k may be linear where v is not.
struct ShortConvParams {
  RaggedRows rows;
  int32_t channels = 0;
  int32_t width = 0;              // >= 1
  const float* weight = nullptr;  // [width, channels]: transposed from a checkpoint's [channels, 1, width]
  const float* bias = nullptr;    // [channels] or null
  int32_t linear_channels = 0;    // channels [0, linear_channels) have no activation, the rest have `activation`
  ConvActivation activation = ConvActivation::kSilu;
  StatePiece tail;           // [width - 1, channels] raw inputs, oldest first; updated in place
  const float* x = nullptr;  // [rows, channels], row stride ldx
  int64_t ldx = 0;
  float* y = nullptr;  // [rows, channels], row stride ldy; does not overlap x
  int64_t ldy = 0;
};
void ShortConv(const ExecContext& ctx, const ShortConvParams& params);

// The truth, in double precision.
void ShortConvReference(const ShortConvParams& params);

}  // namespace palimpsest
