#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/short_conv/short_conv.h"

namespace palimpsest {

void ShortConvReference(const ShortConvParams& p) {
  const int64_t history = p.width - 1;
  for (int32_t s = 0; s < p.rows.num_sequences; ++s) {
    const int64_t length = p.rows.length(s);
    if (length == 0) continue;
    float* tail = p.tail.At(p.rows.slot[s]);
    for (int64_t c = 0; c < p.channels; ++c) {
      // The channel's inputs in order of time: what the state kept, then this call's.
      std::vector<float> inputs;
      for (int64_t j = 0; j < history; ++j) inputs.push_back(tail[j * p.channels + c]);
      for (int64_t t = 0; t < length; ++t) inputs.push_back(p.x[(p.rows.row_begin[s] + t) * p.ldx + c]);
      for (int64_t t = 0; t < length; ++t) {
        double sum = p.bias == nullptr ? 0.0 : p.bias[c];
        for (int64_t j = 0; j < p.width; ++j) sum += double{p.weight[j * p.channels + c]} * inputs[t + j];
        if (c >= p.linear_channels && p.activation == ConvActivation::kSilu) sum /= 1.0 + std::exp(-sum);
        p.y[(p.rows.row_begin[s] + t) * p.ldy + c] = static_cast<float>(sum);
      }
      for (int64_t j = 0; j < history; ++j) tail[j * p.channels + c] = inputs[length + j];
    }
  }
}

}  // namespace palimpsest
