// A warp takes one head of one row: its features to y, their sum, then the factor onto y.
#include "kernels/cuda/group.h"
#include "kernels/cuda/ops.h"
#include "kernels/feature_map/feature_map_values.h"

namespace palimpsest::cuda {
namespace {

constexpr int kHeadsPerBlock = 4;

// Output j of a learned map's matrices.
template <FeatureMapKind kMap>
__device__ __forceinline__ float LearnedOutput(const FeatureMapParams& p, const float* staged, int j) {
  const int outputs = LearnedOutputs(kMap, p.dim);
  const float* weight = p.projection + j;
  float u = weight[int64_t{p.dim} * outputs];
#pragma unroll 4
  for (int i = 0; i < p.dim; ++i, weight += outputs) u = fmaf(staged[i], *weight, u);
  return u;
}

// The lane's features are numbers j and dim + j; those of all lanes are in work in y, where only their own lane looks.
template <typename Give>
__device__ __forceinline__ void ForHedgehogFeatures(const FeatureMapParams& p, const float* staged, float* y,
                                                    Give give) {
  float most = 0.0f, sum = 0.0f;
  for (int j = threadIdx.x; j < p.dim; j += kWarp) {
    y[j] = 2.0f * LearnedOutput<FeatureMapKind::kHedgehog>(p, staged, j);
    most = fabsf(y[j]) > most || y[j] != y[j] ? fabsf(y[j]) : most;
  }
  most = GroupMax<kWarp>(most);
  for (int j = threadIdx.x; j < p.dim; j += kWarp) {
    const float u = y[j];
    y[j] = expf(u - most);
    y[p.dim + j] = expf(-u - most);
    sum += y[j] + y[p.dim + j];
  }
  const float factor = 1.0f / GroupSum<kWarp>(sum);
  for (int j = threadIdx.x; j < p.dim; j += kWarp) {
    give(j, y[j] * factor);
    give(p.dim + j, y[p.dim + j] * factor);
  }
}

// Calls give(j, feature j) for the features of this lane. `staged` is x in shared memory, for maps that mix its values.
template <FeatureMapKind kMap, typename Give>
__device__ __forceinline__ void ForFeatures(const FeatureMapParams& p, const float* x, float* staged, float* y,
                                            Give give) {
  const int lane = threadIdx.x;
  if constexpr (IsLearned(kMap)) {
    for (int i = lane; i < p.dim; i += kWarp) staged[i] = x[i];
    __syncwarp();
    if constexpr (kMap == FeatureMapKind::kHedgehog) {
      ForHedgehogFeatures(p, staged, y, give);
    } else {
      for (int j = lane; j < p.dim; j += kWarp) {
        const float u = LearnedOutput<kMap>(p, staged, j);
        give(j, kMap == FeatureMapKind::kT2r ? Relu(u) : u * LearnedOutput<kMap>(p, staged, p.dim + j));
      }
    }
  } else if constexpr (kMap == FeatureMapKind::kDpfp || kMap == FeatureMapKind::kFavor) {
    float squares = 0.0f;
    for (int i = lane; i < p.dim; i += kWarp) {
      staged[i] = x[i];
      squares = fmaf(x[i], x[i], squares);
    }
    __syncwarp();
    if constexpr (kMap == FeatureMapKind::kDpfp) {
      const int width = 2 * p.dim;
      const auto r = [&](int i) { return i < p.dim ? Relu(staged[i]) : Relu(-staged[i - p.dim]); };
      for (int j = lane; j < width * p.rolls; j += kWarp) {
        const int i = j % width, roll = j / width + 1;
        give(j, r(i) * r(i >= roll ? i - roll : i + width - roll));
      }
    } else {
      const int m = p.projections;
      const float offset = -0.5f * GroupSum<kWarp>(squares), factor = 1.0f / sqrtf(2.0f * static_cast<float>(m));
      for (int j = lane; j < m; j += kWarp) {
        float u = 0.0f;
        for (int i = 0; i < p.dim; ++i) u = fmaf(staged[i], p.projection[int64_t{i} * m + j], u);
        give(j, (expf(offset + u) + 1e-4f) * factor);
        give(m + j, (expf(offset - u) + 1e-4f) * factor);
      }
    }
  } else {
    for (int j = lane; j < p.dim; j += kWarp) give(j, Feature(kMap, x[j]));
  }
}

template <FeatureMapKind kMap>
__global__ void __launch_bounds__(kWarp* kHeadsPerBlock) FeatureMapKernel(FeatureMapParams p) {
  AfterPrevious();
  const int64_t head = int64_t{blockIdx.x} * kHeadsPerBlock + threadIdx.y;
  if (head >= int64_t{p.rows} * p.heads) return;
  const int features = p.features();
  const float* const x = p.x + head / p.heads * p.ldx + head % p.heads * p.dim;
  float* const y = p.y + head / p.heads * p.ldy + head % p.heads * features;
  float sum = 0.0f;
  ForFeatures<kMap>(p, x, Shared<float>() + int64_t{threadIdx.y} * p.dim, y, [&](int j, float feature) {
    y[j] = feature;
    sum = AddFeature(p.norm, feature, sum);
  });
  if (p.norm != KeyNorm::kNone) sum = GroupSum<kWarp>(sum);
  const float factor = FeatureFactor(p.norm, p.scale, sum);
  if (factor == 1.0f) return;
  // Each lane rescales what it wrote: feature j is lane j's, or, of maps with two halves, that of its place in its
  // half.
  const bool halves = kMap == FeatureMapKind::kFavor || kMap == FeatureMapKind::kHedgehog;
  const int half = halves ? features / 2 : features;
  for (int begin = 0; begin < features; begin += half) {
    for (int j = threadIdx.x; j < half; j += kWarp) y[begin + j] *= factor;
  }
}

template <FeatureMapKind kMap>
cudaError_t LaunchMap(const FeatureMapParams& p, const Target& target) {
  const int64_t heads = int64_t{p.rows} * p.heads;
  return Launch(FeatureMapKernel<kMap>,
                {.grid = dim3(static_cast<unsigned>(DivideUp(heads, kHeadsPerBlock))),
                 .block = dim3(kWarp, kHeadsPerBlock),
                 .shared_bytes = kHeadsPerBlock * int64_t{p.dim} * 4},
                target, p);
}

}  // namespace

cudaError_t Run(const FeatureMapParams& p, const Target& target) {
  switch (p.map) {
    case FeatureMapKind::kIdentity:
      return LaunchMap<FeatureMapKind::kIdentity>(p, target);
    case FeatureMapKind::kElu1:
      return LaunchMap<FeatureMapKind::kElu1>(p, target);
    case FeatureMapKind::kRelu:
      return LaunchMap<FeatureMapKind::kRelu>(p, target);
    case FeatureMapKind::kSilu:
      return LaunchMap<FeatureMapKind::kSilu>(p, target);
    case FeatureMapKind::kDpfp:
      return LaunchMap<FeatureMapKind::kDpfp>(p, target);
    case FeatureMapKind::kFavor:
      return LaunchMap<FeatureMapKind::kFavor>(p, target);
    case FeatureMapKind::kElementwiseProduct:
      return LaunchMap<FeatureMapKind::kElementwiseProduct>(p, target);
    case FeatureMapKind::kT2r:
      return LaunchMap<FeatureMapKind::kT2r>(p, target);
    case FeatureMapKind::kHedgehog:
      return LaunchMap<FeatureMapKind::kHedgehog>(p, target);
  }
  return cudaErrorInvalidValue;
}

}  // namespace palimpsest::cuda
