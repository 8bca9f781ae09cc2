// Inside fast_weight: one value head of one sequence, as the kernels see it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/fast_weight/fast_weight.h"

namespace palimpsest {

// The rows of one sequence, reduced to one head. Pointers are to the first row and its first write; decays of heads are
// `ldgate` floats apart, what comes by channel, log-decays among it then, `ldchannels`. From one write of a row to the
// next it is the fields that begin with `next_`.
struct HeadRows {
  UpdateRule rule = UpdateRule::kDelta;
  int32_t key_dim = 0;
  int32_t value_dim = 0;
  int32_t rows = 0;
  int32_t sub_steps = 1;
  const float* q = nullptr;
  int64_t ldq = 0;
  const float* k = nullptr;
  int64_t ldk = 0;
  int64_t next_k = 0;
  const float* v = nullptr;
  int64_t ldv = 0;
  int64_t next_v = 0;
  const float* beta = nullptr;
  int64_t ldbeta = 0;
  int64_t next_beta = 0;
  const float* log_decay = nullptr;
  int64_t ldgate = 0;
  const float* remove = nullptr;
  const float* insert = nullptr;
  int64_t ldchannels = 0;
  float* out = nullptr;
  int64_t ldout = 0;
  std::byte* state = nullptr;  // [value_dim, key_dim]

  template <typename T>
  T* state_as() const {
    return reinterpret_cast<T*>(state);
  }

  HeadRows From(int64_t row) const {
    HeadRows rest = *this;
    rest.rows -= static_cast<int32_t>(row);
    rest.q += row * ldq;
    rest.k += row * ldk;
    rest.v += row * ldv;
    if (beta != nullptr) rest.beta += row * ldbeta;
    if (log_decay != nullptr) rest.log_decay += row * (DecaysChannels(rule) ? ldchannels : ldgate);
    if (remove != nullptr) rest.remove += row * ldchannels;
    if (insert != nullptr) rest.insert += row * ldchannels;
    rest.out += row * ldout;
    return rest;
  }

  // With the j-th write of each row as its first.
  HeadRows SubStep(int32_t j) const {
    HeadRows write = *this;
    write.sub_steps -= j;
    write.k += j * next_k;
    write.v += j * next_v;
    if (beta != nullptr) write.beta += j * next_beta;
    return write;
  }
};

struct FastWeightKernels {
  // The first row of `head`, for rows [v_begin, v_end) of its state.
  void (*step)(const HeadRows& head, int32_t v_begin, int32_t v_end, float* scratch);
  // All rows of `head`, chunk by chunk.
  void (*chunks)(const HeadRows& head, float* scratch);
  // Of both, aligned to 64 bytes.
  int64_t (*scratch_floats)(int32_t key_dim);
};

}  // namespace palimpsest
