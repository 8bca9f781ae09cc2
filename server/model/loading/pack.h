// From the tensors of a file to what the kernels read.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>

#include "base/round_up.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/linear/linear.h"
#include "server/model/checkpoint/safetensors.h"
#include "server/model/loading/tensors_by_role.h"

namespace palimpsest {

// Widened to float32, which is exact. Null gives an empty array.
AlignedArray<float> Floats(const TensorView& tensor);
AlignedArray<float> Floats(const TensorView* tensor);
// One after the other.
AlignedArray<float> Concatenated(std::span<const TensorView* const> tensors);
// [channels, 1, width] each, to [width, channels of all].
AlignedArray<float> TransposedConvs(std::span<const TensorView* const> convs);
// Of [rows, columns], [columns, rows].
AlignedArray<float> Transposed(const TensorView& tensor);

// Matrices one below the other; of unlike types, all are widened to float32. On a device, data() is null if there is no
// room.
PackedLinear Pack(std::span<const TensorView* const> tensors, Device* device);
inline PackedLinear Pack(const TensorView& tensor, Device* device) {
  const TensorView* const only = &tensor;
  return Pack({&only, 1}, device);
}

// Projections of one input that are computed at once, side by side in a row.
class StackedLinear {
 public:
  StackedLinear() = default;
  // Those of the roles that are there, in the order given.
  StackedLinear(const TensorsByRole& tensors, std::initializer_list<Role> roles, Device* device);

  const PackedLinear& matrix() const { return matrix_; }
  PackedLinear& matrix() { return matrix_; }
  // Where the role's columns begin.
  int64_t column(Role role) const;
  // From one row of what is computed to the next, in values: the library of a device wants multiples of 16 bytes.
  int64_t stride() const { return RoundUp<int64_t>(matrix_.out(), 4); }

 private:
  static constexpr int kMostParts = 8;
  struct Part {
    Role role = Role::kIgnored;
    int64_t begin = 0;
  };
  std::array<Part, kMostParts> parts_;
  PackedLinear matrix_;
};

}  // namespace palimpsest
