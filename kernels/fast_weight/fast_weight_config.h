// Inside fast_weight: which form a device uses for which shape, and with what launch. Pure, tested without a device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/fast_weight/fast_weight.h"

namespace palimpsest {

// Rows of the state live in registers: kRowFloats consecutive-by-fours floats of a row per thread, so a row is spread
// over K / kRowFloats neighbouring lanes; and kRowsPerThread such rows, so that their loads are in flight together.
struct FastWeightRowsConfig {
  static constexpr int32_t kRowFloats = 16;
  static constexpr int32_t kRowsPerThread = 4;
  static constexpr int32_t kMostThreads = 128;

  int32_t key_dim = 0;  // 0: any; a row then stays in memory and is read and written by one warp
  int32_t threads = 0;
  int32_t rows_per_block = 0;  // of the state
  int32_t blocks_per_head = 0;
};

// Forms of the kernel: one row at most, the same in the replay form, or any number, and of writes to each.
enum class RowsForm : uint8_t { kStep, kReplayStep, kRows };

// Blocks that a multiprocessor is to hold at once: while one waits for its loads, others compute and store. Four leave
// 128 registers to a thread, three 168, two 255. Entries of the replay form and decays by channel take some, and so
// does going from row to row, where loads are few.
constexpr int32_t RowsBlocksOf(UpdateRule rule, RowsForm form) {
  if (form == RowsForm::kRows) return 2;
  return form == RowsForm::kReplayStep || DecaysChannels(rule) ? 3 : 4;
}

constexpr FastWeightRowsConfig ChooseRowsConfig(const FastWeightShape& shape) {
  using Config = FastWeightRowsConfig;
  Config config;
  int32_t lanes = 32, rows_per_thread = 1;
  if (HasRegisterForm(shape.key_dim)) {
    config.key_dim = shape.key_dim;
    lanes = shape.key_dim / Config::kRowFloats;
    rows_per_thread = Config::kRowsPerThread;
  }
  const int32_t wanted = (shape.value_dim + rows_per_thread - 1) / rows_per_thread * lanes;
  config.threads = std::clamp((wanted + 31) / 32 * 32, 32, Config::kMostThreads);
  config.rows_per_block = config.threads / lanes * rows_per_thread;
  config.blocks_per_head = (shape.value_dim + config.rows_per_block - 1) / config.rows_per_block;
  return config;
}

// What a block fetches of the replay form's entries to shared memory, if it has `rows` of a head's state.
inline constexpr int64_t kMostFetchedBytes = 32 << 10;  // else it reads them from where they are
constexpr int64_t FetchedEntriesBytes(const FastWeightParams& p, int32_t rows) {
  return int64_t{4} * (p.replay.interval - 1) * (p.shape.key_dim + 4 + (rows + 3) / 4 * 4);
}

// The parallel form of a chunk: a block has a head's whole chunk of q and k, and some of the rows of its state
// (values), in shared memory. Strides are such that the lanes of a warp meet no bank twice: they read 16 bytes of each
// of 8 rows at a time, or 8 bytes at 4 neighbouring columns of each of 4 rows.
struct FastWeightChunkLayout {
  static constexpr int32_t kChunk = FastWeightParams::kChunk;
  static constexpr int32_t kThreads = 256;
  static constexpr int32_t kRowStride = kChunk + 8;
  static constexpr int32_t kInverseStride = 16 + 8;

  int32_t key_stride = 0, value_stride = 0;
  // In floats from the start of shared memory; the sums of log-decays are pairs.
  int32_t k = 0, q = 0, state = 0, v = 0, u = 0, inverse = 0, beta = 0, from_start = 0, to_end = 0, sum = 0;
  int64_t bytes = 0;
};

constexpr FastWeightChunkLayout ChunkLayoutOf(int32_t key_dim, int32_t values) {
  using Layout = FastWeightChunkLayout;
  Layout layout;
  layout.key_stride = key_dim + 4;
  layout.value_stride = values + 8;
  layout.k = 0;
  layout.q = layout.k + Layout::kChunk * layout.key_stride;
  layout.state = layout.q + Layout::kChunk * layout.key_stride;
  layout.v = layout.state + values * layout.key_stride;
  layout.u = layout.v + Layout::kChunk * layout.value_stride;
  layout.inverse = layout.u + values * Layout::kRowStride;
  layout.beta = layout.inverse + Layout::kChunk * Layout::kInverseStride;
  layout.from_start = layout.beta + Layout::kChunk;
  layout.to_end = layout.from_start + Layout::kChunk;
  layout.sum = layout.to_end + Layout::kChunk;
  layout.bytes = int64_t{4} * (layout.sum + 2 * Layout::kChunk);
  return layout;
}

// Values of a block, of which more share the scores: as many as registers and shared memory hold, unless that would
// leave multiprocessors without a block. Which it is changes no bit.
constexpr int32_t ChunkValuesOf(const FastWeightShape& shape, int32_t num_sequences) {
  constexpr int64_t kMultiprocessors = 132;  // of an H100
  if (shape.key_dim == 64) return 64;
  const int64_t blocks_of_32 = int64_t{num_sequences} * shape.value_heads * ((shape.value_dim + 31) / 32);
  return shape.key_dim == 128 && blocks_of_32 > kMultiprocessors ? 64 : 32;
}

// Else chunks are taken row by row, with the state kept in registers.
constexpr bool HasChunkForm(int32_t key_dim, UpdateRule rule, int32_t sub_steps, int64_t shared_bytes_per_block) {
  return (key_dim == 64 || key_dim == 128 || key_dim == 256) && !DecaysChannels(rule) && sub_steps == 1 &&
         ChunkLayoutOf(key_dim, key_dim == 256 ? 32 : 64).bytes <= shared_bytes_per_block;
}

}  // namespace palimpsest
