// The tile kernel on AVX512-BF16's dot product, which Highway 1.0.3 has no target for. The instruction adds two
// products to each float32 lane: lane o of a panel takes inputs 2j and 2j+1 of output o, so an output is one chain here
// too.

#include "kernels/linear/linear_tile.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace palimpsest {
namespace {

#define PALIMPSEST_BF16_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

constexpr int kVectors = 2;  // per panel
static_assert(PackedLinear::kPanel == kVectors * 16);
constexpr int64_t kPrefetchBytes = 2048;  // as in linear_cpu.cc

template <int kRows, int kPanels>
PALIMPSEST_BF16_TARGET inline void Multiply(const TileArgs& args, int64_t panel) {
  __m512 sum[kPanels][kRows][kVectors];
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) {
      for (int n = 0; n < kVectors; ++n) sum[p][r][n] = _mm512_setzero_ps();
    }
  }
  const std::byte* w = args.panels + panel * args.panel_bytes;
  const uint32_t* x = args.x;
  for (int64_t j = 0; j < args.depth; ++j, w += kVectors * 64, x += kRows) {
    for (int p = 0; p < kPanels; ++p) {
      const std::byte* const w_p = w + p * args.panel_bytes;
      _mm_prefetch(w_p + kPrefetchBytes, _MM_HINT_T0);
      _mm_prefetch(w_p + kPrefetchBytes + 64, _MM_HINT_T0);
      const __m512bh w0 = (__m512bh)_mm512_load_si512(w_p);
      const __m512bh w1 = (__m512bh)_mm512_load_si512(w_p + 64);
      for (int r = 0; r < kRows; ++r) {
        const __m512bh x_r = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[r]));
        sum[p][r][0] = _mm512_dpbf16_ps(sum[p][r][0], w0, x_r);
        sum[p][r][1] = _mm512_dpbf16_ps(sum[p][r][1], w1, x_r);
      }
    }
  }
  for (int p = 0; p < kPanels; ++p) {
    const int64_t out = args.out - (panel + p) * PackedLinear::kPanel;
    for (int r = 0; r < kRows; ++r) {
      float* const y = args.y + r * args.ldy + (panel + p) * PackedLinear::kPanel;
      for (int n = 0; n < kVectors; ++n) {
        const int64_t lanes = out - n * 16;
        const __mmask16 mask = lanes >= 16 ? 0xFFFF : lanes > 0 ? (1u << lanes) - 1 : 0;
        __m512 v = sum[p][r][n];
        if (args.accumulate) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y + n * 16), v);
        _mm512_mask_storeu_ps(y + n * 16, mask, v);
      }
    }
  }
}

template <int kRows>
PALIMPSEST_BF16_TARGET __attribute__((noinline)) void MultiplyPanels(const TileArgs& args) {
  constexpr int kAtOnce = kRows == 1 ? 4 : kRows <= 4 ? 2 : 1;  // as in linear_cpu.cc
  int64_t panel = 0;
  if constexpr (kAtOnce > 1) {
    for (; panel + kAtOnce <= args.num_panels; panel += kAtOnce) Multiply<kRows, kAtOnce>(args, panel);
  }
  for (; panel < args.num_panels; ++panel) Multiply<kRows, 1>(args, panel);
}

template <int kRows>
void MultiplyTile(const TileArgs& args) {
  if (args.rows == kRows) return MultiplyPanels<kRows>(args);
  if constexpr (kRows > 1) MultiplyTile<kRows - 1>(args);
}

}  // namespace

void MultiplyTileBF16Dot(const TileArgs& args) { MultiplyTile<kBF16DotMaxRows>(args); }

}  // namespace palimpsest

#else

#include "base/check.h"

namespace palimpsest {
void MultiplyTileBF16Dot(const TileArgs&) { PALIMPSEST_CHECK(!"HasNativeBF16() is false on this architecture"); }
}  // namespace palimpsest

#endif
