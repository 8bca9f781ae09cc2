// The shape of a batch, and where the states of its sequences are.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"

namespace palimpsest {

// The rows of a batch. Rows [row_begin[s], row_begin[s+1]) belong to sequence s, in order of time; its state is in slot
// slot[s]. Slots in a batch are distinct. On a device the arrays are the device's, and a slot of -1 is no sequence: its
// rows are there for the size of the batch only, and what comes of them is not defined.
struct RaggedRows {
  int32_t num_sequences = 0;
  const int32_t* row_begin = nullptr;  // [num_sequences + 1], row_begin[0] == 0
  const int32_t* slot = nullptr;       // [num_sequences]
  // The first `num_steps` sequences have one row each, all others more. -1: nobody has counted. A device wants to know.
  int32_t num_steps = -1;

  // Of arrays in host memory.
  int32_t num_rows() const { return num_sequences == 0 ? 0 : row_begin[num_sequences]; }
  int32_t length(int32_t s) const { return row_begin[s + 1] - row_begin[s]; }

  // All but the steps; rows keep their numbers, so row_begin[0] is no longer 0.
  RaggedRows AfterSteps() const {
    const int32_t steps = num_steps < 0 ? 0 : num_steps;
    return {num_sequences - steps, row_begin + steps, slot + steps, 0};
  }
};

// One piece of the state, for every slot: slot i's lies at base + i * slot_stride bytes, aligned to 64. All are float32
// but where an op says otherwise.
struct StatePiece {
  std::byte* base = nullptr;
  int64_t slot_stride = 0;
  DType dtype = DType::kF32;

  template <typename T = float>
  PALIMPSEST_HOST_DEVICE T* At(int32_t slot) const {
    return reinterpret_cast<T*>(base + int64_t{slot} * slot_stride);
  }
};

}  // namespace palimpsest
