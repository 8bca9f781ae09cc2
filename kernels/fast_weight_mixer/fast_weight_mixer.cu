// Steps of a mixer in one launch. A block has one head of one sequence (fast_weight_mixer_config.h):
//   1. loads: the convolution's inputs first, since most of the rest waits for them; then rows of the state, which
//      arrive while 2 and 3 are at work
//   2. convolution and maps of q, k and v, to shared memory; the tail moves on
//   3. normalisation of q and k, by a warp each; beta and decay; what the norm multiplies by, weight and gate
//   4. rows of the state: decay, correction, write and read (fast_weight_registers.h)
//   5. the norm of what was read, a warp for each value head
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
};

// Some channels of a block's q, k and v, numbered from q on, in the hands of one thread.
template <int kK>
class MixerChannels {
 public:
  static constexpr int kChannels = MixerStepConfig::kChannels;

  // Channels `first`, `first` + blockDim.x and so on.
  __device__ __forceinline__ void Load(const MixerStepParams& p, int32_t slot, int first) {
#pragma unroll
    for (int n = 0; n < kChannels; ++n) {
      const int i = first + n * static_cast<int>(blockDim.x);
      if (i >= Count(p)) break;
      x_[n] = p.x[int64_t{blockIdx.x} * p.ldx + Column(p, i)];
      if (p.mixer.conv) conv_[n].Load(*p.mixer.conv, slot, Column(p, i));
    }
  }

  // Convolved and mapped, to `to`.
  __device__ __forceinline__ void Finish(const MixerStepParams& p, int32_t slot, int first, float* to) const {
#pragma unroll
    for (int n = 0; n < kChannels; ++n) {
      const int i = first + n * static_cast<int>(blockDim.x);
      if (i >= Count(p)) break;
      const float value = p.mixer.conv ? conv_[n].Finish(*p.mixer.conv, slot, Column(p, i), x_[n]) : x_[n];
      if (i < 2 * kK) {
        to[i] = Feature(i < kK ? p.mixer.query.map : p.mixer.key.map, value);
      } else {
        to[i] = p.mixer.value ? p.mixer.value->scale * Feature(p.mixer.value->map, value) : value;
      }
    }
  }

  static __device__ __forceinline__ int Count(const MixerStepParams& p) {
    return 2 * kK + p.config.value_heads * p.mixer.memory.shape.value_dim;
  }

 private:
  static __device__ __forceinline__ int Column(const MixerStepParams& p, int i) {
    const int head = static_cast<int>(blockIdx.y);
    if (i < kK) return p.q + head * kK + i;
    if (i < 2 * kK) return p.k + head * kK + i - kK;
    return p.v + head * (Count(p) - 2 * kK) + i - 2 * kK;
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

// Some rows of the state of one of the block's value heads, which a few lanes have.
struct MixerPiece {
  int value_head;  // of the block
  int row;
  int count;  // rows that there are

  __device__ __forceinline__ MixerPiece(const MixerStepConfig& config, int V, int piece)
      : value_head(piece / config.pieces_per_head),
        row(piece % config.pieces_per_head * FastWeightRowsConfig::kRowsPerThread),
        count(V - row) {
    if (value_head < config.value_heads) return;
    value_head = 0;
    count = 0;
  }
};

template <int kK, UpdateRule kRule, typename Stored, RowsForm kForm>
__global__ void __launch_bounds__(MixerStepConfig::kMostThreads, MixerStepConfig::kBlocks)
    FastWeightMixerStepKernel(MixerStepParams p) {
  constexpr bool kReplay = kForm == RowsForm::kReplayStep;
  using Rows = RowsInRegisters<kK, kRule, Stored>;
  using In = Spread<kK, Stored>;
  const MixerStepConfig& config = p.config;
  const FastWeightParams& memory = p.mixer.memory;
  const auto row = static_cast<int>(blockIdx.x);  // steps come first in a batch and have one row each
  const int32_t slot = memory.rows.slot[row];
  if (slot < 0) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int V = memory.shape.value_dim, values = config.value_heads * V;
  const int first_head = static_cast<int>(blockIdx.y) * config.value_heads;
  float* const q = Shared<float>();
  float* const k = q + config.k;
  float* const v = q + config.v;
  float* const read = q + config.read;
  float* const gain = q + config.gain;
  float* const beta = q + config.beta;
  float* const decay = q + config.decay;

  // 1.
  MixerChannels<kK> channels;
  channels.Load(p, slot, thread);
  const int state_lane = thread % In::kLanes, pieces_per_turn = static_cast<int>(blockDim.x) / In::kLanes;
  const auto state_of = [&](const MixerPiece& piece) {
    return memory.state.At<Stored>(slot) + int64_t{(first_head + piece.value_head) * V + piece.row} * kK;
  };
  MixerPiece piece(config, V, thread / In::kLanes);
  Rows rows;
  rows.Load(state_of(piece), state_lane, piece.count);

  // 2.
  for (int first = thread;;) {
    channels.Finish(p, slot, first, q);
    first += MixerStepConfig::kChannels * static_cast<int>(blockDim.x);
    if (first >= MixerChannels<kK>::Count(p)) break;
    channels.Load(p, slot, first);
  }
  __syncthreads();

  // 3.
  if (warp == 0) NormaliseFeatures<kK>(p.mixer.query.norm, p.mixer.query.scale, lane, q);
  if (warp == 1) NormaliseFeatures<kK>(p.mixer.key.norm, p.mixer.key.scale, lane, k);
#pragma unroll 1
  for (int i = static_cast<int>(blockDim.x) - 1 - thread; i < config.value_heads; i += static_cast<int>(blockDim.x)) {
    if constexpr (Corrects(kRule)) beta[i] = Beta(*p.mixer.gate, row, first_head + i);
    if constexpr (DecaysHeads(kRule)) decay[i] = DecayOf(LogDecay(*p.mixer.gate, row, first_head + i));
  }
  if (p.mixer.norm) {
    const RmsNormParams& norm = *p.mixer.norm;
#pragma unroll 1
    for (int i = thread; i < values; i += static_cast<int>(blockDim.x)) {
      gain[i] = norm.weight[i % V];
      if (norm.gate_activation != GateActivation::kNone) {
        gain[i] *= Activated(norm.gate_activation, norm.gate[row * norm.ldgate + first_head * V + i]);
      }
    }
  }
  __syncthreads();

  // 4.
  const int32_t pending = kReplay ? *memory.replay.pending.At<int32_t>(slot) : 0;
  const bool write = !kReplay || pending == memory.replay.interval - 1;
  for (int turn = 0;;) {
    const ReplayEntries<kK, kRule, Stored> entries(memory, slot, first_head + piece.value_head, pending);
    if constexpr (kReplay) entries.AddTo(rows, state_lane, piece.row, piece.count);
    RowInputs<kK, kRule, Stored> in;
    In::Load(k, state_lane, true, in.k);
    if constexpr (Corrects(kRule)) in.beta = beta[piece.value_head];
    if constexpr (DecaysHeads(kRule)) in.decay = decay[piece.value_head];
    float* written = nullptr;
    if constexpr (kReplay) {
      if (!write && piece.row == 0 && piece.count > 0) entries.Keep(in, state_lane);
      if (!write) written = entries.Written(piece.row);
    }
    const int column = piece.value_head * V + piece.row;
    rows.Write(in, state_lane, piece.count, v + column, written);
    __syncwarp();  // q is not loaded before k has left its registers
    In::Load(q, state_lane, true, in.q);
    rows.Read(in.q, state_lane, piece.count, read + column);
    if (write) rows.Store(state_lane, piece.count, state_of(piece));
    if (++turn == config.turns) break;
    piece = MixerPiece(config, V, turn * pieces_per_turn + thread / In::kLanes);
    rows.Load(state_of(piece), state_lane, piece.count);
  }
  __syncthreads();

  // 5.
  float* const out = p.mixer.norm ? p.mixer.norm->y + row * p.mixer.norm->ldy : memory.out + row * memory.ldout;
#pragma unroll 1
  for (int head = warp; head < config.value_heads; head += static_cast<int>(blockDim.x) / kWarp) {
    const int column = head * V;
    float factor = 1.0f;
    if (p.mixer.norm) {
      float squares = 0.0f;
      for (int i = lane; i < V; i += kWarp) squares = fmaf(read[column + i], read[column + i], squares);
      factor = RmsFactor(GroupSum<kWarp>(squares), V, p.mixer.norm->eps);
    }
#pragma unroll 1
    for (int i = lane; i < V; i += kWarp) {
      const float value = read[column + i];
      out[first_head * V + column + i] = p.mixer.norm ? value * factor * gain[column + i] : value;
    }
  }
}

}  // namespace

cudaError_t Run(const FastWeightMixerParams& mixer, const Target& target) {
  if (!HasFusedSteps(mixer, target.shared_bytes_per_block)) return cudaErrorInvalidValue;
  const FastWeightParams& memory = mixer.memory;
  const float* const values = mixer.value ? mixer.value->x : memory.v;
  const float* const first = mixer.conv ? mixer.conv->y : mixer.query.x;
  const MixerStepParams params{.mixer = mixer,
                               .config = ChooseMixerStepConfig(memory.shape),
                               .x = mixer.conv ? mixer.conv->x : mixer.query.x,
                               .ldx = mixer.conv ? mixer.conv->ldx : mixer.query.ldx,
                               .q = static_cast<int32_t>(mixer.query.x - first),
                               .k = static_cast<int32_t>(mixer.key.x - first),
                               .v = static_cast<int32_t>(values - first)};
  const Shape shape{.grid = dim3(static_cast<unsigned>(std::max(memory.rows.num_steps, 0)),
                                 static_cast<unsigned>(memory.shape.heads)),
                    .block = dim3(static_cast<unsigned>(params.config.threads)),
                    .shared_bytes = params.config.bytes};
  return WithRuleAndType(memory, [&]<UpdateRule kRule, typename Stored>() {
    if constexpr (DecaysChannels(kRule)) {
      return cudaErrorInvalidValue;
    } else {
      return WithKeyDim<16, 32, 64, 128, 256>(memory.shape.key_dim, [&]<int kK>() {
        return memory.replay.interval > 1
                   ? Launch(FastWeightMixerStepKernel<kK, kRule, Stored, RowsForm::kReplayStep>, shape, target, params)
                   : Launch(FastWeightMixerStepKernel<kK, kRule, Stored, RowsForm::kStep>, shape, target, params);
      });
    }
  });
}

}  // namespace palimpsest::cuda
