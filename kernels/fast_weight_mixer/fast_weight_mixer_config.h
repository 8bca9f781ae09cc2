// Inside fast_weight_mixer: the launch of fused steps. Pure, tested without a device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/common/host_device.h"
#include "kernels/fast_weight/fast_weight_config.h"

namespace palimpsest {

// Divides by a number that only the host knows, without a division: that would be what a small batch waits for first.
// Of numbers and divisors below 2^15.
struct KnownDivisor {
  int32_t divisor = 1;
  uint32_t reciprocal = 0;

  constexpr KnownDivisor() = default;
  constexpr explicit KnownDivisor(int32_t by)
      : divisor(by), reciprocal((uint32_t{1} << 31) / static_cast<uint32_t>(by) + 1) {}

  PALIMPSEST_HOST_DEVICE constexpr int32_t Quotient(int32_t n) const {
    return static_cast<int32_t>(uint64_t{static_cast<uint32_t>(n)} * reciprocal >> 31);
  }
};

// A block has one head of one sequence, with its value heads, or, where their states are more than its threads hold, a
// part of their rows. Parts each make q and k anew, and leave the norm and the tail of q and k, which they all read, to
// a second launch.
struct MixerStepConfig {
  static constexpr int32_t kMostThreads = 256;
  static constexpr int32_t kBlocks = 2;  // that a multiprocessor is to hold, which leaves a thread 128 registers
  // Channels of q, k and v whose loads a thread has in flight together.
  static constexpr int32_t kChannels = 2;
  static constexpr int32_t kPieceRows = FastWeightRowsConfig::kRowsPerThread;

  int32_t value_heads = 0;  // of a head
  // The rows of a value head's state come in pieces, the last one perhaps short. K / kRowFloats lanes have a piece
  // (fast_weight_config.h).
  KnownDivisor pieces_per_head;
  int32_t pieces = 0;  // of a block; of the last part, those that are left
  int32_t parts = 0;
  int32_t threads = 0;

  // In floats from the start of shared memory, where q, k and v come first, one after the other.
  int32_t k = 0, v = 0, read = 0, gain = 0;
  int64_t bytes = 0;
};

// Of shapes that have a register form.
constexpr MixerStepConfig ChooseMixerStepConfig(const FastWeightShape& shape) {
  using Config = MixerStepConfig;
  Config config;
  config.value_heads = shape.value_heads / shape.heads;
  config.pieces_per_head = KnownDivisor((shape.value_dim + Config::kPieceRows - 1) / Config::kPieceRows);
  const int32_t lanes = shape.key_dim / FastWeightRowsConfig::kRowFloats;
  const int32_t all_pieces = config.value_heads * config.pieces_per_head.divisor;
  config.parts = (all_pieces * lanes + Config::kMostThreads - 1) / Config::kMostThreads;
  config.pieces = (all_pieces + config.parts - 1) / config.parts;
  const int32_t values = config.pieces * Config::kPieceRows;
  const int32_t wanted = std::max(config.pieces * lanes, (2 * shape.key_dim + values) / Config::kChannels);
  config.threads = std::min((wanted + 31) / 32 * 32, Config::kMostThreads);

  config.k = shape.key_dim;
  config.v = config.k + shape.key_dim;
  config.read = config.v + values;
  config.gain = config.read + values;
  config.bytes = int64_t{4} * (config.gain + values);
  return config;
}

}  // namespace palimpsest
