// Inside fast_weight_mixer: the launch of fused steps. Pure, tested without a device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/fast_weight/fast_weight_config.h"

namespace palimpsest {

// A block has one head of one sequence, with its value heads: it alone then reads and moves the convolution's tail of
// that head's q and k.
struct MixerStepConfig {
  static constexpr int32_t kMostThreads = 256;
  static constexpr int32_t kLeastThreads = 64;  // q and k are normalised by a warp each
  static constexpr int32_t kBlocks = 2;         // that a multiprocessor is to hold, which leaves a thread 128 registers
  // Channels of q, k and v whose loads a thread has in flight together.
  static constexpr int32_t kChannels = 2;

  int32_t value_heads = 0;  // of a block
  // The state's rows are taken kRowsPerThread at a time by K / kRowFloats lanes (fast_weight_config.h), head by head.
  int32_t pieces_per_head = 0;
  int32_t threads = 0;
  int32_t turns = 0;  // until all pieces are taken

  // In floats from the start of shared memory, where q, k and v come first, one after the other.
  int32_t k = 0, v = 0, read = 0, gain = 0, beta = 0, decay = 0;
  int64_t bytes = 0;
};

// Of shapes that have a register form.
constexpr MixerStepConfig ChooseMixerStepConfig(const FastWeightShape& shape) {
  using Config = MixerStepConfig;
  using Rows = FastWeightRowsConfig;
  Config config;
  config.value_heads = shape.value_heads / shape.heads;
  config.pieces_per_head = (shape.value_dim + Rows::kRowsPerThread - 1) / Rows::kRowsPerThread;
  const int32_t lanes = std::max(shape.key_dim / Rows::kRowFloats, 1);
  const int32_t pieces = config.value_heads * config.pieces_per_head, values = config.value_heads * shape.value_dim;
  const int32_t channels = 2 * shape.key_dim + values;
  const int32_t wanted = std::max(pieces * lanes, channels / Config::kChannels);
  config.threads = std::clamp((wanted + 31) / 32 * 32, Config::kLeastThreads, Config::kMostThreads);
  config.turns = (pieces * lanes + config.threads - 1) / config.threads;

  config.k = shape.key_dim;
  config.v = config.k + shape.key_dim;
  config.read = config.v + values;
  config.gain = config.read + values;
  config.beta = config.gain + values;
  config.decay = config.beta + config.value_heads;
  config.bytes = int64_t{4} * (config.decay + config.value_heads);
  return config;
}

}  // namespace palimpsest
