// The CUDA home of each op: checks what a launch can be wrong about, chooses its shape and puts it on the stream. Does
// not allocate, does not wait. Pointers are the device's; see kernels/common/device.h.
#pragma once

#include <memory>

#include "kernels/common/device.h"
#include "kernels/cuda/cuda.h"

namespace palimpsest::cuda {

cudaError_t Run(const AdvanceReplayParams& params, const Target& target);
cudaError_t Run(const AttentionNormParams& params, const Target& target);
cudaError_t Run(const CopyRowsParams& params, const Target& target);
cudaError_t Run(const EmbeddingParams& params, const Target& target);
cudaError_t Run(const FastWeightMixerParams& params, const Target& target);
cudaError_t Run(const FastWeightParams& params, const Target& target);
cudaError_t Run(const FeatureMapParams& params, const Target& target);
cudaError_t Run(const FlushReplayParams& params, const Target& target);
cudaError_t Run(const GateParams& params, const Target& target);
cudaError_t Run(const LayerNormParams& params, const Target& target);
cudaError_t Run(const LogSoftmaxParams& params, const Target& target);
cudaError_t Run(const ReluParams& params, const Target& target);
cudaError_t Run(const RmsNormParams& params, const Target& target);
cudaError_t Run(const ShortConvParams& params, const Target& target);
cudaError_t Run(const SinusoidParams& params, const Target& target);
cudaError_t Run(const SwigluParams& params, const Target& target);
cudaError_t Run(const WindowAttentionParams& params, const Target& target);

}  // namespace palimpsest::cuda
