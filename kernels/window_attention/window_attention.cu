// A block takes one head of one sequence, row by row. For each row:
//   1. write its key and value into the ring
//   2. for every kTile visible positions: a thread each, the score; then weights relative to the greatest score so far
//   3. a thread each, its part of the values' weighted sum, rescaled when the greatest score grows
// Any window fits: what is kept is one tile of weights and one output.
#include "kernels/cuda/group.h"
#include "kernels/cuda/ops.h"
#include "kernels/window_attention/window_attention.h"

namespace palimpsest::cuda {
namespace {

constexpr int kTile = 128;

__global__ void __launch_bounds__(kTile, 8) WindowAttentionKernel(WindowAttentionParams p) {
  AfterPrevious();
  const int64_t s = blockIdx.y, head = blockIdx.x, column = head * p.dim, width = int64_t{p.heads} * p.dim;
  const int32_t slot = p.rows.slot[s];
  if (slot < 0) return;
  float* const sums = Shared<float>();                // [kGroupWords]
  float* const weights = sums + kGroupWords<kTile>;   // [kTile]
  float* const query = weights + kTile;               // [dim]
  float* const position_query = query + p.dim;        // [dim]
  float* const accumulated = position_query + p.dim;  // [dim]
  float* const keys = p.ring.At(slot) + head * p.capacity * p.dim;
  float* const values = keys + p.ring_floats() / 2;
  const int thread = threadIdx.x;
  const int64_t begin = p.rows.row_begin[s];
  for (int64_t r = begin; r < p.rows.row_begin[s + 1]; ++r) {
    const int64_t t = p.first_position[s] + r - begin, place = t % p.capacity * p.dim;
    for (int i = thread; i < p.dim; i += kTile) {
      keys[place + i] = p.k[r * p.ldk + column + i];
      values[place + i] = p.v[r * p.ldv + column + i];
      const float q = p.q[r * p.ldq + column + i];
      query[i] = p.relative == nullptr ? q : q + p.content_bias[column + i];
      position_query[i] = p.relative == nullptr ? 0.0f : q + p.position_bias[column + i];
      accumulated[i] = 0.0f;
    }
    __syncthreads();
    float max = -INFINITY, total = 0.0f;
    for (int64_t tile = p.first_visible(t); tile <= t; tile += kTile) {
      const int64_t j = tile + thread;
      float score = -INFINITY;
      if (j <= t) {
        const float* const key = keys + j % p.capacity * p.dim;
        score = 0.0f;
        for (int i = 0; i < p.dim; ++i) score = fmaf(query[i], key[i], score);
        if (p.relative != nullptr) {
          const float* const relative = p.relative + (t - j) * width + column;
          float positional = 0.0f;
          for (int i = 0; i < p.dim; ++i) positional = fmaf(position_query[i], relative[i], positional);
          score += positional;
        }
        score *= p.scale;
      }
      const float new_max = fmaxf(max, GroupMax<kTile>(score, sums));
      const float weight = j <= t ? expf(score - new_max) : 0.0f;
      weights[thread] = weight;
      const float rescale = expf(max - new_max);  // 0 at first
      total = total * rescale + GroupSum<kTile>(weight, sums);
      max = new_max;
      const int64_t count = t - tile + 1 < kTile ? t - tile + 1 : kTile;
      for (int i = thread; i < p.dim; i += kTile) {
        float sum = accumulated[i] * rescale;
        for (int64_t n = 0; n < count; ++n) sum = fmaf(weights[n], values[(tile + n) % p.capacity * p.dim + i], sum);
        accumulated[i] = sum;
      }
      __syncthreads();
    }
    for (int i = thread; i < p.dim; i += kTile) p.out[r * p.ldout + column + i] = accumulated[i] / total;
  }
}

}  // namespace

cudaError_t Run(const WindowAttentionParams& p, const Target& target) {
  if (p.segment < 1 || p.memory < 0 || p.capacity != p.segment + p.memory) return cudaErrorInvalidValue;
  if (p.rows.num_sequences > 65535) return cudaErrorInvalidValue;
  return Launch(WindowAttentionKernel,
                {.grid = dim3(static_cast<unsigned>(p.heads), static_cast<unsigned>(p.rows.num_sequences)),
                 .block = dim3(kTile),
                 .shared_bytes = (kGroupWords<kTile> + kTile + 3 * int64_t{p.dim}) * 4},
                target, p);
}

}  // namespace palimpsest::cuda
