// Inside fast_weight: some rows of a state in registers, and what a row in time does to them.
//
// A row of K values is spread over K / kRowFloats neighbouring lanes, a thread has kRowsPerThread such rows
// (fast_weight_config.h). A lane's values lie in runs of 16 bytes, as memory is read.
#pragma once

#include "kernels/cuda/async_copy.h"
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

  static constexpr int kApart = kLanes * kRun;  // runs of a lane

  static __device__ __forceinline__ void Load(const float* row, int lane, bool aligned, float (&to)[kFloats]) {
    row += lane * kRun;
#pragma unroll
    for (int i = 0; i < kFloats; i += 4) {
      const float* const at = row + (i / kRun * kApart + i % kRun);
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
    row += lane * kRun;
#pragma unroll
    for (int i = 0; i < kFloats; i += 4) {
      *reinterpret_cast<float4*>(row + (i / kRun * kApart + i % kRun)) =
          make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
    }
  }

  // bfloat16, two to a word.
  static __device__ __forceinline__ void Load(const BF16* row, int lane, bool, float (&to)[kFloats]) {
    row += lane * kRun;
#pragma unroll
    for (int i = 0; i < kRuns; ++i) {
      const uint4 run = *reinterpret_cast<const uint4*>(row + i * kApart);
      const uint32_t words[] = {run.x, run.y, run.z, run.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        to[i * kRun + 2 * j] = FloatFromBF16(static_cast<BF16>(words[j]));
        to[i * kRun + 2 * j + 1] = FloatFromBF16(static_cast<BF16>(words[j] >> 16));
      }
    }
  }

  static __device__ __forceinline__ void Store(const float (&from)[kFloats], int lane, BF16* row) {
    row += lane * kRun;
#pragma unroll
    for (int i = 0; i < kRuns; ++i) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* const pair = from + i * kRun + 2 * j;
        words[j] = PackBF16(pair[0], pair[1]);
      }
      *reinterpret_cast<uint4*>(row + i * kApart) = make_uint4(words[0], words[1], words[2], words[3]);
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

  // With the first of the row's `sub_steps` writes.
  __device__ __forceinline__ void Load(const FastWeightParams& p, int64_t row, int value_head, int sub_steps, int lane,
                                       bool aligned) {
    const int64_t head = int64_t{value_head} * p.shape.heads / p.shape.value_heads;
    const int64_t gate = row * p.shape.value_heads + value_head;
    LoadWrite(p, row, value_head, 0, sub_steps, lane, aligned);
    In::Load(p.q + row * p.ldq + head * kK, lane, aligned, q);
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

  // What one of the row's writes brings.
  __device__ __forceinline__ void LoadWrite(const FastWeightParams& p, int64_t row, int value_head, int sub_step,
                                            int sub_steps, int lane, bool aligned) {
    const int64_t head = int64_t{value_head} * p.shape.heads / p.shape.value_heads;
    In::Load(p.k + row * p.ldk + (int64_t{sub_step} * p.shape.heads + head) * kK, lane, aligned, k);
    if constexpr (Corrects(kRule)) beta = p.beta[(row * sub_steps + sub_step) * p.shape.value_heads + value_head];
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

  // Row n of S takes in the row in time, or, without the decay, a write of it after the first; `u` comes as v's element
  // and goes as what was written under k.
  template <bool kDecays = true>
  __device__ __forceinline__ void Write(int n, const RowInputs<kK, kRule, Stored>& in, float& u) {
    float(&row)[In::kFloats] = S[n];
    if constexpr (kDecays && DecaysHeads(kRule)) {
#pragma unroll
      for (float& value : row) value *= in.decay;
    }
    if constexpr (kDecays && DecaysChannels(kRule) && kRule != UpdateRule::kLowRank) {
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

  // The first `rows` take in a row in time, with v's elements from `v` on. What is written under k goes to `written`,
  // too, unless that is null.
  template <bool kDecays = true>
  __device__ __forceinline__ void Write(const RowInputs<kK, kRule, Stored>& in, int lane, int rows, const float* v,
                                        float* written) {
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
      float u = n < rows ? v[n] : 0.0f;
      Write<kDecays>(n, in, u);
      if (written != nullptr && lane == 0 && n < rows) written[n] = u;
    }
  }

  // What the first `rows` say of q.
  __device__ __forceinline__ void Read(const float (&q)[In::kFloats], int lane, int rows, float* out) const {
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
      const float read = Read(n, q);
      if (lane == 0 && n < rows) out[n] = read;
    }
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

// What the replay form keeps of one value head beside its state: `pending` entries, and room for the next.
template <int kK, UpdateRule kRule, typename Stored>
class ReplayEntries {
 public:
  using Rows = RowsInRegisters<kK, kRule, Stored>;

  __device__ __forceinline__ ReplayEntries(const FastWeightParams& p, int32_t slot, int64_t value_head, int32_t pending)
      : floats_(static_cast<int32_t>(FastWeightReplay::entry_floats(p.shape))),
        pending_(pending),
        first_(p.replay.written.At(slot) + value_head * (p.replay.interval - 1) * floats_) {}

  // Adds what steps before have left out to `count` rows of the state, from `row` on.
  __device__ __forceinline__ void AddTo(Rows& rows, int lane, int row, int count) const {
    Add(first_, floats_, row, rows, lane, count);
  }

  // The same by way of shared memory, so that a block waits once for all of them: Fetch asks for rows [begin, end) of
  // each, and after WaitForFetched and a barrier they are added. `begin` is a multiple of 4. All threads take part.
  static constexpr int FetchedFloats(int rows) { return kK + 4 + (rows + 3) / 4 * 4; }
  __device__ __forceinline__ void Fetch(int begin, int end, float* to) const {
    constexpr int kKey = kK / 4 + 1;  // copies for k and the decay
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int warps = static_cast<int>(blockDim.x) / kWarp, stride = FetchedFloats(end - begin);
#pragma unroll 1
    for (int e = warp; e < pending_; e += warps) {
      for (int i = lane; i < stride / 4; i += kWarp) {
        CopyAsync16(to + e * stride + 4 * i, first_ + e * floats_ + 4 * i + (i < kKey ? 0 : begin), true);
      }
    }
    CommitCopies();
  }
  static __device__ __forceinline__ void WaitForFetched() { WaitForCopies<0>(); }
  __device__ __forceinline__ void AddFetched(const float* fetched, int begin, int end, Rows& rows, int lane, int row,
                                             int count) const {
    Add(fetched, FetchedFloats(end - begin), row - begin, rows, lane, count);
  }

  // What a step leaves out: k and decay, and where u of the rows from `row` on goes.
  __device__ __forceinline__ void Keep(const RowInputs<kK, kRule, Stored>& in, int lane) const {
    float* const entry = first_ + pending_ * floats_;
    Rows::In::Store(in.k, lane, entry);
    if (lane == 0) entry[kK] = DecaysHeads(kRule) ? in.decay : 1.0f;
  }
  __device__ __forceinline__ float* Written(int row) const { return first_ + pending_ * floats_ + kK + 4 + row; }

 private:
  __device__ __forceinline__ void Add(const float* entry, int stride, int row, Rows& rows, int lane, int count) const {
#pragma unroll 1
    for (int32_t e = 0; e < pending_; ++e, entry += stride) {
      float k[Rows::In::kFloats];
      Rows::In::Load(entry, lane, true, k);
      const float decay = entry[kK];
#pragma unroll
      for (int n = 0; n < Rows::kRows; ++n) {
        if constexpr (DecaysHeads(kRule)) {
#pragma unroll
          for (float& value : rows.S[n]) value *= decay;
        }
        rows.Add(n, n < count ? entry[kK + 4 + row + n] : 0.0f, k);
      }
      rows.Round();
    }
  }

  int32_t floats_, pending_;
  float* first_;
};

}  // namespace palimpsest::cuda
