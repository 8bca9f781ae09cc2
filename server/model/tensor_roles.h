// What a tensor is for, whatever a checkpoint calls it.
#pragma once

#include <cstdint>
#include <vector>

namespace palimpsest {

// Letters: D hidden size, I inner size of the MLP, H and HV heads, K and V head sizes, W width of the convolution.
enum class Role : uint8_t {
  kMixerNorm,      // [D]
  kMixerNormBias,  // [D]
  kQuery,          // [H * K, D]
  kKey,            // [H * K, D]
  kValue,          // [HV * V, D]
  kGate,           // [HV * V, D]
  kGateDown,       // [rank, D]
  kGateUp,         // [HV * V, rank]
  kGateBias,       // [HV * V]
  kBeta,           // [HV, D]
  kDecay,          // [HV, D]; by channel [HV * K, D]
  kDecayDown,      // [rank, D]
  kDecayUp,        // [HV * K, rank]
  kDecayRate,      // [HV], a logarithm ("A_log")
  kDecayBias,      // [HV], by channel [HV * K] ("dt_bias")
  kQueryConv,      // [channels, 1, W]
  kKeyConv,
  kValueConv,
  kQueryConvBias,  // [channels]
  kKeyConvBias,
  kValueConvBias,
  kFeatureProjection,  // [m, K]
  kQueryMap,           // [K, K] of a learned feature map
  kQueryMapBias,       // [K]
  kQueryMap2,          // of one that multiplies two
  kQueryMap2Bias,
  kKeyMap,
  kKeyMapBias,
  kKeyMap2,
  kKeyMap2Bias,
  kRelativeProjection,  // [H * K, D]
  kContentBias,         // [H, K], of all layers
  kPositionBias,        // [H, K], of all layers
  kOutputNorm,          // [V]
  kOutput,              // [D, HV * V]

  kChannelNorm,      // [D]
  kChannelNormBias,  // [D]
  kMlpGate,          // [I, D]
  kMlpUp,            // [I, D]
  kMlpUpBias,        // [I]
  kMlpDown,          // [D, I]
  kMlpDownBias,      // [D]

  kEmbedding,            // [ids, width], of a cluster
  kEmbeddingProjection,  // [D, width]
  kFinalNorm,            // [D]
  kFinalNormBias,        // [D]
  kHead,                 // [ids, width]
  kHeadBias,             // [ids]
  kHeadProjection,       // [width, D]
  kHeadClusters,         // [clusters - 1, width]
  kHeadClusterBias,      // [clusters - 1]

  kIgnored,  // written by some, read by none
};

// Which of a tensor's rows: all, or one of so many equal parts, one below the other.
struct Rows {
  int32_t part = 0;
  int32_t parts = 1;
};

// A name of the tensor that has a role. "{}" in the pattern stands for the index of the layer, or of the cluster; a
// pattern of a layer's role without it names one tensor for all layers.
struct TensorName {
  Role role;
  const char* pattern;
  Rows rows = {};
};

// What a part of the model asks for.
struct TensorSpec {
  Role role;
  std::vector<int64_t> shape;
};

}  // namespace palimpsest
