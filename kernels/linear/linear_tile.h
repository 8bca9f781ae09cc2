// Inside linear: how the driver (linear_cpu.cc) and the tile kernels meet.
//
// A tile is a few rows of x, packed so that the kernel reads them in order: [depth][rows] words of 32 bits. A word is a
// float32, or two bf16 neighbours along `in` for the dot-product instruction.
#pragma once

#include <cstdint>

#include "kernels/linear/linear.h"

namespace palimpsest {

enum class TileWord : uint8_t { kFloat, kRoundedFloat, kBF16Pair };  // kRoundedFloat: a float that is a bf16 value

struct TileArgs {
  const std::byte* panels = nullptr;  // the first of them
  int64_t panel_bytes = 0;
  int64_t num_panels = 0;
  int64_t depth = 0;  // words per row of x, a multiple of two for bf16 weights in float words
  const uint32_t* x = nullptr;
  int32_t rows = 0;
  float* y = nullptr;  // of the tile's first row and the first panel's first output
  int64_t ldy = 0;
  int64_t out = 0;  // outputs in these panels; less than num_panels * kPanel when the last one is padded
  bool accumulate = false;
};

struct TileKernels {
  int32_t max_rows;               // of a tile
  void (*f32)(const TileArgs&);   // f32 weights, float words
  void (*bf16)(const TileArgs&);  // bf16 weights, float words
  void (*pack)(TileWord word, const float* x, int64_t ldx, int32_t rows, int64_t in, int64_t depth, uint32_t* tile);
};

// bf16 weights, pair words. Only where HasNativeBF16().
constexpr int32_t kBF16DotMaxRows = 12;
void MultiplyTileBF16Dot(const TileArgs& args);

}  // namespace palimpsest
