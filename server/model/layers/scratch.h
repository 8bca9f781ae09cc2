// The buffers of a forward pass, which the layers share, and how wide they must be.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "base/check.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/common/device.h"
#include "server/model/layers/batch_arrays.h"
#include "server/model/model.h"

namespace palimpsest {

// One T for each buffer. Letters: D hidden size, I inner size of the MLP, HV and V heads of values and their size.
template <typename T>
struct PerBuffer {
  T x = {};          // [rows, D] the residual stream
  T h = {};          // [rows, D] normalized input of a mixer or MLP; last, of the rows that want logits
  T projected = {};  // [rows, projections of the layer's input]
  T mapped = {};     // [rows, q | k | v] as the memory takes them
  T mixed = {};      // [rows, HV, V] what the mixer gives
  T gate = {};       // [rows, HV, V] of a gate whose projection has two factors
  T decay = {};      // [rows, HV, K], likewise
  T beta = {};       // [rows, HV]
  T log_decay = {};  // [rows, HV], by channel [rows, HV, K]
  T inner = {};      // [rows, gate | up]
  T gathered = {};   // rows of one cluster of the vocabulary
  T cluster = {};    // and what becomes of them

  static constexpr T PerBuffer::*kAll[] = {&PerBuffer::x,      &PerBuffer::h,        &PerBuffer::projected,
                                           &PerBuffer::mapped, &PerBuffer::mixed,    &PerBuffer::gate,
                                           &PerBuffer::decay,  &PerBuffer::beta,     &PerBuffer::log_decay,
                                           &PerBuffer::inner,  &PerBuffer::gathered, &PerBuffer::cluster};
};

// Values of a row, at most, in each buffer.
class ScratchPlan {
 public:
  void AtLeast(int64_t PerBuffer<int64_t>::*buffer, int64_t width) {
    if (widths_.*buffer < width) widths_.*buffer = width;
  }
  const PerBuffer<int64_t>& widths() const { return widths_; }

 private:
  PerBuffer<int64_t> widths_;
};

struct Workspace::Buffers : PerBuffer<AlignedArray<float>> {
  // Of a device only.
  BatchArrays arrays;
  std::map<int32_t, std::unique_ptr<Device::Graph>> recordings;  // by padded number of steps; null: could not be made
  const float* recorded_logits = nullptr;  // what the recordings write to and read from, beside these buffers
  const std::byte* recorded_states = nullptr;
  Counts counts;

  // Makes room for `size` values. Recordings know addresses, so they go when an array moves.
  void Grow(AlignedArray<float>& array, int64_t size, Device* device) {
    if (array.size() >= size) return;
    if (device != nullptr) recordings.clear();
    array = {};  // never both at once
    array = AlignedArray<float>(size, device);
    PALIMPSEST_CHECK(size == 0 || array.data() != nullptr);
  }
};

}  // namespace palimpsest
