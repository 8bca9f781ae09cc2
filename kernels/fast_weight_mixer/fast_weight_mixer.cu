// Steps of a mixer. A block has one head of one sequence, or a part of it (fast_weight_mixer_config.h):
//   1. loads: the convolution's inputs first, since most of the rest waits for them; then rows of the state, which
//      arrive while 2 and 3 are at work
//   2. convolution and maps of q, k and v, to shared memory; the tail moves on
//   3. normalisation of q and k, by a warp each; beta and decay; what the norm multiplies by: weight and gate
//   4. rows of the state: decay, correction, write and read (fast_weight_registers.h)
//   5. the norm of what was read, a warp for each value head
// Of a head in parts, the tail of q and k moves on, and 5 happens, when all of them are done: in a launch of its own.
#include "kernels/cuda/group.h"
#include "kernels/cuda/ops.h"
#include "kernels/fast_weight/fast_weight_dispatch.h"
#include "kernels/fast_weight/fast_weight_registers.h"
#include "kernels/fast_weight_mixer/fast_weight_mixer.h"
#include "kernels/fast_weight_mixer/fast_weight_mixer_config.h"
#include "kernels/feature_map/feature_map_values.h"
#include "kernels/gate/gate_values.h"
#include "kernels/norm/norm_values.h"
#include "kernels/short_conv/short_conv_values.h"

namespace palimpsest::cuda {
namespace {

struct MixerStepParams {
  FastWeightMixerParams mixer;
  MixerStepConfig config;
  // Where q, k and v begin in a row of x, which a convolution's channels number.
  const float* x = nullptr;
  int64_t ldx = 0;
  int32_t q = 0, k = 0, v = 0;
  // Where in shared memory the replay form's entries go; -1: they are read from where they are.
  int32_t entries = -1;
};

// What a block has of its head.
struct MixerPart {
  int head;
  int first_piece;
  int pieces;
  // Which values of the head, whose value heads have them one after the other.
  int begin;
  int values;

  __device__ __forceinline__ explicit MixerPart(const MixerStepParams& p)
      : head(static_cast<int>(blockIdx.y)), first_piece(static_cast<int>(blockIdx.z) * p.config.pieces) {
    const int left = p.config.value_heads * p.config.pieces_per_head.divisor - first_piece;
    const bool last = left <= p.config.pieces;
    pieces = last ? left : p.config.pieces;
    begin = Column(p, first_piece);
    values = (last ? Values(p) : Column(p, first_piece + pieces)) - begin;
  }

  static __device__ __forceinline__ int Values(const MixerStepParams& p) {
    return p.config.value_heads * p.mixer.memory.shape.value_dim;
  }
  static __device__ __forceinline__ int Column(const MixerStepParams& p, int piece) {
    const int value_head = p.config.pieces_per_head.Quotient(piece);
    return value_head * p.mixer.memory.shape.value_dim +
           (piece - value_head * p.config.pieces_per_head.divisor) * MixerStepConfig::kPieceRows;
  }
};

// The replay form's entries that a block has in shared memory: of some of the head's value heads, one after the other,
// with rows [begin, end) of each.
struct MixerEntries {
  int first_head;
  int heads;
  int begin;
  int end;

  __device__ __forceinline__ MixerEntries(const MixerStepParams& p, const MixerPart& part) {
    const bool one = p.config.value_heads == 1;
    const KnownDivisor& per_head = p.config.pieces_per_head;
    first_head = one ? 0 : per_head.Quotient(part.first_piece);
    heads = one ? 1 : per_head.Quotient(part.first_piece + part.pieces - 1) - first_head + 1;
    begin = one ? part.begin : 0;
    end = one ? part.begin + part.values : p.mixer.memory.shape.value_dim;
  }

  static int64_t Bytes(const MixerStepParams& p) {
    const MixerStepConfig& config = p.config;
    const int32_t per_head = config.pieces_per_head.divisor;
    if (config.value_heads == 1) {
      return FetchedEntriesBytes(p.mixer.memory, config.pieces * MixerStepConfig::kPieceRows);
    }
    // A block may begin and end in the middle of a head.
    const int32_t touched =
        config.pieces % per_head == 0 ? config.pieces / per_head : (config.pieces - 1) / per_head + 2;
    const int32_t heads = touched < config.value_heads ? touched : config.value_heads;
    return heads * FetchedEntriesBytes(p.mixer.memory, p.mixer.memory.shape.value_dim);
  }

  template <typename Entries>
  __device__ __forceinline__ float* At(const MixerStepParams& p, int value_head) const {
    const int entries = p.mixer.memory.replay.interval - 1;
    return Shared<float>() + p.entries + (value_head - first_head) * entries * Entries::FetchedFloats(end - begin);
  }
};

// Channel i of a head's q and k, numbered from q on: where in a row of x it is.
template <int kK>
__device__ __forceinline__ int KeyColumn(const MixerStepParams& p, int head, int i) {
  return (i < kK ? p.q : p.k - kK) + head * kK + i;
}

// Some channels of a block's q, k and v, numbered from q on, in the hands of one thread.
template <int kK>
class MixerChannels {
 public:
  static constexpr int kChannels = MixerStepConfig::kChannels;

  // Channels `first`, `first` + blockDim.x and so on.
  __device__ __forceinline__ void Load(const MixerStepParams& p, const MixerPart& part, int32_t slot, int first) {
#pragma unroll
    for (int n = 0; n < kChannels; ++n) {
      const int i = first + n * static_cast<int>(blockDim.x);
      if (i >= Count(part)) break;
      x_[n] = p.x[int64_t{blockIdx.x} * p.ldx + Column(p, part, i)];
      if (p.mixer.conv) conv_[n].Load(*p.mixer.conv, slot, Column(p, part, i));
    }
  }

  // Convolved and mapped, to `to`.
  __device__ __forceinline__ void Finish(const MixerStepParams& p, const MixerPart& part, int32_t slot, int first,
                                         float* to) const {
#pragma unroll
    for (int n = 0; n < kChannels; ++n) {
      const int i = first + n * static_cast<int>(blockDim.x);
      if (i >= Count(part)) break;
      const bool of_keys = i < 2 * kK, moves_tail = !of_keys || p.config.parts == 1;
      float value = x_[n];
      if (p.mixer.conv) value = conv_[n].Finish(*p.mixer.conv, slot, Column(p, part, i), value, moves_tail);
      if (of_keys) {
        to[i] = Feature(i < kK ? p.mixer.query.map : p.mixer.key.map, value);
      } else {
        to[i] = p.mixer.value ? p.mixer.value->scale * Feature(p.mixer.value->map, value) : value;
      }
    }
  }

  static __device__ __forceinline__ int Count(const MixerPart& part) { return 2 * kK + part.values; }

 private:
  static __device__ __forceinline__ int Column(const MixerStepParams& p, const MixerPart& part, int i) {
    if (i < 2 * kK) return KeyColumn<kK>(p, part.head, i);
    return p.v + part.head * MixerPart::Values(p) + part.begin + i - 2 * kK;
  }

  float x_[kChannels];
  ShortConvStep conv_[kChannels];
};

// A head's features, normalised and scaled in place by one warp.
template <int kK>
__device__ __forceinline__ void NormaliseFeatures(KeyNorm norm, float scale, int lane, float* features) {
  float sum = 0.0f;
  for (int i = lane; i < kK; i += kWarp) sum = AddFeature(norm, features[i], sum);
  const float factor = FeatureFactor(norm, scale, GroupSum<kWarp>(sum));
  for (int i = lane; i < kK; i += kWarp) features[i] *= factor;
}

// What the norm multiplies a normalised value by; `column` is its place in the row.
__device__ __forceinline__ float NormGain(const RmsNormParams& norm, int row, int column, int i) {
  const float weight = norm.weight[i];
  if (norm.gate_activation == GateActivation::kNone) return weight;
  return weight * Activated(norm.gate_activation, norm.gate[row * norm.ldgate + column + i]);
}

// The factor of a value head, given by one warp's lanes.
__device__ __forceinline__ float NormFactor(const RmsNormParams& norm, int lane, const float* read) {
  float squares = 0.0f;
  for (int i = lane; i < norm.dim; i += kWarp) squares = fmaf(read[i], read[i], squares);
  return RmsFactor(GroupSum<kWarp>(squares), norm.dim, norm.eps);
}

template <int kK, UpdateRule kRule, typename Stored, RowsForm kForm>
__global__ void __launch_bounds__(MixerStepConfig::kMostThreads, MixerStepConfig::kBlocks)
    FastWeightMixerStepKernel(MixerStepParams p) {
  AfterPrevious();
  constexpr bool kReplay = kForm == RowsForm::kReplayStep;
  using Rows = RowsInRegisters<kK, kRule, Stored>;
  using In = Spread<kK, Stored>;
  const MixerStepConfig& config = p.config;
  const FastWeightParams& memory = p.mixer.memory;
  const auto row = static_cast<int>(blockIdx.x);  // steps come first in a batch and have one row each
  const int32_t slot = memory.rows.slot[row];
  if (slot < 0) return;
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int warp = thread / kWarp, lane = thread % kWarp, V = memory.shape.value_dim;
  const MixerPart part(p);
  const int values = part.values, first_head = part.head * config.value_heads;
  float* const q = Shared<float>();
  float* const k = q + config.k;
  float* const v = q + config.v;
  float* const read = q + config.read;
  float* const gain = q + config.gain;

  // 1.
  const int32_t pending = kReplay ? *memory.replay.pending.At<int32_t>(slot) : 0;
  MixerChannels<kK> channels;
  channels.Load(p, part, slot, thread);
  const int state_lane = thread % In::kLanes;
  const bool has_piece = thread / In::kLanes < part.pieces;
  const int piece = part.first_piece + (has_piece ? thread / In::kLanes : 0);
  const int value_head = config.pieces_per_head.Quotient(piece), head = first_head + value_head;
  const int first = (piece - value_head * config.pieces_per_head.divisor) * MixerStepConfig::kPieceRows;
  const int count = has_piece ? V - first : 0;  // rows that there are, if less than a piece's
  Stored* const state = memory.state.At<Stored>(slot) + int64_t{head * V + first} * kK;
  Rows rows;
  rows.Load(state, state_lane, count);
  using Entries = ReplayEntries<kK, kRule, Stored>;
  const MixerEntries fetched(p, part);
  if (kReplay && p.entries >= 0) {
#pragma unroll 1
    for (int h = fetched.first_head; h < fetched.first_head + fetched.heads; ++h) {
      Entries(memory, slot, first_head + h, pending).Fetch(fetched.begin, fetched.end, fetched.At<Entries>(p, h));
    }
  }

  // 2.
  for (int i = thread;;) {
    channels.Finish(p, part, slot, i, q);
    i += MixerStepConfig::kChannels * threads;
    if (i >= MixerChannels<kK>::Count(part)) break;
    channels.Load(p, part, slot, i);
  }
  __syncthreads();

  // 3.
#pragma unroll 1
  for (int i = warp; i < 2; i += threads / kWarp) {
    NormaliseFeatures<kK>(i == 0 ? p.mixer.query.norm : p.mixer.key.norm,
                          i == 0 ? p.mixer.query.scale : p.mixer.key.scale, lane, i == 0 ? q : k);
  }
  RowInputs<kK, kRule, Stored> in;
  if constexpr (Corrects(kRule)) in.beta = Beta(*p.mixer.gate, row, head);
  if constexpr (DecaysHeads(kRule)) in.decay = DecayOf(SoftplusLogDecay(*p.mixer.gate, row, head));
  const bool normalises = p.mixer.norm && config.parts == 1;
  if (normalises) {
#pragma unroll 1
    for (int i = thread; i < values; i += threads) {
      gain[i] = NormGain(*p.mixer.norm, row, first_head * V + i / V * V, i % V);
    }
  }
  if (kReplay) Entries::WaitForFetched();
  __syncthreads();

  // 4.
  const Entries entries(memory, slot, head, pending);
  if constexpr (kReplay) {
    if (p.entries >= 0) {
      entries.AddFetched(fetched.At<Entries>(p, value_head), fetched.begin, fetched.end, rows, state_lane, first,
                         count);
    } else {
      entries.AddTo(rows, state_lane, first, count);
    }
  }
  const bool write = !kReplay || pending == memory.replay.interval - 1;
  In::Load(k, state_lane, true, in.k);
  float* written = nullptr;
  if constexpr (kReplay) {
    if (!write && first == 0 && has_piece) entries.Keep(in, state_lane);
    if (!write) written = entries.Written(first);
  }
  const int column = (head - first_head) * V + first - part.begin;
  rows.Write(in, state_lane, count, v + column, written);
  __syncwarp();  // q is not loaded before k has left its registers
  In::Load(q, state_lane, true, in.q);
  rows.Read(in.q, state_lane, count, read + column);
  if (write) rows.Store(state_lane, count, state);
  __syncthreads();

  // 5.
  if (!normalises) {
    float* const out = memory.out + row * memory.ldout + first_head * V + part.begin;
    for (int i = thread; i < values; i += threads) out[i] = read[i];
    return;
  }
  float* const out = p.mixer.norm->y + row * p.mixer.norm->ldy + first_head * V;
#pragma unroll 1
  for (int begin = warp * V; begin < values; begin += threads / kWarp * V) {
    const float factor = NormFactor(*p.mixer.norm, lane, read + begin);
#pragma unroll 1
    for (int i = begin + lane; i < begin + V; i += kWarp) out[i] = read[i] * factor * gain[i];
  }
}

constexpr int kFinishThreads = 256;

// What is left to do when all parts of a head are done: the norm, and the tail of q and k.
template <int kK>
__global__ void __launch_bounds__(kFinishThreads) FastWeightMixerFinishKernel(MixerStepParams p) {
  AfterPrevious();
  const auto row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const auto thread = static_cast<int>(threadIdx.x);
  const FastWeightParams& memory = p.mixer.memory;
  const int32_t slot = memory.rows.slot[row];
  if (slot < 0) return;
  if (p.mixer.conv) {
    for (int i = thread; i < 2 * kK; i += kFinishThreads) {
      const int column = KeyColumn<kK>(p, head, i);
      MoveTail(*p.mixer.conv, slot, column, p.x[row * p.ldx + column]);
    }
  }
  if (!p.mixer.norm) return;
  const RmsNormParams& norm = *p.mixer.norm;
  for (int h = thread / kWarp; h < p.config.value_heads; h += kFinishThreads / kWarp) {
    const int lane = thread % kWarp, column = (head * p.config.value_heads + h) * norm.dim;
    const float* const read = memory.out + row * memory.ldout + column;
    float* const out = norm.y + row * norm.ldy + column;
    const float factor = NormFactor(norm, lane, read);
    for (int i = lane; i < norm.dim; i += kWarp) out[i] = read[i] * factor * NormGain(norm, row, column, i);
  }
}

}  // namespace

cudaError_t Run(const FastWeightMixerParams& mixer, const Target& target) {
  if (!HasFusedSteps(mixer)) return cudaErrorInvalidValue;
  const FastWeightParams& memory = mixer.memory;
  const float* const values = mixer.value ? mixer.value->x : memory.v;
  const float* const first = mixer.conv ? mixer.conv->y : mixer.query.x;
  MixerStepParams params{.mixer = mixer,
                         .config = ChooseMixerStepConfig(memory.shape),
                         .x = mixer.conv ? mixer.conv->x : mixer.query.x,
                         .ldx = mixer.conv ? mixer.conv->ldx : mixer.query.ldx,
                         .q = static_cast<int32_t>(mixer.query.x - first),
                         .k = static_cast<int32_t>(mixer.key.x - first),
                         .v = static_cast<int32_t>(values - first)};
  const auto steps = static_cast<unsigned>(std::max(memory.rows.num_steps, 0));
  const auto heads = static_cast<unsigned>(memory.shape.heads);
  int64_t bytes = params.config.bytes;
  if (memory.replay.interval > 1 && MixerEntries::Bytes(params) <= kMostFetchedBytes) {
    params.entries = static_cast<int32_t>(bytes / int64_t{sizeof(float)});
    bytes += MixerEntries::Bytes(params);
  }
  const Shape step{.grid = dim3(steps, heads, static_cast<unsigned>(params.config.parts)),
                   .block = dim3(static_cast<unsigned>(params.config.threads)),
                   .shared_bytes = bytes};
  const Shape finish{.grid = dim3(steps, heads), .block = dim3(kFinishThreads)};
  return WithRuleAndType(memory, [&]<UpdateRule kRule, typename Stored>() {
    if constexpr (DecaysChannels(kRule)) {
      return cudaErrorInvalidValue;
    } else {
      return WithKeyDim<16, 32, 64, 128, 256>(memory.shape.key_dim, [&]<int kK>() {
        const cudaError_t error =
            memory.replay.interval > 1
                ? Launch(FastWeightMixerStepKernel<kK, kRule, Stored, RowsForm::kReplayStep>, step, target, params)
                : Launch(FastWeightMixerStepKernel<kK, kRule, Stored, RowsForm::kStep>, step, target, params);
        const bool finished = params.config.parts == 1 || (!mixer.conv && !mixer.norm);
        if (error != cudaSuccess || finished) return error;
        return Launch(FastWeightMixerFinishKernel<kK>, finish, target, params);
      });
    }
  });
}

}  // namespace palimpsest::cuda
