// The tile kernels in Highway, and the driver that cuts a call into tiles.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/linear/linear_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/common/device.h"
#include "kernels/common/simd_math-inl.h"
#include "kernels/linear/linear_tile.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int kPanel = static_cast<int>(PackedLinear::kPanel);
using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;
constexpr D d;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
constexpr int kVectors = kPanel / kLanes;  // per panel

// Rows of a tile: as many as leave registers for a panel's weights. 32 vector registers hold 12 x 2 sums, 16 hold 3
// x 4.
constexpr int kMaxRows = kLanes == 16 ? 12 : kLanes == 8 ? 3 : 1;

// Two lines of weights per panel, this far ahead of their use. Panels lie one after the other, so that what is
// prefetched past the end of one is the start of the next.
constexpr int64_t kPrefetchBytes = 2048;

// y[r, panel's outputs] = or += sum.
template <int kRows>
HWY_INLINE void StorePanel(const V (&sum)[kRows][kVectors], float* y, int64_t ldy, int64_t out, bool accumulate) {
  for (int r = 0; r < kRows; ++r) {
    float* const row = y + r * ldy;
    if (out >= kPanel) {
      for (int n = 0; n < kVectors; ++n) {
        float* const to = row + n * kLanes;
        hn::StoreU(accumulate ? hn::Add(hn::LoadU(d, to), sum[r][n]) : sum[r][n], d, to);
      }
    } else {
      alignas(64) float lanes[kPanel];
      for (int n = 0; n < kVectors; ++n) hn::Store(sum[r][n], d, lanes + n * kLanes);
      for (int64_t o = 0; o < out; ++o) row[o] = accumulate ? row[o] + lanes[o] : lanes[o];
    }
  }
}

// `kRows` rows against `kPanels` panels: kRows * kPanels * kVectors sums in registers, each one chain over depth.
template <typename Weight, int kRows, int kPanels>
HWY_INLINE void Multiply(const TileArgs& args, int64_t panel) {
  const hn::Repartition<uint32_t, D> du;
  V sum[kPanels][kRows][kVectors];
  for (auto& of_panel : sum) {
    for (auto& of_row : of_panel) {
      for (V& v : of_row) v = hn::Zero(d);
    }
  }
  const float* HWY_RESTRICT x = reinterpret_cast<const float*>(args.x);
  if constexpr (sizeof(Weight) == 4) {
    const float* HWY_RESTRICT w = reinterpret_cast<const float*>(args.panels + panel * args.panel_bytes);
    const int64_t stride = args.panel_bytes / sizeof(float);
    for (int64_t i = 0; i < args.depth; ++i, w += kPanel, x += kRows) {
      for (int p = 0; p < kPanels; ++p) {
        hwy::Prefetch(w + p * stride + kPrefetchBytes / sizeof(float));
        hwy::Prefetch(w + p * stride + (kPrefetchBytes + 64) / sizeof(float));
        V weights[kVectors];
        for (int n = 0; n < kVectors; ++n) weights[n] = hn::Load(d, w + p * stride + n * kLanes);
        for (int r = 0; r < kRows; ++r) {
          const V x_r = hn::Set(d, x[r]);
          for (int n = 0; n < kVectors; ++n) sum[p][r][n] = hn::MulAdd(x_r, weights[n], sum[p][r][n]);
        }
      }
    }
  } else {
    const uint32_t* HWY_RESTRICT w = reinterpret_cast<const uint32_t*>(args.panels + panel * args.panel_bytes);
    const int64_t stride = args.panel_bytes / sizeof(uint32_t);
    const auto high_half = hn::Set(du, 0xFFFF0000u);
    for (int64_t i = 0; i < args.depth; i += 2, w += kPanel, x += 2 * kRows) {
      for (int p = 0; p < kPanels; ++p) {
        hwy::Prefetch(w + p * stride + kPrefetchBytes / sizeof(uint32_t));
        hwy::Prefetch(w + p * stride + (kPrefetchBytes + 64) / sizeof(uint32_t));
        V even[kVectors];
        V odd[kVectors];
        for (int n = 0; n < kVectors; ++n) {
          const auto pair = hn::Load(du, w + p * stride + n * kLanes);
          even[n] = hn::BitCast(d, hn::ShiftLeft<16>(pair));
          odd[n] = hn::BitCast(d, hn::And(pair, high_half));
        }
        for (int r = 0; r < kRows; ++r) {
          const V x_r = hn::Set(d, x[r]);
          for (int n = 0; n < kVectors; ++n) sum[p][r][n] = hn::MulAdd(x_r, even[n], sum[p][r][n]);
        }
        for (int r = 0; r < kRows; ++r) {
          const V x_r = hn::Set(d, x[kRows + r]);
          for (int n = 0; n < kVectors; ++n) sum[p][r][n] = hn::MulAdd(x_r, odd[n], sum[p][r][n]);
        }
      }
    }
  }
  for (int p = 0; p < kPanels; ++p) {
    StorePanel<kRows>(sum[p], args.y + (panel + p) * kPanel, args.ldy, args.out - (panel + p) * kPanel,
                      args.accumulate);
  }
}

// Few rows make few chains, too few to hide the latency of an addition: they take several panels at once.
template <typename Weight, int kRows>
HWY_NOINLINE void MultiplyPanels(const TileArgs& args) {
  constexpr int kAtOnce = kLanes < 16 ? 1 : kRows == 1 ? 4 : kRows <= 4 ? 2 : 1;
  int64_t panel = 0;
  if constexpr (kAtOnce > 1) {
    for (; panel + kAtOnce <= args.num_panels; panel += kAtOnce) Multiply<Weight, kRows, kAtOnce>(args, panel);
  }
  for (; panel < args.num_panels; ++panel) Multiply<Weight, kRows, 1>(args, panel);
}

template <typename Weight, int kRows = kMaxRows>
void MultiplyTile(const TileArgs& args) {
  if (args.rows == kRows) return MultiplyPanels<Weight, kRows>(args);
  if constexpr (kRows > 1) MultiplyTile<Weight, kRows - 1>(args);
}

#if HWY_TARGET != HWY_SCALAR

using D4 = hn::FixedTag<float, 4>;
using U4 = hn::FixedTag<uint32_t, 4>;

// Words j .. j+3 of a row.
template <TileWord kWord>
HWY_INLINE hn::Vec<U4> LoadWords(const float* row, int64_t j) {
  const D4 d4;
  const U4 du;
  if constexpr (kWord == TileWord::kFloat) return hn::BitCast(du, hn::LoadU(d4, row + j));
  if constexpr (kWord == TileWord::kRoundedFloat) return RoundedBits(d4, hn::LoadU(d4, row + j));
  if constexpr (kWord == TileWord::kBF16Pair) {
    const auto low = RoundedBits(d4, hn::LoadU(d4, row + 2 * j));
    const auto high = RoundedBits(d4, hn::LoadU(d4, row + 2 * j + 4));
    return hn::Or(hn::ShiftRight<16>(hn::ConcatEven(du, high, low)), hn::ConcatOdd(du, high, low));
  }
}

#endif  // HWY_TARGET != HWY_SCALAR

// One word; what lies past the end of the row is zero.
template <TileWord kWord>
uint32_t WordAt(const float* row, int64_t j, int64_t in) {
  const auto rounded = [&](int64_t i) { return i < in ? uint32_t{BF16FromFloat(row[i])} : 0u; };
  if constexpr (kWord == TileWord::kFloat) return j < in ? std::bit_cast<uint32_t>(row[j]) : 0u;
  if constexpr (kWord == TileWord::kRoundedFloat) return rounded(j) << 16;
  return rounded(2 * j) | rounded(2 * j + 1) << 16;
}

template <TileWord kWord>
void PackWords(const float* x, int64_t ldx, int32_t rows, int64_t in, int64_t depth, uint32_t* HWY_RESTRICT tile) {
  int64_t whole = 0;  // words that are packed four at a time
  int32_t r = 0;
#if HWY_TARGET != HWY_SCALAR
  const U4 du;
  whole = (kWord == TileWord::kBF16Pair ? in / 2 : in) / 4 * 4;
  for (; r + 4 <= rows; r += 4) {
    const float* const row = x + r * ldx;
    for (int64_t j = 0; j < whole; j += 4) {
      const auto a = LoadWords<kWord>(row, j);
      const auto b = LoadWords<kWord>(row + ldx, j);
      const auto c = LoadWords<kWord>(row + 2 * ldx, j);
      const auto e = LoadWords<kWord>(row + 3 * ldx, j);
      const auto ab01 = hn::InterleaveLower(du, a, b);
      const auto ab23 = hn::InterleaveUpper(du, a, b);
      const auto ce01 = hn::InterleaveLower(du, c, e);
      const auto ce23 = hn::InterleaveUpper(du, c, e);
      uint32_t* const to = tile + j * rows + r;
      hn::StoreU(hn::ConcatLowerLower(du, ce01, ab01), du, to);
      hn::StoreU(hn::ConcatUpperUpper(du, ce01, ab01), du, to + rows);
      hn::StoreU(hn::ConcatLowerLower(du, ce23, ab23), du, to + 2 * rows);
      hn::StoreU(hn::ConcatUpperUpper(du, ce23, ab23), du, to + 3 * rows);
    }
  }
  for (; r < rows; ++r) {
    for (int64_t j = 0; j < whole; j += 4) {
      alignas(16) uint32_t words[4];
      hn::Store(LoadWords<kWord>(x + r * ldx, j), du, words);
      for (int64_t i = 0; i < 4; ++i) tile[(j + i) * rows + r] = words[i];
    }
  }
#endif
  for (int64_t j = whole; j < depth; ++j) {
    for (r = 0; r < rows; ++r) tile[j * rows + r] = WordAt<kWord>(x + r * ldx, j, in);
  }
}

void Pack(TileWord word, const float* x, int64_t ldx, int32_t rows, int64_t in, int64_t depth, uint32_t* tile) {
  switch (word) {
    case TileWord::kFloat:
      return PackWords<TileWord::kFloat>(x, ldx, rows, in, depth, tile);
    case TileWord::kRoundedFloat:
      return PackWords<TileWord::kRoundedFloat>(x, ldx, rows, in, depth, tile);
    case TileWord::kBF16Pair:
      return PackWords<TileWord::kBF16Pair>(x, ldx, rows, in, depth, tile);
  }
}

TileKernels Kernels() { return {kMaxRows, &MultiplyTile<float>, &MultiplyTile<BF16>, &Pack}; }

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>

#include "base/check.h"

namespace palimpsest {
namespace {

HWY_EXPORT(Kernels);

// Packed x is kept below this, so that it stays in a core's second-level cache beside the panel it meets.
constexpr int64_t kPackedXBytes = 512 << 10;
// Multiply-adds below which it does not pay to wake another thread; words below which one thread packs x.
constexpr int64_t kMinWorkPerThread = 64 << 10;
constexpr int64_t kMinWordsPerThread = 16 << 10;

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

uint32_t* Scratch(int64_t words) {
  thread_local AlignedArray<uint32_t> scratch;
  if (scratch.size() < words) scratch = AlignedArray<uint32_t>(words);
  return scratch.data();
}

// Cuts rows [0, rows) into equal tiles of at most max_rows.
struct Tiles {
  int64_t rows;
  int64_t count;
  Tiles(int64_t rows, int64_t max_rows) : rows(rows), count(DivideUp(rows, max_rows)) {}
  int64_t begin(int64_t tile) const { return rows * tile / count; }
  int32_t length(int64_t tile) const { return static_cast<int32_t>(begin(tile + 1) - begin(tile)); }
};

}  // namespace

void Linear(const ExecContext& ctx, const LinearParams& params) {
  if (ctx.device != nullptr) return ctx.device->Run(params);
  const PackedLinear& W = *params.weights;
  if (params.rows == 0 || W.out() == 0) return;
  const bool bf16_weights = W.dtype() == DType::kBF16;
  PALIMPSEST_CHECK(params.norm_weight == nullptr && !params.swiglu);
  PALIMPSEST_CHECK(bf16_weights || params.math == LinearMath::kF32);

  const TileKernels kernels = HWY_DYNAMIC_DISPATCH(Kernels)();
  const bool dot = params.math == LinearMath::kBF16 && HasNativeBF16();
  const TileWord word = dot                                ? TileWord::kBF16Pair
                        : params.math == LinearMath::kBF16 ? TileWord::kRoundedFloat
                                                           : TileWord::kFloat;
  const int64_t max_rows = dot ? kBF16DotMaxRows : kernels.max_rows;
  const int64_t depth = dot ? DivideUp(W.in(), 2) : bf16_weights ? DivideUp(W.in(), 2) * 2 : W.in();
  const auto multiply = dot ? &MultiplyTileBF16Dot : bf16_weights ? kernels.bf16 : kernels.f32;
  const int64_t num_panels = DivideUp(W.out(), PackedLinear::kPanel);
  const int64_t panel_bytes = W.bytes() / num_panels;

  const int64_t block_rows =
      std::max(kPackedXBytes / (depth * int64_t{sizeof(uint32_t)}) / max_rows, int64_t{4}) * max_rows;
  for (int64_t row = 0; row < params.rows; row += block_rows) {
    const Tiles tiles(std::min(block_rows, params.rows - row), max_rows);
    uint32_t* const packed = Scratch(tiles.rows * depth);
    const int64_t tiles_per_part = DivideUp(kMinWordsPerThread, depth * max_rows);
    ctx.pool->ParallelFor(tiles.count, tiles_per_part, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        kernels.pack(word, params.x + (row + tiles.begin(t)) * params.ldx, params.ldx, tiles.length(t), W.in(), depth,
                     packed + tiles.begin(t) * depth);
      }
    });
    // A panel is read from memory once and meets every tile; a lone tile takes all panels in one go.
    const int64_t panels_per_part = DivideUp(kMinWorkPerThread, PackedLinear::kPanel * depth * tiles.rows);
    ctx.pool->ParallelFor(num_panels, panels_per_part, [&](int64_t begin, int64_t end) {
      const int64_t at_once = tiles.count == 1 ? end - begin : 1;
      for (int64_t panel = begin; panel < end; panel += at_once) {
        TileArgs args;
        args.panels = W.data() + panel * panel_bytes;
        args.panel_bytes = panel_bytes;
        args.num_panels = at_once;
        args.depth = depth;
        args.out = std::min(at_once * PackedLinear::kPanel, W.out() - panel * PackedLinear::kPanel);
        args.ldy = params.ldy;
        args.accumulate = params.accumulate;
        for (int64_t t = 0; t < tiles.count; ++t) {
          args.x = packed + tiles.begin(t) * depth;
          args.rows = tiles.length(t);
          args.y = params.y + (row + tiles.begin(t)) * params.ldy + panel * PackedLinear::kPanel;
          multiply(args);
          if (params.bias == nullptr) continue;
          const float* const bias = params.bias + panel * PackedLinear::kPanel;
          for (int32_t r = 0; r < args.rows; ++r) {
            float* const y = args.y + r * args.ldy;
            for (int64_t o = 0; o < args.out; ++o) y[o] += bias[o];
          }
        }
      }
    });
  }
}

}  // namespace palimpsest
#endif  // HWY_ONCE
