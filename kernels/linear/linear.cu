// Three ways to multiply, chosen by what must not change the bits: the matrix, the arithmetic, and whether a row is a
// step or part of a chunk; never by how many rows there are. (Shapes of launches do depend on that: they cut the work,
// not the sums.)
//
//   steps, bf16 arithmetic   the tensor cores, W as the left operand: 16 outputs by 8 rows at a time. `in` is cut into
//                            eight parts, whose sums are joined in order. Few rows are bound by reading W once: a warp
//                            for each part. Many are bound by the traffic between multiprocessors and cache: tiles in
//                            shared memory, one part after the other.
//   steps, f32 arithmetic    a warp has a few outputs, its lanes share out `in`, 16 bytes at a time in turn, and join
//                            their sums as a butterfly.
//   chunks                   cuBLASLt, if matrix and strides suit it; else as steps
#include <type_traits>

#include "kernels/activation/activation.h"
#include "kernels/cuda/async_copy.h"
#include "kernels/cuda/group.h"
#include "kernels/cuda/math.h"
#include "kernels/cuda/mma.h"
#include "kernels/cuda/ops.h"
#include "kernels/linear/linear_device.h"
#include "kernels/norm/norm_values.h"

namespace palimpsest::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

struct RowsParams {
  LinearParams p;
  const std::byte* weights = nullptr;
  int64_t stride = 0;  // of a row of W, in elements: `in` and then zeros
  int64_t out = 0;
  int64_t in = 0;
  bool aligned = false;  // x is made of pieces of 16 bytes, each at a multiple of that
};

// Rows of W are taken as they are, unless they make gates and what these open: then every 16 are eight gates and, in
// the same order, their eight others. A tile of a matrix instruction has those in registers of one lane.
constexpr int kGates = 8;

__device__ __forceinline__ bool IsGate(int64_t o) { return o % (2 * kGates) < kGates; }
__device__ __forceinline__ int64_t Gated(int64_t o) { return o / (2 * kGates) * kGates + o % kGates; }

// Where row `first` (a multiple of 16) + `i` of W begins, from the beginning of row `first`. For rows behind the last
// one that is the last one again.
__device__ __forceinline__ int RowOfW(const RowsParams& params, bool gated, int first, int i) {
  const int out = static_cast<int>(params.out), stride = static_cast<int>(params.stride);
  if (!gated) return (first + i < out ? i : out - 1 - first) * stride;
  const int half = out / 2, row = static_cast<int>(Gated(i)), last = half - 1 - first / 2;
  return ((row < last ? row : last) + (IsGate(i) ? 0 : half)) * stride;
}
__device__ __forceinline__ const BF16* RowsOfW(const RowsParams& params, bool gated, int64_t first) {
  return reinterpret_cast<const BF16*>(params.weights) + (gated ? first / 2 : first) * params.stride;
}

// What is added to the sum of an output. It is loaded before the sums are there, and for all of a thread's outputs
// before the first of them is stored, which the compiler may not do: a store could be to what is loaded next.
struct Addends {
  float y = 0.0f;
  float bias = 0.0f;
};

__device__ __forceinline__ bool Exists(const RowsParams& params, int64_t row, int64_t o) {
  return row < params.p.rows && o < params.out;
}

__device__ __forceinline__ Addends LoadAddends(const RowsParams& params, int64_t row, int64_t o) {
  return {.y = params.p.accumulate && Exists(params, row, o) ? params.p.y[row * params.p.ldy + o] : 0.0f,
          .bias = params.p.bias != nullptr && o < params.out ? params.p.bias[o] : 0.0f};
}

__device__ __forceinline__ void Store(const RowsParams& params, int64_t row, int64_t o, float sum,
                                      const Addends& addends) {
  if (!Exists(params, row, o)) return;
  if (params.p.accumulate) sum += addends.y;
  if (params.p.bias != nullptr) sum += addends.bias;
  params.p.y[row * params.p.ldy + o] = sum;
}

// The output of a gate, given its number among the rows of W, and what it opens.
__device__ __forceinline__ void StoreGated(const RowsParams& params, int64_t row, int64_t o, float gate, float up) {
  if (Exists(params, row, o)) params.p.y[row * params.p.ldy + Gated(o)] = Silu(gate) * up;
}

// What a lane reads of a row at a time. `to` beyond the row's end, whose values number a multiple of four, is zeros.
constexpr int kPiece = 8;

__device__ __forceinline__ void LoadFour(const float* from, float* to) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x;
  to[1] = four.y;
  to[2] = four.z;
  to[3] = four.w;
}

__device__ __forceinline__ void LoadPiece(const float* from, int64_t left, float (&to)[kPiece]) {
  LoadFour(from, to);
  if (left >= kPiece) {
    LoadFour(from + 4, to + 4);
  } else {
    to[4] = to[5] = to[6] = to[7] = 0.0f;
  }
}

__device__ __forceinline__ void LoadPiece(const BF16* from, int64_t, float (&to)[kPiece]) {
  const uint4 four = *reinterpret_cast<const uint4*>(from);
  const unsigned words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(words[i] << 16);
    to[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
}

// A block stages kStagePieces pieces a lane of kRows rows of x in shared memory at a time.
constexpr int kStagePieces = 4;

// Two blocks to a multiprocessor, which leaves a thread 128 registers.
template <typename Weight, int kOuts, int kRows>
__global__ void __launch_bounds__(kThreads, 2) LinearF32Kernel(RowsParams params) {
  AfterPrevious();
  constexpr int kStage = kWarp * kPiece * kStagePieces;
  float* const staged = Shared<float>();  // [kRows][kStage]
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first_out = (int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / kWarp) * kOuts;
  const int64_t first_row = int64_t{blockIdx.y} * kRows;
  const auto* const W = reinterpret_cast<const Weight*>(params.weights);
  float sum[kOuts][kRows] = {};
  for (int64_t stage = 0; stage < params.in; stage += kStage) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kStage; i += kThreads) {
      const int64_t row = first_row + i / kStage, column = stage + i % kStage;
      staged[i] = row < params.p.rows && column < params.in ? params.p.x[row * params.p.ldx + column] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int piece = 0; piece < kStagePieces; ++piece) {
      const int at = (piece * kWarp + lane) * kPiece;
      if (stage + at >= params.stride) continue;
      float w[kOuts][kPiece];
#pragma unroll
      for (int o = 0; o < kOuts; ++o) {
        const int64_t row = first_out + o < params.out ? first_out + o : params.out - 1;
        LoadPiece(W + row * params.stride + stage + at, params.stride - stage - at, w[o]);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int four = 0; four < kPiece; four += 4) {
          float x[4];
          LoadFour(staged + r * kStage + at + four, x);
#pragma unroll
          for (int o = 0; o < kOuts; ++o) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[o][r] = fmaf(w[o][four + i], x[i], sum[o][r]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int o = 0; o < kOuts; ++o) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float total = GroupSum<kWarp>(sum[o][r]);
      if (lane != 0) continue;
      Store(params, first_row + r, first_out + o, total, LoadAddends(params, first_row + r, first_out + o));
    }
  }
}

// bf16 arithmetic cuts `in` into kParts parts, the same for every launch over a matrix. The sum of a part takes its
// products in ascending order, kDepth values by two matrix instructions at a time; the sum of the whole takes those of
// the parts in their order, and begins with another part for every kOutsInStep outputs: blocks that walk through `in`
// are then at different places of x, and not all of them ask for the same few lines of memory at a time. What lies
// beyond a row's end is zeros, which change no sum.
constexpr int kParts = 8;
constexpr int kDepth = 32;
constexpr int kOutsInStep = 128;

__device__ __forceinline__ int FirstPart(int64_t o) { return static_cast<int>(o / kOutsInStep % kParts); }

// A multiple of 2 kDepth, the depth of the tiles of many rows.
__device__ __forceinline__ int PartOf(int64_t stride) {
  constexpr int kMultiple = 2 * kDepth;
  return static_cast<int>(DivideUp(stride, kParts * kMultiple)) * kMultiple;
}

// With g = lane / 4 and t = lane % 4, a lane has values 8t to 8t + 7 of each kDepth, of rows g and g + 8 of W and of
// row g of x. Which of a matrix instruction's 16 places a value takes does not matter as long as W's and x's agree.
struct WeightFragment {
  uint32_t first[4];
  uint32_t second[4];
};

// A matrix instruction wants its four words in neighbouring registers. Words that were merely moved there the compiler
// moves again for every instruction that takes them; those of an operation, if only with zero, it keeps.
__device__ __forceinline__ WeightFragment FragmentOf(const uint4& low, const uint4& high, uint32_t zero = 0) {
  return {{low.x ^ zero, high.x ^ zero, low.y ^ zero, high.y ^ zero},
          {low.z ^ zero, high.z ^ zero, low.w ^ zero, high.w ^ zero}};
}

// sum[m] += the products of fragment m of W and x's four pairs.
template <int kOutTiles, int kRowTiles>
__device__ __forceinline__ void MultiplyDepth(float (&sum)[kOutTiles][kRowTiles][4], int n,
                                              const WeightFragment (&w)[kOutTiles], const uint4& x) {
  const uint32_t first[2] = {x.x, x.y}, second[2] = {x.z, x.w};
#pragma unroll
  for (int m = 0; m < kOutTiles; ++m) MmaBF16(sum[m][n], w[m].first, first);
#pragma unroll
  for (int m = 0; m < kOutTiles; ++m) MmaBF16(sum[m][n], w[m].second, second);
}

// What a warp multiplies at a time.
template <int kOutTiles, int kRowTiles>
struct Stage {
  uint4 w[kOutTiles][2][kWarp];        // what the lane takes of rows g and g + 8
  float4 x[8 * kRowTiles][kWarp / 4];  // piece p of row r is at p ^ (r % 2): so that a read meets every bank once
};

template <int kOutTiles, int kRowTiles>
struct FoldStage : Stage<kOutTiles, kRowTiles> {
  float4 norm[kWarp / 4];  // the weight of x's norm
};

template <int kOutTiles, int kRowTiles, bool kFolds>
using StageOf = std::conditional_t<kFolds, FoldStage<kOutTiles, kRowTiles>, Stage<kOutTiles, kRowTiles>>;

// A block asks for its rows of W, which no kernel writes, while what they are to be multiplied by is still being made.
__device__ __forceinline__ void PrefetchRows(const BF16* W, int64_t rows, int stride) {
  constexpr int kLine = 128 / static_cast<int>(sizeof(BF16));
  const auto values = static_cast<int>(rows) * stride;
  for (int at = static_cast<int>(threadIdx.x) * kLine; at < values; at += kThreads * kLine) PrefetchToL2(W + at);
}
__device__ __forceinline__ void PrefetchOuts(const RowsParams& params, bool gated, const BF16* W, int64_t first_out,
                                             int64_t outs) {
  const int64_t rows = params.out - first_out < outs ? params.out - first_out : outs;
  const auto stride = static_cast<int>(params.stride);
  if (!gated) return PrefetchRows(W, rows, stride);
  PrefetchRows(W, rows / 2, stride);
  PrefetchRows(W + params.out / 2 * params.stride, rows / 2, stride);
}

// The sum of squares of a part of a row, by four lanes: lane t those of its eight values of each kDepth, in order.
__device__ __forceinline__ float AddSquares(float sum, const float4& low, const float4& high) {
  const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) sum = fmaf(values[i], values[i], sum);
  return sum;
}
__device__ __forceinline__ float JoinSquares(float sum) {
  sum += __shfl_xor_sync(~0u, sum, 1);
  return sum + __shfl_xor_sync(~0u, sum, 2);
}

__device__ __forceinline__ float4 Times(const float4& a, const float4& b) {
  return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}

// Of all parts, `apart` floats apart, beginning with the first.
__device__ __forceinline__ float SumOfParts(const float* parts, int apart, int first = 0) {
  float sum = 0.0f;
#pragma unroll
  for (int part = 0; part < kParts; ++part) sum += parts[(first + part) % kParts * apart];
  return sum;
}

// Few rows. A block's warps have a part of `in` each, of all of the block's outputs and rows, so nothing that they copy
// to shared memory is used by two of them: they wait for their own copies and, before the parts are joined, for nobody.
// kStages are under way at a time. The operands are copied, not loaded, since the compiler puts a load beside its use
// and so keeps few in flight.
//
// kFolds: of x's norm, the weight is put to x before it is rounded, and its root mean square is found on the way, of
// each part by itself, and divides the sum.
template <int kOutTiles, int kRowTiles, int kStages, int kBlocks, bool kFolds>
__global__ void __launch_bounds__(kThreads, kBlocks) LinearBF16Kernel(RowsParams params) {
  using MyStage = StageOf<kOutTiles, kRowTiles, kFolds>;
  constexpr int kOuts = 16 * kOutTiles, kRows = 8 * kRowTiles;
  static_assert(kParts == kWarps);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = lane / 4, t = lane % 4;
  const int64_t first_out = int64_t{blockIdx.x} * kOuts, first_row = int64_t{blockIdx.y} * kRows;
  const int stride = static_cast<int>(params.stride), in = static_cast<int>(params.in);
  MyStage* const stages = Shared<MyStage>() + warp * kStages;
  const bool gated = kFolds && params.p.swiglu;
  const BF16* const W = RowsOfW(params, gated, first_out);
  if (blockIdx.y == 0) PrefetchOuts(params, gated, W, first_out, kOuts);
  AfterPrevious();

  // A lane copies every eighth row of W and every fourth of x. In place of W's rows behind the last one that one again;
  // in place of x's, zeros: with few rows, all blocks would ask for the same lines of memory eight times.
  const float* const x = params.p.x + first_row * params.p.ldx;
  const int x_row = lane / 8, piece = lane % 8;
  int w_from[2 * kOutTiles], x_from[2 * kRowTiles];
  bool x_there[2 * kRowTiles];
#pragma unroll
  for (int i = 0; i < 2 * kOutTiles; ++i) w_from[i] = RowOfW(params, gated, static_cast<int>(first_out), 8 * i + g);
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    x_there[i] = first_row + 4 * i + x_row < params.p.rows;
    x_from[i] = x_there[i] ? (4 * i + x_row) * static_cast<int>(params.p.ldx) : 0;
  }
  const auto copy = [&](int at, MyStage& stage) {
    const int w_at = at + 8 * t, x_at = at + 4 * piece;
    const BF16* const w = W + (w_at < stride ? w_at : 0);
#pragma unroll
    for (int i = 0; i < 2 * kOutTiles; ++i) {
      CopyAsync16(&stage.w[i / 2][i % 2][lane], w + w_from[i], w_at < stride);
    }
    const auto place = [&](int i) { return &stage.x[4 * i + x_row][piece ^ (x_row % 2)]; };
    if (params.aligned) {
      const float* const from = x + (x_at < in ? x_at : 0);
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) CopyAsync16(place(i), from + x_from[i], x_there[i] && x_at < in);
      if constexpr (kFolds) {
        if (x_row == 0) CopyAsync16(&stage.norm[piece], params.p.norm_weight + (x_at < in ? x_at : 0), x_at < in);
      }
    } else {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const float* const from = x + (x_at + v < in ? x_at + v : 0);
#pragma unroll
        for (int i = 0; i < 2 * kRowTiles; ++i) {
          CopyAsync4(reinterpret_cast<float*>(place(i)) + v, from + x_from[i], x_there[i] && x_at + v < in);
        }
        if constexpr (kFolds) {
          if (x_row != 0) continue;
          CopyAsync4(reinterpret_cast<float*>(&stage.norm[piece]) + v,
                     params.p.norm_weight + (x_at + v < in ? x_at + v : 0), x_at + v < in);
        }
      }
    }
  };

  float sum[kOutTiles][kRowTiles][4] = {};
  [[maybe_unused]] float squares[kRowTiles] = {};
  const auto multiply = [&](const MyStage& stage) {
    WeightFragment w[kOutTiles];
#pragma unroll
    for (int m = 0; m < kOutTiles; ++m) w[m] = FragmentOf(stage.w[m][0][lane], stage.w[m][1][lane]);
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      float4 low = stage.x[8 * n + g][(2 * t) ^ (g % 2)], high = stage.x[8 * n + g][(2 * t + 1) ^ (g % 2)];
      if constexpr (kFolds) {
        squares[n] = AddSquares(squares[n], low, high);
        low = Times(low, stage.norm[2 * t]);
        high = Times(high, stage.norm[2 * t + 1]);
      }
      MultiplyDepth(sum, n, w,
                    make_uint4(PackBF16(low.x, low.y), PackBF16(low.z, low.w), PackBF16(high.x, high.y),
                               PackBF16(high.z, high.w)));
    }
  };

  constexpr int kMine = (kOuts * kRows + kThreads - 1) / kThreads;  // outputs that the thread will store
  const auto mine = [&](int i) { return static_cast<int>(threadIdx.x) + i * kThreads; };
  Addends addends[kMine];
  const auto load_addends = [&] {
    if constexpr (!kFolds) {  // else nothing is added
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        addends[i] = LoadAddends(params, first_row + mine(i) / kOuts, first_out + mine(i) % kOuts);
      }
    }
  };
  if (kMine == 1) load_addends();  // later, where they would take too many registers

  const int part = PartOf(params.stride), begin = warp * part;
  const int left = stride - begin < part ? stride - begin : part;
  const int steps = left > 0 ? (left + kDepth - 1) / kDepth : 0;
  // Step by step, kStages of them behind the copies.
#pragma unroll 1
  for (int s = -kStages, slot = 0; s < steps; ++s) {
    if (s >= 0) {
      WaitForCopies<kStages - 1>();
      __syncwarp();
      multiply(stages[slot]);
      __syncwarp();  // all lanes have read what the next copies overwrite
    }
    if (s + kStages < steps) copy(begin + (s + kStages) * kDepth, stages[slot]);
    CommitCopies();
    slot = slot + 1 == kStages ? 0 : slot + 1;
  }

  // A part's sums take the place of its stages, [kRows][kPitch]; the pitch lets a warp write to all banks at once.
  constexpr int kPitch = kOuts + 4, kWarpFloats = sizeof(MyStage) * kStages / 4;
  static_assert(kRows * kPitch <= kWarpFloats);
  float* const parts = Shared<float>();
#pragma unroll
  for (int m = 0; m < kOutTiles; ++m) {
    ForTileElements(sum[m],
                    [&](int o, int r, float value) { parts[warp * kWarpFloats + r * kPitch + 16 * m + o] = value; });
  }
  if constexpr (kFolds) {  // beside a row's outputs
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      const float of_part = JoinSquares(squares[n]);
      if (t == 0) parts[warp * kWarpFloats + (8 * n + g) * kPitch + kOuts] = of_part;
    }
  }
  if (kMine > 1) load_addends();
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int o = mine(i) % kOuts, r = mine(i) / kOuts;
    if (r >= kRows) break;
    if (gated && !IsGate(o)) continue;
    const float* const at = parts + r * kPitch;
    const float factor = kFolds ? RmsFactor(SumOfParts(at + kOuts, kWarpFloats), in, params.p.norm_eps) : 1.0f;
    const auto total = [&](int o) { return SumOfParts(at + o, kWarpFloats, FirstPart(first_out + o)) * factor; };
    if (gated) {
      StoreGated(params, first_row + r, first_out + o, total(o), total(o + kGates));
    } else {
      Store(params, first_row + r, first_out + o, total(o), addends[i]);
    }
  }
}

// Many rows, already rounded, with W's stride. A block's warps share a tile of kOuts outputs by kRows rows, two of them
// along the outputs and four along the rows; what they read of W and x, twice kDepth values of each row at a time, goes
// through shared memory. They walk through `in`, part by part, and put a part's sum aside at its end. Where there are
// too few tiles to keep all multiprocessors busy, blocks share out the parts of a tile, too (blockIdx.z), and leave the
// sums to JoinPartsKernel: the same sums in the same order.
struct TileParams {
  RowsParams rows;
  const BF16* x = nullptr;
  const float* factors = nullptr;  // [rows] of the sums; null: none
  int parts_each = kParts;
  float* parts = nullptr;  // [kParts][rows][ld_parts] in the order of sums, if parts_each < kParts
  int64_t ld_parts = 0;
  uint32_t zero = 0;  // which the compiler does not know: see FragmentOf
};

__device__ __forceinline__ float FactorOf(const TileParams& tile, int64_t row) {
  return tile.factors != nullptr && row < tile.rows.p.rows ? tile.factors[row] : 1.0f;
}

template <int kOuts, int kRows>
struct TileStage {  // piece p of row r is at p ^ (4 * (r % 2)): so that a read meets every bank once
  uint4 w[kOuts][8];
  uint4 x[kRows][8];
};

template <int kOuts, int kRows, int kStages, int kBlocks, bool kApart>
__global__ void __launch_bounds__(kThreads, kBlocks) LinearBF16TileKernel(TileParams tile) {
  AfterPrevious();
  using MyStage = TileStage<kOuts, kRows>;
  static_assert(kOutsInStep % kOuts == 0);
  constexpr int kStep = 2 * kDepth, kCopied = kThreads / 8;  // rows that the block copies at a time
  constexpr int kOutTiles = kOuts / 2 / 16, kRowTiles = kRows / 4 / 8;
  const RowsParams& params = tile.rows;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int g = lane / 4, t = lane % 4;
  const int first_row = static_cast<int>(blockIdx.x) * kRows, first_out = static_cast<int>(blockIdx.y) * kOuts;
  const int stride = static_cast<int>(params.stride);
  MyStage* const stages = Shared<MyStage>();

  // In place of W's rows behind the last one, that one again; in place of x's, zeros.
  const int copy_row = thread / 8, piece = thread % 8, place = piece ^ (4 * (copy_row % 2));
  const auto* const W = Kept(RowsOfW(params, params.p.swiglu, first_out) + 8 * piece);
  const BF16* const x = Kept(tile.x + first_row * params.stride + 8 * piece);
  const int rows_left = Kept(params.p.rows - first_row - copy_row);
  int w_from[kOuts / kCopied], x_from[kRows / kCopied];
#pragma unroll
  for (int i = 0; i < kOuts / kCopied; ++i) {
    w_from[i] = Kept(RowOfW(params, params.p.swiglu, first_out, i * kCopied + copy_row));
  }
#pragma unroll
  for (int i = 0; i < kRows / kCopied; ++i) {
    x_from[i] = Kept(i * kCopied < rows_left ? (i * kCopied + copy_row) * stride : 0);
  }

  // The block's steps, of all of them from the tile's first part to the one before it.
  const int part_steps = PartOf(params.stride) / kStep, all_steps = kParts * part_steps;
  const int steps = tile.parts_each * part_steps;
  const int first_step = (FirstPart(first_out) * part_steps + static_cast<int>(blockIdx.z) * steps) % all_steps;
  const auto copy = [&](int s, MyStage& stage) {
    const int step = first_step + s < all_steps ? first_step + s : first_step + s - all_steps;
    const bool there = step * kStep + 8 * piece < stride;
    const int at = there ? step * kStep : -8 * piece;
#pragma unroll
    for (int i = 0; i < kOuts / kCopied; ++i) {
      CopyAsync16(&stage.w[i * kCopied + copy_row][place], W + (at + w_from[i]), there);
    }
#pragma unroll
    for (int i = 0; i < kRows / kCopied; ++i) {
      CopyAsync16(&stage.x[i * kCopied + copy_row][place], x + (at + x_from[i]), there && i * kCopied < rows_left);
    }
  };

  const int warp_out = warp / 4 * (kOuts / 2), warp_row = warp % 4 * (kRows / 4);
  float sum[kOutTiles][kRowTiles][4] = {};
  [[maybe_unused]] float total[kOutTiles][kRowTiles][4] = {};
  const auto multiply = [&](const MyStage& stage) {
#pragma unroll
    for (int depth = 0; depth < 2; ++depth) {
      const int at = (4 * depth + t) ^ (4 * (g % 2));
      WeightFragment w[kOutTiles];
#pragma unroll
      for (int m = 0; m < kOutTiles; ++m) {
        const int row = warp_out + 16 * m + g;
        w[m] = FragmentOf(stage.w[row][at], stage.w[row + 8][at], tile.zero);
      }
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) MultiplyDepth(sum, n, w, stage.x[warp_row + 8 * n + g][at]);
    }
  };

  // Calls give(n, i, row, o) for element i of each tile (m, n) of the lane.
  const auto for_mine = [&](int m, auto give) {
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        give(n, i, first_row + warp_row + 8 * n + 2 * t + i % 2, first_out + warp_out + 16 * m + g + i / 2 * 8);
      }
    }
  };

  // Step by step, kStages - 1 of them behind the copies.
  int from = 0, to = 0, left = part_steps, part = static_cast<int>(blockIdx.z) * tile.parts_each;
#pragma unroll 1
  for (int s = 1 - kStages; s < steps; ++s) {
    if (s >= 0) {
      WaitForCopies<kStages - 2>();
      __syncthreads();  // everybody's copies are there, and everybody has read what the next ones overwrite
    }
    if (s + kStages - 1 < steps) copy(s + kStages - 1, stages[to]);
    CommitCopies();
    to = to + 1 == kStages ? 0 : to + 1;
    if (s < 0) continue;
    multiply(stages[from]);
    from = from + 1 == kStages ? 0 : from + 1;
    if (--left > 0) continue;
    left = part_steps;
    [[maybe_unused]] float* const parts = tile.parts + part++ * int64_t{params.p.rows} * tile.ld_parts;
#pragma unroll
    for (int m = 0; m < kOutTiles; ++m) {
      for_mine(m, [&](int n, int i, int row, int o) {
        if constexpr (kApart) {
          if (Exists(params, row, o)) parts[row * tile.ld_parts + o] = sum[m][n][i];
        } else {
          total[m][n][i] += sum[m][n][i];
        }
        sum[m][n][i] = 0.0f;
      });
    }
  }
  if constexpr (!kApart) {
    float factors[kRowTiles][2];
    for_mine(0, [&](int n, int i, int row, int) { factors[n][i % 2] = FactorOf(tile, row); });
#pragma unroll
    for (int m = 0; m < kOutTiles; ++m) {
      if (params.p.swiglu) {
        for_mine(m, [&](int n, int i, int row, int o) {
          if (i >= 2) return;  // the same row's, of what the gate opens
          StoreGated(params, row, o, total[m][n][i] * factors[n][i], total[m][n][i + 2] * factors[n][i]);
        });
        continue;
      }
      Addends addends[kRowTiles][4];
      for_mine(m, [&](int n, int i, int row, int o) { addends[n][i] = LoadAddends(params, row, o); });
      for_mine(m, [&](int n, int i, int row, int o) {
        Store(params, row, o, total[m][n][i] * factors[n][i % 2], addends[n][i]);
      });
    }
  }
}

__device__ __forceinline__ void SumParts(const TileParams& tile, int64_t row, int64_t o, float (&total)[4]) {
  float4 sums[kParts];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    sums[part] =
        *reinterpret_cast<const float4*>(tile.parts + (part * int64_t{tile.rows.p.rows} + row) * tile.ld_parts + o);
  }
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    total[0] += sums[part].x;
    total[1] += sums[part].y;
    total[2] += sums[part].z;
    total[3] += sums[part].w;
  }
  const float factor = FactorOf(tile, row);
#pragma unroll
  for (int i = 0; i < 4; ++i) total[i] *= factor;
}

// y from the sums of parts, four outputs a thread; a row for each blockIdx.x.
__global__ void __launch_bounds__(kThreads) JoinPartsKernel(TileParams tile) {
  AfterPrevious();
  const RowsParams& params = tile.rows;
  const int64_t row = blockIdx.x, o = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * 4;
  if (o >= params.out || (params.p.swiglu && !IsGate(o))) return;
  float total[4] = {}, up[4] = {};
  SumParts(tile, row, o, total);
  if (params.p.swiglu) {
    SumParts(tile, row, o + kGates, up);
#pragma unroll
    for (int i = 0; i < 4; ++i) StoreGated(params, row, o + i, total[i], up[i]);
    return;
  }
  Addends addends[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) addends[i] = LoadAddends(params, row, o + i);
#pragma unroll
  for (int i = 0; i < 4; ++i) Store(params, row, o + i, total[i], addends[i]);
}

struct RoundParams {
  const float* x = nullptr;
  int64_t ldx = 0;
  int64_t in = 0;
  int64_t stride = 0;
  bool aligned = false;
  BF16* y = nullptr;
};

constexpr int kRounded = 8;  // by a thread

// A row for each blockIdx.x; zeros between `in` and `stride`.
__global__ void __launch_bounds__(kThreads) RoundKernel(RoundParams p) {
  AfterPrevious();
  const int64_t row = blockIdx.x, at = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kRounded;
  if (at >= p.stride) return;
  const float* const from = p.x + row * p.ldx + at;
  float x[8];
  if (p.aligned && at + 8 <= p.in) {
    LoadFour(from, x);
    LoadFour(from + 4, x + 4);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = at + i < p.in ? from[i] : 0.0f;
  }
  *reinterpret_cast<uint4*>(p.y + row * p.stride + at) =
      make_uint4(PackBF16(x[0], x[1]), PackBF16(x[2], x[3]), PackBF16(x[4], x[5]), PackBF16(x[6], x[7]));
}

struct NormRoundParams {
  RoundParams round;
  const float* weight = nullptr;
  float eps = 0.0f;
  float* factors = nullptr;  // [rows]; null: rows are multiplied by them here
};

// The same of rows that are normalised: a row for each block, which keeps it in shared memory. Squares are summed as
// LinearBF16Kernel does it.
__global__ void __launch_bounds__(kThreads) NormRoundKernel(NormRoundParams p) {
  AfterPrevious();
  float* const of_parts = Shared<float>();  // [kParts]
  float* const x = of_parts + kParts;       // [stride]
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int in = static_cast<int>(p.round.in), stride = static_cast<int>(p.round.stride);
  const float* const from = p.round.x + row * p.round.ldx;
  if (p.round.aligned) {
    for (int i = 4 * thread; i < stride; i += 4 * kThreads) {
      *reinterpret_cast<float4*>(x + i) =
          i < in ? *reinterpret_cast<const float4*>(from + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
  } else {
    for (int i = thread; i < stride; i += kThreads) x[i] = i < in ? from[i] : 0.0f;
  }
  __syncthreads();
  const int part = PartOf(stride), end = (warp + 1) * part < stride ? (warp + 1) * part : stride;
  float squares = 0.0f;
  if (lane < kDepth / 8) {
    for (int at = warp * part + 8 * lane; at < end; at += kDepth) {
      squares =
          AddSquares(squares, *reinterpret_cast<const float4*>(x + at), *reinterpret_cast<const float4*>(x + at + 4));
    }
  }
  squares = JoinSquares(squares);
  if (lane == 0) of_parts[warp] = squares;
  __syncthreads();
  const float factor = RmsFactor(SumOfParts(of_parts, 1), in, p.eps);
  const bool apart = p.factors != nullptr;
  if (apart && thread == 0) p.factors[row] = factor;
  for (int at = kRounded * thread; at < stride; at += kRounded * kThreads) {
    float values[kRounded];
#pragma unroll
    for (int i = 0; i < kRounded; ++i) {
      const float weight = at + i < in ? p.weight[at + i] : 0.0f;
      values[i] = (apart ? x[at + i] : x[at + i] * factor) * weight;
    }
    *reinterpret_cast<uint4*>(p.round.y + row * p.round.stride + at) =
        make_uint4(PackBF16(values[0], values[1]), PackBF16(values[2], values[3]), PackBF16(values[4], values[5]),
                   PackBF16(values[6], values[7]));
  }
}

template <typename Weight, int kOuts, int kRows>
cudaError_t LaunchF32(const RowsParams& params, const Target& target) {
  constexpr int64_t kShared = int64_t{kRows} * kWarp * kPiece * kStagePieces * 4;
  return Launch(LinearF32Kernel<Weight, kOuts, kRows>,
                {.grid = dim3(static_cast<unsigned>(DivideUp(params.out, kWarps * kOuts)),
                              static_cast<unsigned>(DivideUp(params.p.rows, kRows))),
                 .block = dim3(kThreads),
                 .shared_bytes = kShared},
                target, params);
}

template <int kOutTiles, int kRowTiles, int kStages, int kBlocks, bool kFolds = false>
cudaError_t LaunchBF16(const RowsParams& params, const Target& target) {
  using MyStage = StageOf<kOutTiles, kRowTiles, kFolds>;
  return Launch(LinearBF16Kernel<kOutTiles, kRowTiles, kStages, kBlocks, kFolds>,
                {.grid = dim3(static_cast<unsigned>(DivideUp(params.out, 16 * kOutTiles)),
                              static_cast<unsigned>(DivideUp(params.p.rows, 8 * kRowTiles))),
                 .block = dim3(kThreads),
                 .shared_bytes = int64_t{kWarps} * kStages * int64_t{sizeof(MyStage)}},
                target, params);
}

// So many tiles are left whole: they leave few multiprocessors idle, and parts cost a launch and their way through the
// cache. So are those of a short `in`, which are done sooner than that launch.
constexpr int64_t kManyTiles = 90;
constexpr int64_t kLongIn = 1024;

// Device memory that may be used until the product is done.
struct Scratch {
  std::byte* memory;
  int64_t bytes;
};

template <int kOuts, int kRows, int kStages, int kBlocks>
cudaError_t LaunchTiles(TileParams params, const Scratch& left, const Target& target) {
  const int64_t rows = params.rows.p.rows, row_tiles = DivideUp(rows, kRows);
  const int64_t tiles = row_tiles * DivideUp(params.rows.out, kOuts);
  params.ld_parts = DivideUp(params.rows.out, 4) * 4;
  if (params.rows.stride >= kLongIn && left.bytes >= kParts * rows * params.ld_parts * int64_t{sizeof(float)}) {
    while (params.parts_each > 1 && tiles * (kParts / params.parts_each) < kManyTiles) params.parts_each /= 2;
  }
  if (params.parts_each < kParts) params.parts = reinterpret_cast<float*>(left.memory);
  // Blocks that share a piece of W are neighbours, so that it is read from memory once.
  const dim3 grid(static_cast<unsigned>(row_tiles), static_cast<unsigned>(DivideUp(params.rows.out, kOuts)),
                  static_cast<unsigned>(kParts / params.parts_each));
  const bool apart = params.parts != nullptr;
  const cudaError_t error = Launch(
      apart ? LinearBF16TileKernel<kOuts, kRows, kStages, kBlocks, true>
            : LinearBF16TileKernel<kOuts, kRows, kStages, kBlocks, false>,
      {.grid = grid, .block = dim3(kThreads), .shared_bytes = kStages * int64_t{sizeof(TileStage<kOuts, kRows>)}},
      target, params);
  if (error != cudaSuccess || !apart) return error;
  return Launch(
      JoinPartsKernel,
      {.grid = dim3(static_cast<unsigned>(rows), static_cast<unsigned>(DivideUp(params.ld_parts, 4 * kThreads))),
       .block = dim3(kThreads)},
      target, params);
}

// So few outputs that they make few blocks, one to a multiprocessor, even in small tiles.
bool HasFewOutputs(const RowsParams& params) { return params.out <= 2048; }

// More rows than that are worth rounding x for all of the blocks that read it: on an H100, 64 rows of as few outputs as
// give every multiprocessor its blocks at once take less time without (17 us against 19 for 6144 x 2048, 7 against 11
// for 2048 x 2048), of more outputs with it (36 us against 29 for 11264 x 2048).
// A norm has to be found for all of them in any case.
int MostFewRows(const RowsParams& params) {
  if (params.p.norm_weight != nullptr) return 16;
  return params.out <= 6144 ? 64 : 32;
}

cudaError_t LaunchFewRows(const RowsParams& params, const Target& target) {
  const bool few = HasFewOutputs(params);
  if (params.p.rows <= 8) return few ? LaunchBF16<1, 1, 8, 1>(params, target) : LaunchBF16<1, 1, 4, 3>(params, target);
  if (params.p.rows <= 16) return few ? LaunchBF16<1, 2, 6, 1>(params, target) : LaunchBF16<3, 2, 4, 1>(params, target);
  return few ? LaunchBF16<2, 4, 3, 1>(params, target) : LaunchBF16<3, 4, 2, 2>(params, target);
}

// The same of folds, whose stages take a little more.
cudaError_t LaunchFewFolds(const RowsParams& params, const Target& target) {
  const bool few = HasFewOutputs(params);
  if (params.p.rows <= 8) {
    return few ? LaunchBF16<1, 1, 8, 1, true>(params, target) : LaunchBF16<1, 1, 4, 3, true>(params, target);
  }
  return few ? LaunchBF16<1, 2, 6, 1, true>(params, target) : LaunchBF16<3, 2, 3, 1, true>(params, target);
}

cudaError_t LaunchManyRows(const TileParams& params, const Scratch& left, const Target& target) {
  const int rows = params.rows.p.rows;
  if (rows <= 64) return LaunchTiles<64, 64, 5, 2>(params, left, target);
  return rows <= 128 ? LaunchTiles<64, 128, 5, 1>(params, left, target)
                     : LaunchTiles<128, 128, 5, 1>(params, left, target);
}

bool IsAligned(const void* pointer, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride_bytes % 16 == 0;
}

LinearParams From(LinearParams p, int64_t first, int64_t rows) {
  p.x += first * p.ldx;
  p.y += first * p.ldy;
  p.rows = static_cast<int32_t>(rows);
  return p;
}

constexpr int64_t kAlignment = 16;

int64_t Aligned(int64_t bytes) { return DivideUp(bytes, kAlignment) * kAlignment; }

// How many rows of x fit into the scratch memory as bf16, with a factor each.
int64_t RoundedRows(const LinearParams& p, const LinearResources& resources) {
  const int64_t row_bytes = p.weights->row_stride() * int64_t{sizeof(BF16)} + int64_t{sizeof(float)};
  const int64_t bytes = resources.scratch_bytes - 2 * kAlignment;
  return bytes > 0 ? bytes / row_bytes : 0;
}

// Rows of x in scratch memory, as bf16 with W's stride.
struct RoundedX {
  BF16* x;
  float* factors;  // that multiply the sums of a normalised x; null: none
  Scratch left;
};

// Calls multiply(p, rounded) for as many rows at a time as fit, when they are in the scratch memory. apart: the factors
// of a norm are put beside the rows.
template <typename Multiply>
cudaError_t ForRoundedRows(const LinearParams& p, bool apart, const LinearResources& resources, const Target& target,
                           Multiply multiply) {
  const PackedLinear& W = *p.weights;
  const int64_t most = RoundedRows(p, resources);
  for (int64_t row = 0; row < p.rows; row += most) {
    const LinearParams some = From(p, row, p.rows - row < most ? p.rows - row : most);
    const RoundParams round{.x = some.x,
                            .ldx = p.ldx,
                            .in = W.in(),
                            .stride = W.row_stride(),
                            .aligned = IsAligned(some.x, p.ldx * 4) && W.in() % 4 == 0,
                            .y = reinterpret_cast<BF16*>(resources.scratch)};
    const auto rows = static_cast<unsigned>(some.rows);
    const int64_t rounded = Aligned(some.rows * W.row_stride() * int64_t{sizeof(BF16)});
    const bool normed = p.norm_weight != nullptr;
    const int64_t used = rounded + (normed && apart ? Aligned(rows * int64_t{sizeof(float)}) : 0);
    const RoundedX x{.x = round.y,
                     .factors = normed && apart ? reinterpret_cast<float*>(resources.scratch + rounded) : nullptr,
                     .left = {resources.scratch + used, resources.scratch_bytes - used}};
    cudaError_t error =
        normed
            ? Launch(NormRoundKernel,
                     {.grid = dim3(rows),
                      .block = dim3(kThreads),
                      .shared_bytes = (kParts + W.row_stride()) * int64_t{sizeof(float)}},
                     target,
                     NormRoundParams{.round = round, .weight = p.norm_weight, .eps = p.norm_eps, .factors = x.factors})
            : Launch(RoundKernel,
                     {.grid = dim3(rows, static_cast<unsigned>(DivideUp(W.row_stride(), kRounded * kThreads))),
                      .block = dim3(kThreads)},
                     target, round);
    if (error == cudaSuccess) error = multiply(some, x);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

RowsParams RowsOf(const LinearParams& p) {
  const PackedLinear& W = *p.weights;
  LinearParams on_device = p;
  on_device.weights = nullptr;  // the host's
  return {.p = on_device,
          .weights = W.data(),
          .stride = W.row_stride(),
          .out = W.out(),
          .in = W.in(),
          .aligned = IsAligned(p.x, p.ldx * 4) && IsAligned(p.norm_weight, 0) && W.in() % 4 == 0};
}

cudaError_t RunRows(const LinearParams& p, const LinearResources& resources, const Target& target) {
  const RowsParams params = RowsOf(p);
  if (p.math == LinearMath::kBF16) {
    if (p.rows <= MostFewRows(params) || RoundedRows(p, resources) == 0) {
      return p.norm_weight == nullptr ? LaunchFewRows(params, target) : LaunchFewFolds(params, target);
    }
    const auto multiply = [&](const LinearParams& some, const RoundedX& rounded) {
      return LaunchManyRows({.rows = RowsOf(some), .x = rounded.x, .factors = rounded.factors}, rounded.left, target);
    };
    return ForRoundedRows(p, /*apart=*/true, resources, target, multiply);
  }
  if (p.weights->dtype() == DType::kBF16) {
    return p.rows == 1 ? LaunchF32<BF16, 2, 1>(params, target) : LaunchF32<BF16, 4, 8>(params, target);
  }
  return p.rows == 1 ? LaunchF32<float, 2, 1>(params, target) : LaunchF32<float, 4, 8>(params, target);
}

// All rows at once; x as it is, or, in bf16 arithmetic, as it will be in the scratch memory.
Product ProductOf(const LinearParams& p, const LinearResources& resources) {
  const PackedLinear& W = *p.weights;
  const bool rounded = W.dtype() == DType::kBF16;
  return {.dtype = W.dtype(),
          .out = W.out(),
          .in = W.in(),
          .rows = p.rows,
          .weights = W.data(),
          .ldw = W.row_stride(),
          .x = rounded ? static_cast<const void*>(resources.scratch) : p.x,
          .ldx = rounded ? W.row_stride() : p.ldx,
          .y = p.y,
          .ldy = p.ldy,
          .accumulate = p.accumulate,
          .bias = p.bias};
}

cudaError_t RunBlas(const LinearParams& p, const LinearResources& resources, const Target& target) {
  const auto multiply = [&](const LinearParams& some, const RoundedX&) {
    return resources.blas->Multiply(ProductOf(some, resources), target.stream);
  };
  if (p.weights->dtype() == DType::kF32) return multiply(p, {});
  const cudaError_t error = ForRoundedRows(p, /*apart=*/false, resources, target, multiply);
  if (error != cudaSuccess || !p.swiglu) return error;
  const int64_t half = p.weights->out() / 2;
  return Run(SwigluParams{.rows = p.rows,
                          .dim = static_cast<int32_t>(half),
                          .gate = p.y,
                          .ldgate = p.ldy,
                          .up = p.y + half,
                          .ldup = p.ldy,
                          .y = p.y,
                          .ldy = p.ldy},
             target);
}

// Of the matrix and of how rows lie, not of how many there are.
bool SuitsBlas(const LinearParams& p, const LinearResources& resources) {
  const PackedLinear& W = *p.weights;
  if (resources.blas == nullptr || !IsAligned(p.y, p.ldy * 4)) return false;
  const bool fits = p.math == LinearMath::kBF16 ? RoundedRows(p, resources) > 0
                                                : W.dtype() == DType::kF32 && IsAligned(p.x, p.ldx * 4);
  return fits && resources.blas->Supports(ProductOf(p, resources));
}

}  // namespace

cudaError_t Run(const LinearParams& p, const LinearResources& resources, const Target& target) {
  const PackedLinear& W = *p.weights;
  if (p.rows == 0 || W.out() == 0) return cudaSuccess;
  if (!W.on_device() || (p.math == LinearMath::kBF16 && W.dtype() != DType::kBF16)) return cudaErrorInvalidValue;
  const bool folds = p.norm_weight != nullptr;
  if (folds && (!Folds(W, p.math) || p.accumulate || p.bias != nullptr)) return cudaErrorInvalidValue;
  if (p.swiglu && (!folds || !FoldsSwiglu(W))) return cudaErrorInvalidValue;
  if (!SuitsBlas(p, resources)) return RunRows(p, resources, target);
  if (p.step_rows > 0) {
    if (const cudaError_t error = RunRows(From(p, 0, p.step_rows), resources, target); error != cudaSuccess)
      return error;
  }
  if (p.step_rows == p.rows) return cudaSuccess;
  return RunBlas(From(p, p.step_rows, p.rows - p.step_rows), resources, target);
}

}  // namespace palimpsest::cuda
