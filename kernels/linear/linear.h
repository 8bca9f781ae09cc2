// y = x W^T: the projections. W is [out, in] as in a checkpoint, packed once at load.
//
// Every output element is one chain of multiply-adds over `in` in ascending order, whatever the number of rows, their
// grouping and the number of threads: the bits of a row of y depend on that row of x and on W alone; on a device, which
// has other orders, on whether the row is a step, too.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/common/aligned_buffer.h"
#include "kernels/common/dtype.h"
#include "kernels/common/simd.h"  // HasNativeBF16, SimdTargetName
#include "kernels/common/thread_pool.h"

namespace palimpsest {

// How products are formed.
enum class LinearMath : uint8_t {
  kF32,   // x and W in float32 (bf16 weights are widened, which is exact)
  kBF16,  // x rounded to bf16; bf16 weights; products in pairs, sums in float32. Only for bf16 weights.
};

// kBF16 is fast where HasNativeBF16() of kernels/common/simd.h is true; elsewhere it is emulated with the same rounding
// of x, correct but no faster than kF32.

// A weight matrix in the order in which the kernel reads it. Read-only after construction; threads may share it.
//
// On a device: rows as in the checkpoint, each filled up with zeros to a multiple of 16 bytes. On the host, panels of
// kPanel outputs lie one after the other, the last one padded with zeros; inside a panel `in` is the outer index. bf16
// weights are stored in pairs along `in` (padded to even with zeros), so that a 32-bit lane holds what one dot-product
// instruction takes and is split exactly into two float32 by a shift and a mask:
//   f32   [out / kPanel][in][kPanel]        bf16  [out / kPanel][in / 2][kPanel][2]
class PackedLinear {
 public:
  static constexpr int64_t kPanel = 32;

  PackedLinear() = default;
  // Packs `out` rows of `in` values. `dtype` is that of `weights` and is kept for f32 and bf16; f16 is widened to f32.
  // For a device, the matrix is put into its memory and its data() is null if there is no room.
  static PackedLinear Pack(DType dtype, const void* weights, int64_t out, int64_t in, Device* device = nullptr);
  // Packs several matrices with the same `in` and dtype one below the other: one call then computes them all, side by
  // side in a row of y.
  struct Source {
    DType dtype;
    const void* weights;
    int64_t out;
  };
  static PackedLinear PackStacked(std::span<const Source> sources, int64_t in, Device* device = nullptr);

  DType dtype() const { return dtype_; }
  int64_t out() const { return out_; }
  int64_t in() const { return in_; }
  int64_t bytes() const { return data_.size(); }
  const std::byte* data() const { return data_.data(); }
  bool on_device() const { return row_stride_ > 0; }
  // From one row to the next, in values. On a device only.
  int64_t row_stride() const { return row_stride_; }

 private:
  DType dtype_ = DType::kF32;
  int64_t row_stride_ = 0;
  int64_t out_ = 0;
  int64_t in_ = 0;
  AlignedBytes data_;
};

// Whether a product with the matrix can do what stands before and after it, too (LinearParams::norm_weight, ::swiglu):
// on a device, in bf16 arithmetic.
bool Folds(const PackedLinear& weights, LinearMath math);
// Of the second: whether its halves can be cut as a device wants them. Where Folds() is true.
bool FoldsSwiglu(const PackedLinear& weights);

// y[r, o] = sum_i x[r, i] W[o, i]  (accumulate false), or y[r, o] += that sum (true); then y[r, o] += bias[o].
struct LinearParams {
  const PackedLinear* weights = nullptr;
  LinearMath math = LinearMath::kF32;
  const float* x = nullptr;  // [rows, in], row stride ldx
  int64_t ldx = 0;
  float* y = nullptr;  // [rows, out], row stride ldy; does not overlap x
  int64_t ldy = 0;
  int32_t rows = 0;
  bool accumulate = false;
  const float* bias = nullptr;  // [out]; null: none
  // The first of the rows that are steps; the others belong to chunks. A device multiplies the two by different
  // kernels.
  int32_t step_rows = 0;

  // Where Folds(), and nothing is added to the sum: x is normalised first, as by RmsNorm (norm.h) with this weight,
  // [in]. A step's values are rounded to bf16 before they are divided by their root mean square, which is done to the
  // sum.
  const float* norm_weight = nullptr;
  float norm_eps = 0.0f;
  // With norm_weight, where FoldsSwiglu(): W is a gate's matrix above another one, and Swiglu (activation.h) follows. y
  // has `out` / 2 columns then; the next `out` / 2 of its rows may be written, too.
  bool swiglu = false;
};
void Linear(const ExecContext& ctx, const LinearParams& params);

// The truth: double precision, from the unpacked matrix in float32 [out, in].
void LinearReference(const float* weights, int64_t out, int64_t in, const float* x, int64_t ldx, int32_t rows,
                     double* y);

}  // namespace palimpsest
