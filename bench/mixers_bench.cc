// Every mixer of 2102.11174, from projected q, k and v to its output: feature map, attention normalisation and fast
// weights, or softmax attention over a window. The shape is that of the paper's medium models: 16 layers of 8 heads
// of 32.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/round_up.h"
#include "bench/kernels_bench.h"
#include "kernels/attention_norm/attention_norm.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/fast_weight/fast_weight.h"
#include "kernels/feature_map/feature_map.h"
#include "kernels/window_attention/window_attention.h"

namespace palimpsest {
namespace {

constexpr int kLayers = 16;
constexpr int32_t kHeads = 8, kDim = 32;
constexpr int64_t kWidth = int64_t{kHeads} * kDim;

enum class Normaliser : uint8_t { kNone, kOutput, kKeys };

struct Mixer {
  const char* name;
  UpdateRule rule = UpdateRule::kSum;
  FeatureMapKind map = FeatureMapKind::kIdentity;
  int32_t rolls = 0;
  int32_t projections = 0;
  Normaliser normaliser = Normaliser::kNone;
  int32_t segment = 0;  // of window attention
  int32_t memory = 0;

  int32_t features() const { return FeatureCount(map, kDim, rolls, projections); }
  bool relative() const { return segment > 1; }
  // Floats of one sequence's state in one layer.
  int64_t state_floats() const {
    if (segment > 0) return 2 * kWidth * (segment + memory);
    return int64_t{kHeads} * features() * (kDim + (normaliser == Normaliser::kNone ? 0 : 1));
  }
};

constexpr FeatureMapKind kElu = FeatureMapKind::kElu1, kDpfp = FeatureMapKind::kDpfp, kFavor = FeatureMapKind::kFavor;
constexpr Mixer kMixers[] = {
    {"softmax_384", UpdateRule::kSum, FeatureMapKind::kIdentity, 0, 0, Normaliser::kNone, 1, 383},
    {"transformer_xl_384_384", UpdateRule::kSum, FeatureMapKind::kIdentity, 0, 0, Normaliser::kNone, 384, 384},
    {"sum_elu", UpdateRule::kSum, kElu, 0, 0, Normaliser::kOutput},
    {"sum_dpfp1", UpdateRule::kSum, kDpfp, 1, 0, Normaliser::kOutput},
    {"sum_dpfp2", UpdateRule::kSum, kDpfp, 2, 0, Normaliser::kOutput},
    {"sum_dpfp3", UpdateRule::kSum, kDpfp, 3, 0, Normaliser::kOutput},
    {"sum_favor64", UpdateRule::kSum, kFavor, 0, 64, Normaliser::kOutput},
    {"sum_favor128", UpdateRule::kSum, kFavor, 0, 128, Normaliser::kOutput},
    {"sum_favor512", UpdateRule::kSum, kFavor, 0, 512, Normaliser::kOutput},
    {"delta_elu", UpdateRule::kDelta, kElu},
    {"delta_dpfp1", UpdateRule::kDelta, kDpfp, 1},
    {"delta_dpfp2", UpdateRule::kDelta, kDpfp, 2},
    {"delta_dpfp3", UpdateRule::kDelta, kDpfp, 3},
    {"delta_favor64", UpdateRule::kDelta, kFavor, 0, 64},
    {"delta_elu_output_normalised", UpdateRule::kDelta, kElu, 0, 0, Normaliser::kOutput},
    {"delta_elu_keys_normalised", UpdateRule::kDelta, kElu, 0, 0, Normaliser::kKeys},
    {"delta_dpfp1_keys_normalised", UpdateRule::kDelta, kDpfp, 1, 0, Normaliser::kKeys},
};

// The ops, or their references.
struct Home {
  void (*feature_map)(const FeatureMapParams&, ThreadPool&);
  void (*attention_norm)(const AttentionNormParams&, ThreadPool&);
  void (*fast_weight)(const FastWeightParams&, ThreadPool&);
  void (*window_attention)(const WindowAttentionParams&, ThreadPool&);
};
constexpr Home kFast = {[](const FeatureMapParams& p, ThreadPool& pool) { FeatureMap({&pool}, p); },
                        [](const AttentionNormParams& p, ThreadPool& pool) { AttentionNorm({&pool}, p); },
                        [](const FastWeightParams& p, ThreadPool& pool) { FastWeight({&pool}, p); },
                        [](const WindowAttentionParams& p, ThreadPool& pool) { WindowAttention({&pool}, p); }};
constexpr Home kReference = {[](const FeatureMapParams& p, ThreadPool&) { FeatureMapReference(p); },
                             [](const AttentionNormParams& p, ThreadPool&) { AttentionNormReference(p); },
                             [](const FastWeightParams& p, ThreadPool&) { FastWeightReference(p); },
                             [](const WindowAttentionParams& p, ThreadPool&) { WindowAttentionReference(p); }};

// All layers of a model for `sequences` sequences of `length` rows.
class MixerModel {
 public:
  MixerModel(const Mixer& mixer, int32_t sequences, int32_t length)
      : mixer_(mixer),
        rows_(int64_t{sequences} * length),
        slot_bytes_(RoundUp(mixer.state_floats(), 16) * int64_t{sizeof(float)}),
        q_(Normal(rows_ * kWidth, 1)),
        k_(Normal(rows_ * kWidth, 2)),
        v_(Normal(rows_ * kWidth, 3)),
        beta_(rows_ * kHeads),
        projection_(Normal(int64_t{kDim} * mixer.projections, 4, 0.5f)),
        relative_(Normal(mixer.relative() ? kWidth * (mixer.segment + mixer.memory) : 0, 5)),
        bias_(Normal(kWidth, 6)),
        mapped_q_(rows_ * kHeads * mixer.features()),
        mapped_k_(rows_ * kHeads * mixer.features()),
        out_(rows_ * kWidth),
        states_(kLayers * sequences * slot_bytes_),
        first_position_(sequences, 5000) {
    for (int32_t s = 0; s < sequences; ++s) slot_.push_back(s);
    for (int32_t s = 0; s <= sequences; ++s) row_begin_.push_back(s * length);
  }

  void Verify(ThreadPool& pool) {
    Layer(0, pool, kFast);
    const std::vector<float> out(out_.data(), out_.data() + out_.size());
    std::memset(states_.data(), 0, states_.size());
    Layer(0, pool, kReference);
    for (size_t i = 0; i < out.size(); ++i) {
      PALIMPSEST_CHECK(std::abs(out[i] - out_[i]) < 1e-3 * (1.0f + std::abs(out_[i])));
    }
  }
  void Pass(ThreadPool& pool) {
    for (int layer = 0; layer < kLayers; ++layer) Layer(layer, pool, kFast);
  }

  int64_t rows() const { return rows_; }
  double state_bytes() const { return static_cast<double>(states_.size()); }

 private:
  void Layer(int layer, ThreadPool& pool, const Home& home) {
    const RaggedRows rows = {static_cast<int32_t>(slot_.size()), row_begin_.data(), slot_.data()};
    std::byte* const states = states_.data() + layer * std::ssize(slot_) * slot_bytes_;
    if (mixer_.segment > 0) {
      home.window_attention({.heads = kHeads,
                             .dim = kDim,
                             .capacity = mixer_.segment + mixer_.memory,
                             .segment = mixer_.segment,
                             .memory = mixer_.memory,
                             .scale = 0.2f,
                             .rows = rows,
                             .first_position = first_position_.data(),
                             .ring = {states, slot_bytes_},
                             .q = q_.data(),
                             .ldq = kWidth,
                             .k = k_.data(),
                             .ldk = kWidth,
                             .v = v_.data(),
                             .ldv = kWidth,
                             .content_bias = mixer_.relative() ? bias_.data() : nullptr,
                             .position_bias = mixer_.relative() ? bias_.data() : nullptr,
                             .relative = mixer_.relative() ? relative_.data() : nullptr,
                             .out = out_.data(),
                             .ldout = kWidth},
                            pool);
      return;
    }
    const int64_t ld = int64_t{kHeads} * mixer_.features();
    FeatureMapParams map{.rows = static_cast<int32_t>(rows_),
                         .heads = kHeads,
                         .dim = kDim,
                         .map = mixer_.map,
                         .rolls = mixer_.rolls,
                         .projections = mixer_.projections,
                         .projection = projection_.data(),
                         .norm = KeyNorm::kSum,
                         .x = q_.data(),
                         .ldx = kWidth,
                         .y = mapped_q_.data(),
                         .ldy = ld};
    home.feature_map(map, pool);
    map.x = k_.data();
    map.y = mapped_k_.data();
    home.feature_map(map, pool);
    std::fill_n(beta_.data(), beta_.size(), 0.5f);
    if (mixer_.normaliser != Normaliser::kNone) {
      home.attention_norm({.heads = kHeads,
                           .dim = mixer_.features(),
                           .rows = rows,
                           .z = {states + ld * kDim * int64_t{sizeof(float)}, slot_bytes_},
                           .normalise_keys = mixer_.normaliser == Normaliser::kKeys,
                           .scale = 0.2f,
                           .q = mapped_q_.data(),
                           .ldq = ld,
                           .k = mapped_k_.data(),
                           .ldk = ld,
                           .beta = beta_.data()},
                          pool);
    }
    home.fast_weight({.shape = {kHeads, kHeads, mixer_.features(), kDim},
                      .rule = mixer_.rule,
                      .rows = rows,
                      .state = {states, slot_bytes_},
                      .q = mapped_q_.data(),
                      .ldq = ld,
                      .k = mapped_k_.data(),
                      .ldk = ld,
                      .v = v_.data(),
                      .ldv = kWidth,
                      .beta = mixer_.rule == UpdateRule::kSum ? nullptr : beta_.data(),
                      .out = out_.data(),
                      .ldout = kWidth},
                     pool);
  }

  const Mixer& mixer_;
  const int64_t rows_, slot_bytes_;
  const std::vector<float> q_, k_, v_;
  AlignedArray<float> beta_;
  const std::vector<float> projection_, relative_, bias_;
  AlignedArray<float> mapped_q_, mapped_k_, out_;
  AlignedBytes states_;
  const std::vector<int64_t> first_position_;
  std::vector<int32_t> slot_, row_begin_;
};

// Multiply-adds, times two, of one token in one layer; the map is counted where it is a product.
double FlopsOf(const Mixer& mixer) {
  if (mixer.segment > 0) {
    const double seen = mixer.relative() ? mixer.memory + (mixer.segment + 1) / 2.0 : mixer.segment + mixer.memory;
    return kWidth * seen * (mixer.relative() ? 6.0 : 4.0);
  }
  const double E = mixer.features(), V = kDim;
  const double map = 4.0 * mixer.projections * kDim + 4.0 * (mixer.map == kDpfp ? E : 0.0);
  const double delta = mixer.rule == UpdateRule::kSum ? 0.0 : 2.0 * E * V;
  const double norm = mixer.normaliser == Normaliser::kNone ? 0.0 : 4.0 * E;
  return kHeads * (map + norm + 4.0 * E * V + delta);
}

void BenchMixer(benchmark::State& state, Machine& machine, const Mixer& mixer, int32_t sequences, int32_t length) {
  MixerModel model(mixer, sequences, length);
  model.Verify(machine.pool);
  model.Pass(machine.pool);  // the first touch of the states, which the system answers with zeroed pages
  for (auto _ : state) model.Pass(machine.pool);
  const double flops = FlopsOf(mixer) * kLayers * model.rows();
  // A window is read, and one row of it written; fast weights are read and written whole.
  const bool window = mixer.segment > 0;
  Count(state, machine.bounds, (window ? 1.0 : 2.0) * model.state_bytes(),
        window ? machine.bounds.read_bytes_per_second : machine.bounds.update_bytes_per_second, flops);
  state.counters["state_bytes"] = static_cast<double>(mixer.state_floats() * sizeof(float) * kLayers);
  state.counters["tokens_per_second"] =
      benchmark::Counter(static_cast<double>(model.rows()), benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace

void RegisterMixers(Machine& machine) {
  for (const Mixer& mixer : kMixers) {
    const auto add = [&](const char* kind, int32_t sequences, int32_t length) {
      benchmark::internal::Benchmark* const b =
          benchmark::RegisterBenchmark((std::string("mixer_") + kind + "/" + mixer.name).c_str(),
                                       [&machine, &mixer, sequences, length](benchmark::State& state) {
                                         BenchMixer(state, machine, mixer, sequences, length);
                                       });
      b->Unit(benchmark::kMillisecond);
      if (machine.pool.size() > 1) b->UseRealTime();
    };
    add("step_of_64", 64, 1);
    add("chunks_of_512", 1, 512);
  }
}

}  // namespace palimpsest
