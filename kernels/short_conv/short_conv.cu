// Steps, of which a thread has one channel, and all other rows. Those are shared out among blocks in equal stretches,
// with no regard to sequences but this: the first width - 1 rows of a sequence, which read its tail, are never parted,
// so that the block that has them can write the tail anew when it is done. A thread takes some channels through a
// stretch; neighbours in a warp are neighbours in memory.
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/ops.h"
#include "kernels/short_conv/short_conv_values.h"

namespace palimpsest::cuda {
namespace {

__global__ void __launch_bounds__(kElementThreads) ShortConvStepKernel(ShortConvParams p) {
  AfterPrevious();
  int64_t s, c;
  if (!ElementPlace(p.rows.num_sequences, p.channels, s, c)) return;
  const int32_t slot = p.rows.slot[s];
  const int64_t row = p.rows.row_begin[s];
  if (slot < 0) return;
  const auto channel = static_cast<int32_t>(c);
  const float x = p.x[row * p.ldx + c];
  ShortConvStep step;
  step.Load(p, slot, channel);
  p.y[row * p.ldy + c] = step.Finish(p, slot, channel, x, /*moves_tail=*/true);
}

constexpr int kStretchThreads = 128;
constexpr int64_t kStretchBlocks = 2048;  // several for each place that any device has
constexpr int64_t kMostStretches = 256;
constexpr int kLeastRows = 8;
constexpr int kRowsAhead = 8;  // whose loads a thread has in flight

// Neighbouring channels of one row.
template <int kChannels>
struct ConvChannels {
  float values[kChannels];

  __device__ __forceinline__ void Load(const float* from) {
    if constexpr (kChannels == 4) {
      const float4 four = *reinterpret_cast<const float4*>(from);
      values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
    } else {
      values[0] = *from;
    }
  }
  // Of weights, which no kernel writes.
  __device__ __forceinline__ void LoadConstant(const float* from) {
    if constexpr (kChannels == 4) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(from));
      values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
    } else {
      values[0] = __ldg(from);
    }
  }
  // Of inputs, which this kernel does not write, but one may that still ran when this was launched (AfterPrevious): so
  // not as read-only memory, and past the multiprocessor's own cache.
  __device__ __forceinline__ void LoadInput(const float* from) {
    if constexpr (kChannels == 4) {
      const float4 four = __ldcg(reinterpret_cast<const float4*>(from));
      values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
    } else {
      values[0] = __ldcg(from);
    }
  }
  __device__ __forceinline__ void Store(float* to) const {
    if constexpr (kChannels == 4) {
      *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
    } else {
      *to = values[0];
    }
  }
  __device__ __forceinline__ void Add(const ConvChannels& weight, const ConvChannels& input) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) values[i] = fmaf(weight.values[i], input.values[i], values[i]);
  }
  __device__ __forceinline__ void Activate(const ShortConvParams& p, int64_t c) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) values[i] = ConvActivated(p, c + i, values[i]);
  }
};

// Channels [c, c + kChannels) of a sequence. Time 0 is the call's first row; the tail holds times -history to -1.
template <int kChannels>
struct ConvSequence {
  using Values = ConvChannels<kChannels>;
  const ShortConvParams& p;
  int64_t c;
  const float* x;  // at time 0
  float* y;
  float* tail;

  __device__ __forceinline__ ConvSequence(const ShortConvParams& p, int32_t s, int64_t c)
      : p(p),
        c(c),
        x(p.x + p.rows.row_begin[s] * p.ldx + c),
        y(p.y + p.rows.row_begin[s] * p.ldy + c),
        tail(p.width == 1 ? nullptr : p.tail.At(p.rows.slot[s]) + c) {}

  __device__ __forceinline__ Values Input(int64_t time) const {
    Values values;
    if (time < 0) {
      values.Load(tail + (p.width - 1 + time) * p.channels);
    } else {
      values.LoadInput(x + time * p.ldx);
    }
    return values;
  }
};

// Rows [begin, end) of a sequence of `length`. Inputs are read once: the last width - 1 of them are at hand.
template <int kWidth, int kChannels>
__device__ void Convolve(const ConvSequence<kChannels>& sequence, int64_t begin, int64_t end,
                         const ConvChannels<kChannels>& bias, const ConvChannels<kChannels> (&weight)[kWidth]) {
  using Values = ConvChannels<kChannels>;
  constexpr int kHistory = kWidth - 1;
  const ShortConvParams& p = sequence.p;
  Values inputs[kHistory + kRowsAhead];
#pragma unroll
  for (int j = 0; j < kHistory; ++j) inputs[j] = sequence.Input(begin - kHistory + j);
  const float* x = sequence.x + begin * p.ldx;
  float* y = sequence.y + begin * p.ldy;
  for (int64_t t = begin; t < end; t += kRowsAhead) {
    const int rows = end - t < kRowsAhead ? static_cast<int>(end - t) : kRowsAhead;
#pragma unroll
    for (int r = 0; r < kRowsAhead; ++r) {
      if (r < rows) inputs[kHistory + r].LoadInput(x + r * p.ldx);
    }
#pragma unroll
    for (int r = 0; r < kRowsAhead; ++r) {
      if (r >= rows) break;
      Values sum = bias;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum.Add(weight[j], inputs[r + j]);
      sum.Activate(p, sequence.c);
      sum.Store(y + r * p.ldy);
    }
    x += kRowsAhead * p.ldx;
    y += kRowsAhead * p.ldy;
#pragma unroll
    for (int j = 0; j < kHistory; ++j) inputs[j] = inputs[kRowsAhead + j];
  }
}

// The same for any width, with nothing at hand.
template <int kChannels>
__device__ void Convolve(const ConvSequence<kChannels>& sequence, int64_t begin, int64_t end,
                         const ConvChannels<kChannels>& bias) {
  const ShortConvParams& p = sequence.p;
  for (int64_t t = begin; t < end; ++t) {
    ConvChannels<kChannels> sum = bias, weight;
    for (int64_t j = 0; j < p.width; ++j) {
      weight.LoadConstant(p.weight + j * p.channels + sequence.c);
      sum.Add(weight, sequence.Input(t - p.width + 1 + j));
    }
    sum.Activate(p, sequence.c);
    sum.Store(sequence.y + t * p.ldy);
  }
}

// kWidth 0: any.
template <int kWidth, int kChannels>
__global__ void __launch_bounds__(kStretchThreads) ShortConvStretchKernel(ShortConvParams p) {
  AfterPrevious();
  const int64_t c = (int64_t{blockIdx.x} * kStretchThreads + threadIdx.x) * kChannels;
  if (c >= p.channels) return;
  const int32_t* const row_begin = p.rows.row_begin;
  const int64_t history = p.width - 1, last = row_begin[p.rows.num_sequences], rows = last - row_begin[0];
  const int64_t equal = DivideUp(rows, gridDim.y), stretch = equal < kLeastRows ? kLeastRows : equal;
  const int64_t begin = row_begin[0] + blockIdx.y * stretch, end = begin + stretch < last ? begin + stretch : last;
  if (begin >= end) return;
  int32_t s = 0;  // the last sequence that does not begin after the stretch does
  for (int32_t after = p.rows.num_sequences; after - s > 1;) {
    const int32_t middle = (s + after) / 2;
    (row_begin[middle] <= begin ? s : after) = middle;
  }
  ConvChannels<kChannels> bias = {}, weight[kWidth == 0 ? 1 : kWidth];
  if (p.bias != nullptr) bias.LoadConstant(p.bias + c);
  for (int j = 0; j < kWidth; ++j) weight[j].LoadConstant(p.weight + j * p.channels + c);
  for (; s < p.rows.num_sequences && row_begin[s] < end; ++s) {
    if (p.rows.slot[s] < 0) continue;
    // Rows of the sequence. A border among its first ones moves to where it begins.
    const int64_t length = row_begin[s + 1] - row_begin[s];
    int64_t from = begin - row_begin[s], to = end - row_begin[s];
    if (from < history) from = 0;
    if (to >= length) {
      to = length;
    } else if (to < history) {
      to = 0;
    }
    if (from >= to) continue;
    const ConvSequence<kChannels> sequence(p, s, c);
    if constexpr (kWidth == 0) {
      Convolve(sequence, from, to, bias);
    } else {
      Convolve<kWidth>(sequence, from, to, bias, weight);
    }
    if (from > 0) continue;
    // Ascending, so that what is still needed of the tail is not yet overwritten.
    for (int64_t j = 0; j < history; ++j) sequence.Input(length - history + j).Store(sequence.tail + j * p.channels);
  }
}

bool AreAligned(const ShortConvParams& p) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return aligned(p.x) && aligned(p.y) && aligned(p.weight) && aligned(p.bias) && p.ldx % 4 == 0 && p.ldy % 4 == 0 &&
         p.channels % 4 == 0;
}

}  // namespace

cudaError_t Run(const ShortConvParams& p, const Target& target) {
  ShortConvParams steps = p, rest = p;
  rest.rows = p.rows.AfterSteps();
  steps.rows.num_sequences -= rest.rows.num_sequences;
  const cudaError_t error =
      Launch(ShortConvStepKernel, ElementShape(steps.rows.num_sequences, p.channels), target, steps);
  if (error != cudaSuccess || rest.rows.num_sequences == 0) return error;
  const auto launch = [&]<int kChannels>() {
    const int64_t blocks = DivideUp(p.channels, kChannels * kStretchThreads);
    const int64_t wanted = DivideUp(kStretchBlocks, blocks);
    const int64_t stretches = wanted < kMostStretches ? wanted : kMostStretches;
    return Launch(
        p.width == 4 ? ShortConvStretchKernel<4, kChannels> : ShortConvStretchKernel<0, kChannels>,
        {.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(stretches)), .block = dim3(kStretchThreads)},
        target, rest);
  };
  return AreAligned(p) ? launch.template operator()<4>() : launch.template operator()<1>();
}

}  // namespace palimpsest::cuda
