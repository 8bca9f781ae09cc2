// Inside fast_weight: some rows of a state in registers, and what a row in time does to them.
//
// A row of K values is spread over K / kRowFloats neighbouring lanes, a thread has kRowsPerThread such rows
// (fast_weight_config.h). A lane's values lie in runs of 16 bytes, as memory is read.
#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/group.h"
#include "kernels/cuda/math.h"
#include "kernels/fast_weight/fast_weight_config.h"

namespace palimpsest::cuda {

// A log-decay below -10^4, infinity included, counts as -10^4 (README.md); NaN stays.
__device__ __forceinline__ float DecayOf(float log_decay) { return expf(log_decay < -1e4f ? -1e4f : log_decay); }

// Where the values of a lane are in a row of K that is stored as Stored.
template <int kK, typename Stored>
struct Spread {
  static constexpr int kFloats = FastWeightRowsConfig::kRowFloats;
  static constexpr int kLanes = kK / kFloats;
  static constexpr int kRun = 16 / static_cast<int>(sizeof(Stored));
  static constexpr int kRuns = kFloats / kRun;

  // Of the first value of run i.
  static __device__ __forceinline__ int At(int lane, int i) { return (i * kLanes + lane) * kRun; }

  static __device__ __forceinline__ void Load(const float* row, int lane, bool aligned, float (&to)[kFloats]) {
#pragma unroll
    for (int i = 0; i < kFloats; i += 4) {
      const float* const at = row + At(lane, i / kRun) + i % kRun;
      if (aligned) {
        const float4 four = *reinterpret_cast<const float4*>(at);
        to[i] = four.x;
        to[i + 1] = four.y;
        to[i + 2] = four.z;
        to[i + 3] = four.w;
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) to[i + j] = at[j];
      }
    }
  }

  static __device__ __forceinline__ void Store(const float (&from)[kFloats], int lane, float* row) {
#pragma unroll
    for (int i = 0; i < kFloats; i += 4) {
      *reinterpret_cast<float4*>(row + At(lane, i / kRun) + i % kRun) =
          make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
    }
  }

  // bfloat16, two to a word.
  static __device__ __forceinline__ void Load(const BF16* row, int lane, bool, float (&to)[kFloats]) {
#pragma unroll
    for (int i = 0; i < kRuns; ++i) {
      const uint4 run = *reinterpret_cast<const uint4*>(row + At(lane, i));
      const uint32_t words[] = {run.x, run.y, run.z, run.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        to[i * kRun + 2 * j] = FloatFromBF16(static_cast<BF16>(words[j]));
        to[i * kRun + 2 * j + 1] = FloatFromBF16(static_cast<BF16>(words[j] >> 16));
      }
    }
  }

  static __device__ __forceinline__ void Store(const float (&from)[kFloats], int lane, BF16* row) {
#pragma unroll
    for (int i = 0; i < kRuns; ++i) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* const pair = from + i * kRun + 2 * j;
        words[j] = PackBF16(pair[0], pair[1]);
      }
      *reinterpret_cast<uint4*>(row + At(lane, i)) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
};

// What a row in time brings for one head, spread likewise. Which of it is used depends on the rule.
template <int kK, UpdateRule kRule, typename Stored>
struct RowInputs {
  using In = Spread<kK, Stored>;
  float k[In::kFloats];
  float q[In::kFloats];
  float beta;
  float decay;
  float channel_decay[In::kFloats];
  float remove[In::kFloats];
  float insert[In::kFloats];

  __device__ __forceinline__ void Load(const FastWeightParams& p, int64_t row, int value_head, int lane, bool aligned) {
    const int64_t head = int64_t{value_head} * p.shape.heads / p.shape.value_heads;
    const int64_t gate = row * p.shape.value_heads + value_head;
    In::Load(p.k + row * p.ldk + head * kK, lane, aligned, k);
    In::Load(p.q + row * p.ldq + head * kK, lane, aligned, q);
    if constexpr (Corrects(kRule)) beta = p.beta[gate];
    if constexpr (DecaysHeads(kRule)) decay = DecayOf(p.log_decay[gate]);
    if constexpr (DecaysChannels(kRule)) {
      In::Load(p.log_decay + gate * kK, lane, aligned, channel_decay);
#pragma unroll
      for (float& value : channel_decay) value = DecayOf(value);
    }
    if constexpr (kRule == UpdateRule::kLowRank) {
      In::Load(p.remove + gate * kK, lane, aligned, remove);
      In::Load(p.insert + gate * kK, lane, aligned, insert);
    }
  }
};

template <int kK, UpdateRule kRule, typename Stored>
struct RowsInRegisters {
  using In = Spread<kK, Stored>;
  static constexpr int kRows = FastWeightRowsConfig::kRowsPerThread;
  float S[kRows][In::kFloats];

  // The first `rows` from `state` on; zeros for the others.
  __device__ __forceinline__ void Load(const Stored* state, int lane, int rows) {
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
      if (n < rows) {
        In::Load(state + n * kK, lane, true, S[n]);
      } else {
#pragma unroll
        for (float& value : S[n]) value = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void Store(int lane, int rows, Stored* state) const {
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
      if (n < rows) In::Store(S[n], lane, state + n * kK);
    }
  }

  // As after Store and Load.
  __device__ __forceinline__ void Round() {
#pragma unroll
    for (auto& row : S) {
#pragma unroll
      for (float& value : row) value = RoundedTo<Stored>(value);
    }
  }

  // Row n of S takes in the row in time; `u` comes as v's element and goes as what was written under k.
  __device__ __forceinline__ void Write(int n, const RowInputs<kK, kRule, Stored>& in, float& u) {
    float(&row)[In::kFloats] = S[n];
    if constexpr (DecaysHeads(kRule)) {
#pragma unroll
      for (float& value : row) value *= in.decay;
    }
    if constexpr (kRule == UpdateRule::kChannelGatedDelta) {
#pragma unroll
      for (int i = 0; i < In::kFloats; ++i) row[i] *= in.channel_decay[i];
    }
    if constexpr (Corrects(kRule)) u = in.beta * (u - Read(n, in.k));
    if constexpr (kRule == UpdateRule::kLowRank) {
      const float removed = Read(n, in.remove);
#pragma unroll
      for (int i = 0; i < In::kFloats; ++i) row[i] = fmaf(removed, in.insert[i], row[i] * in.channel_decay[i]);
    }
    Add(n, u, in.k);
  }

  __device__ __forceinline__ void Add(int n, float u, const float (&k)[In::kFloats]) {
#pragma unroll
    for (int i = 0; i < In::kFloats; ++i) S[n][i] = fmaf(u, k[i], S[n][i]);
  }

  // The product of row n with x, the same in all of its lanes.
  __device__ __forceinline__ float Read(int n, const float (&x)[In::kFloats]) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < In::kFloats; ++i) sum = fmaf(S[n][i], x[i], sum);
    return GroupSum<In::kLanes>(sum);
  }
};

}  // namespace palimpsest::cuda
