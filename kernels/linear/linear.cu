// Three ways to multiply, chosen by what must not change the bits: the matrix, the arithmetic, and whether a row is a
// step or part of a chunk; never by how many rows there are. (Shapes of launches do depend on that: they cut the work,
// not the sums.)
//
//   steps, bf16 arithmetic   the tensor cores, W as the left operand: 16 outputs by 8 rows at a time. A block's warps
//                            share out `in`, 32 values at a time in turn, and their sums are joined in order. W is read
//                            once, 16 bytes a lane, which is what a small batch is bound by.
//   steps, f32 arithmetic    a warp has a few outputs, its lanes share out `in`, 16 bytes at a time in turn, and join
//                            their sums as a butterfly.
//   chunks                   cuBLASLt, if matrix and strides suit it; else as steps
#include "kernels/cuda/group.h"
#include "kernels/cuda/math.h"
#include "kernels/cuda/mma.h"
#include "kernels/linear/linear_device.h"

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
  bool aligned = false;  // x may be read 16 bytes at a time
};

__device__ __forceinline__ void Store(const RowsParams& params, int64_t row, int64_t o, float sum) {
  float* const y = params.p.y + row * params.p.ldy + o;
  if (params.p.accumulate) sum += *y;
  if (params.p.bias != nullptr) sum += params.p.bias[o];
  *y = sum;
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
      if (lane == 0 && first_out + o < params.out && first_row + r < params.p.rows) {
        Store(params, first_row + r, first_out + o, total);
      }
    }
  }
}

constexpr int kOutTile = 16;

// x[at .. at + 8) of a row as four pairs of bf16; zeros outside of the matrix.
__device__ __forceinline__ void LoadRounded(const RowsParams& params, int64_t row, int64_t at, uint32_t (&pairs)[4]) {
  float x[8] = {};
  if (row < params.p.rows) {
    const float* const from = params.p.x + row * params.p.ldx + at;
    if (params.aligned && at + 8 <= params.in) {
      const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
      x[0] = low.x;
      x[1] = low.y;
      x[2] = low.z;
      x[3] = low.w;
      x[4] = high.x;
      x[5] = high.y;
      x[6] = high.z;
      x[7] = high.w;
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = at + i < params.in ? from[i] : 0.0f;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = PackBF16(x[2 * i], x[2 * i + 1]);
}

// With g = lane / 4 and t = lane % 4, a lane has values 8t to 8t + 7 of each 32, of rows g and g + 8 of W and of row g
// of x. Which of a matrix instruction's 16 places a value takes does not matter as long as W's and x's agree.
template <int kRowTiles>
__global__ void __launch_bounds__(kThreads) LinearBF16Kernel(RowsParams params) {
  constexpr int kRows = 8 * kRowTiles;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = lane / 4, t = lane % 4;
  const int64_t first_out = int64_t{blockIdx.x} * kOutTile, first_row = int64_t{blockIdx.y} * kRows;
  const auto* const W = reinterpret_cast<const BF16*>(params.weights);
  const int64_t last = params.out - 1;
  const BF16* const low = W + (first_out + g < last ? first_out + g : last) * params.stride;
  const BF16* const high = W + (first_out + g + 8 < last ? first_out + g + 8 : last) * params.stride;
  float sum[kRowTiles][4] = {};
#pragma unroll 2
  for (int64_t block = int64_t{warp} * 32; block < params.stride; block += kWarps * 32) {
    const int64_t at = block + 8 * t;
    uint4 w_low = {0, 0, 0, 0}, w_high = {0, 0, 0, 0};
    if (at < params.stride) {
      w_low = *reinterpret_cast<const uint4*>(low + at);
      w_high = *reinterpret_cast<const uint4*>(high + at);
    }
    const uint32_t first[4] = {w_low.x, w_high.x, w_low.y, w_high.y};
    const uint32_t second[4] = {w_low.z, w_high.z, w_low.w, w_high.w};
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      uint32_t x[4];
      LoadRounded(params, first_row + 8 * tile + g, at, x);
      const uint32_t x_first[2] = {x[0], x[1]}, x_second[2] = {x[2], x[3]};
      MmaBF16(sum[tile], first, x_first);
      MmaBF16(sum[tile], second, x_second);
    }
  }
  float* const parts = Shared<float>();  // [kWarps][kOutTile][kRows]
  ForTileElements(sum, [&](int o, int r, float value) { parts[(warp * kOutTile + o) * kRows + r] = value; });
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kOutTile * kRows; i += kThreads) {
    const int64_t o = first_out + i % kOutTile, row = first_row + i / kOutTile;
    if (o >= params.out || row >= params.p.rows) continue;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += parts[(w * kOutTile + i % kOutTile) * kRows + i / kOutTile];
    Store(params, row, o, total);
  }
}

struct RoundParams {
  const float* x = nullptr;
  int64_t ldx = 0;
  int64_t in = 0;
  int64_t stride = 0;
  int64_t rows = 0;
  BF16* y = nullptr;
};

__global__ void __launch_bounds__(kThreads) RoundKernel(RoundParams p) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, row = i / p.stride, column = i % p.stride;
  if (row >= p.rows) return;
  p.y[i] = column < p.in ? BF16FromFloat(p.x[row * p.ldx + column]) : BF16{0};
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

template <int kRowTiles>
cudaError_t LaunchBF16(const RowsParams& params, const Target& target) {
  return Launch(LinearBF16Kernel<kRowTiles>,
                {.grid = dim3(static_cast<unsigned>(DivideUp(params.out, kOutTile)),
                              static_cast<unsigned>(DivideUp(params.p.rows, 8 * kRowTiles))),
                 .block = dim3(kThreads),
                 .shared_bytes = int64_t{kWarps} * kOutTile * 8 * kRowTiles * 4},
                target, params);
}

bool IsAligned(const void* pointer, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride_bytes % 16 == 0;
}

cudaError_t RunRows(const LinearParams& p, const Target& target) {
  const PackedLinear& W = *p.weights;
  const RowsParams params{.p = p,
                          .weights = W.data(),
                          .stride = W.row_stride(),
                          .out = W.out(),
                          .in = W.in(),
                          .aligned = IsAligned(p.x, p.ldx * 4)};
  if (p.math == LinearMath::kBF16) {
    return p.rows <= 8 ? LaunchBF16<1>(params, target) : LaunchBF16<4>(params, target);
  }
  if (W.dtype() == DType::kBF16) {
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
  const PackedLinear& W = *p.weights;
  Product product = ProductOf(p, resources);
  if (W.dtype() == DType::kF32) return resources.blas->Multiply(product, target.stream);
  const int64_t most = resources.scratch_bytes / (W.row_stride() * int64_t{sizeof(BF16)});
  for (int64_t row = 0; row < p.rows; row += most) {
    product.rows = p.rows - row < most ? p.rows - row : most;
    product.y = p.y + row * p.ldy;
    const RoundParams round{.x = p.x + row * p.ldx,
                            .ldx = p.ldx,
                            .in = W.in(),
                            .stride = W.row_stride(),
                            .rows = product.rows,
                            .y = reinterpret_cast<BF16*>(resources.scratch)};
    const auto blocks = static_cast<unsigned>(DivideUp(product.rows * W.row_stride(), kThreads));
    cudaError_t error = Launch(RoundKernel, {.grid = dim3(blocks), .block = dim3(kThreads)}, target, round);
    if (error == cudaSuccess) error = resources.blas->Multiply(product, target.stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Of the matrix and of how rows lie, not of how many there are.
bool SuitsBlas(const LinearParams& p, const LinearResources& resources) {
  const PackedLinear& W = *p.weights;
  if (resources.blas == nullptr || !IsAligned(p.y, p.ldy * 4)) return false;
  const bool fits = p.math == LinearMath::kBF16 ? resources.scratch_bytes >= W.row_stride() * int64_t{sizeof(BF16)}
                                                : W.dtype() == DType::kF32 && IsAligned(p.x, p.ldx * 4);
  return fits && resources.blas->Supports(ProductOf(p, resources));
}

LinearParams From(LinearParams p, int32_t first, int32_t rows) {
  p.x += first * p.ldx;
  p.y += first * p.ldy;
  p.rows = rows;
  return p;
}

}  // namespace

cudaError_t Run(const LinearParams& p, const LinearResources& resources, const Target& target) {
  const PackedLinear& W = *p.weights;
  if (p.rows == 0 || W.out() == 0) return cudaSuccess;
  if (!W.on_device() || (p.math == LinearMath::kBF16 && W.dtype() != DType::kBF16)) return cudaErrorInvalidValue;
  if (!SuitsBlas(p, resources)) return RunRows(p, target);
  if (p.step_rows > 0) {
    if (const cudaError_t error = RunRows(From(p, 0, p.step_rows), target); error != cudaSuccess) return error;
  }
  if (p.step_rows == p.rows) return cudaSuccess;
  return RunBlas(From(p, p.step_rows, p.rows - p.step_rows), resources, target);
}

}  // namespace palimpsest::cuda
