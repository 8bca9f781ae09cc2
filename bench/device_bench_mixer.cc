// device_bench: a step from its projections to what the memory gives, fused and op by op.
#include <memory>

#include "bench/device_bench.h"
#include "kernels/cuda/ops.h"
#include "kernels/fast_weight_mixer/fast_weight_mixer.h"
#include "kernels/fast_weight_mixer/fast_weight_mixer_config.h"

namespace palimpsest {
namespace {

constexpr int32_t kConvWidth = 4;
constexpr double kExact = 1e-5;

struct MixerKind {
  const char* name;
  UpdateRule rule;
  FastWeightShape shape;
};
// As fla's models of 1.3 billion parameters have them, and the shape whose times are published most.
constexpr MixerKind kKinds[] = {{"delta_net", UpdateRule::kDelta, {16, 16, 128, 128}},
                                {"gated_deltanet", UpdateRule::kGatedDelta, {6, 6, 256, 512}},
                                {"gdn_16_32", UpdateRule::kGatedDelta, {16, 32, 128, 128}}};
constexpr MixerKind kTinyKinds[] = {{"delta_net", UpdateRule::kDelta, {2, 2, 64, 64}},
                                    {"gated_deltanet", UpdateRule::kGatedDelta, {1, 2, 32, 72}}};

// One step of `batch` sequences, and states and tails for `sets` times as many. All else is one layer's, which a step
// finds in the cache.
class MixerStep {
 public:
  // The host has what it needs to verify one set, or nothing.
  MixerStep(Device& device, const MixerKind& kind, int32_t batch, int sets, bool on_host)
      : device_(device), kind_(kind), batch_(batch), sets_(sets) {
    const int32_t heads = kind.shape.value_heads;
    projected_ = NormalOnDevice(device, batch * ld(), 1, 1.0f, on_host);
    mapped_ = {device, std::vector<float>(batch * channels(), NAN)};
    beta_ = {device, std::vector<float>(int64_t{batch} * heads, NAN)};
    log_decay_ = {device, std::vector<float>(int64_t{batch} * heads, NAN)};
    read_ = {device, std::vector<float>(batch * values(), NAN)};
    taps_ = {device, SomeNormal(kConvWidth * channels(), 2, 0.5f)};
    norm_ = {device, SomeNormal(kind.shape.value_dim, 3)};
    a_log_ = {device, SomeNormal(heads, 4)};
    dt_bias_ = {device, SomeNormal(heads, 5)};
    std::vector<int32_t> row_begin, slot;
    for (int32_t s = 0; s <= batch; ++s) row_begin.push_back(s);
    for (int32_t s = 0; s < sets * batch; ++s) slot.push_back(s);
    row_begin_ = {device, std::move(row_begin)};
    slot_ = {device, std::move(slot)};
    std::vector<float> first = SomeNormal((on_host ? batch : 1) * slot_floats(), 6);
    if (on_host) first_states_ = first;
    states_ = {device, std::move(first), sets * batch * slot_floats()};
  }

  cudaError_t Run(int set, bool fused, const cuda::Target& target) {
    const FastWeightMixerParams mixer = Params(true, set % sets_);
    if (fused) return cuda::Run(mixer, target);
    cudaError_t error = cudaSuccess;
    ForEachOp(mixer, [&](const auto& op) {
      if (error == cudaSuccess) error = cuda::Run(op, target);
    });
    return error;
  }

  // The first set, once, against the processor.
  std::vector<Difference> Verify(DeviceTimer& timer, bool fused, ThreadPool& pool) {
    CheckCuda(Run(0, fused, timer.target()), "FastWeightMixer");
    timer.Synchronize();
    std::vector<float> states(first_states_.size());
    device_.CopyToHost(states.data(), states_.device(), static_cast<int64_t>(states.size()) * 4);
    timer.Synchronize();
    FastWeightMixer({.pool = &pool}, Params(false, 0));
    return {Compare("FastWeightMixer's output", read_.Read(), std::span(read_.host(), read_.size()), kExact),
            Compare("FastWeightMixer's state", states, first_states_, kExact)};
  }

  // State and tail read and written, projections and weights read, outputs written.
  double bytes() const {
    const double layer = static_cast<double>(taps_.size() + norm_.size() + a_log_.size() + dt_bias_.size());
    const double row = static_cast<double>(2 * slot_floats() + ld() + values());
    return 4.0 * (row * batch_ + layer);
  }
  int32_t launches(bool fused) {
    if (fused) return ChooseMixerStepConfig(kind_.shape).parts == 1 ? 1 : 2;
    int32_t count = 0;
    ForEachOp(Params(true, 0), [&](const auto&) { ++count; });
    return count;
  }
  static int64_t slot_floats(const FastWeightShape& shape) {
    return shape.state_floats() + (kConvWidth - 1) * channels(shape);
  }

 private:
  static int64_t channels(const FastWeightShape& shape) {
    return int64_t{2} * shape.heads * shape.key_dim + int64_t{shape.value_heads} * shape.value_dim;
  }
  int64_t channels() const { return channels(kind_.shape); }
  int64_t keys() const { return int64_t{kind_.shape.heads} * kind_.shape.key_dim; }
  int64_t values() const { return int64_t{kind_.shape.value_heads} * kind_.shape.value_dim; }
  int64_t ld() const { return channels() + values() + 2 * kind_.shape.value_heads; }  // q | k | v | gate | b | a
  int64_t slot_floats() const { return slot_floats(kind_.shape); }

  FastWeightMixerParams Params(bool on_device, int set) {
    const auto side = [&](auto& array) { return on_device ? array.device() : array.host(); };
    const FastWeightShape& shape = kind_.shape;
    const bool gated = kind_.rule == UpdateRule::kGatedDelta;
    const RaggedRows rows = {batch_, side(row_begin_), side(slot_) + set * batch_, batch_};
    float* const states = on_device ? states_.device() : first_states_.data();
    const auto piece = [&](int64_t at) {
      return StatePiece{reinterpret_cast<std::byte*>(states + at), slot_floats() * 4};
    };
    const float* const projected = side(projected_);
    float* const mapped = side(mapped_);
    FastWeightMixerParams mixer;
    mixer.conv = {.rows = rows,
                  .channels = static_cast<int32_t>(channels()),
                  .width = kConvWidth,
                  .weight = side(taps_),
                  .tail = piece(shape.state_floats()),
                  .x = projected,
                  .ldx = ld(),
                  .y = mapped,
                  .ldy = channels()};
    mixer.query = {.rows = batch_,
                   .heads = shape.heads,
                   .dim = shape.key_dim,
                   .norm = KeyNorm::kL2,
                   .scale = 1.0f / std::sqrt(static_cast<float>(shape.key_dim)),
                   .x = mapped,
                   .ldx = channels(),
                   .y = mapped,
                   .ldy = channels()};
    mixer.key = mixer.query;
    mixer.key.scale = 1.0f;
    mixer.key.x = mixer.key.y = mapped + keys();
    const float* const b = projected + channels() + values();
    mixer.gate = {.rows = batch_, .heads = shape.value_heads, .b = b, .ldb = ld(), .beta = side(beta_)};
    if (gated) {
      mixer.gate->a = b + shape.value_heads;
      mixer.gate->lda = ld();
      mixer.gate->a_log = side(a_log_);
      mixer.gate->dt_bias = side(dt_bias_);
      mixer.gate->log_decay = side(log_decay_);
    }
    mixer.memory = {.shape = shape,
                    .rule = kind_.rule,
                    .rows = rows,
                    .state = piece(0),
                    .q = mapped,
                    .ldq = channels(),
                    .k = mapped + keys(),
                    .ldk = channels(),
                    .v = mapped + 2 * keys(),
                    .ldv = channels(),
                    .beta = side(beta_),
                    .log_decay = gated ? side(log_decay_) : nullptr,
                    .out = side(read_),
                    .ldout = values()};
    mixer.norm = {.rows = batch_,
                  .groups = shape.value_heads,
                  .dim = shape.value_dim,
                  .x = side(read_),
                  .ldx = values(),
                  .weight = side(norm_),
                  .gate_activation = GateActivation::kSilu,
                  .gate = projected + channels(),
                  .ldgate = ld(),
                  .y = side(read_),
                  .ldy = values()};
    return mixer;
  }

  Device& device_;
  const MixerKind kind_;
  const int32_t batch_;
  const int sets_;
  Mirrored<float> projected_, mapped_, beta_, log_decay_, read_, taps_, norm_, a_log_, dt_bias_;
  Mirrored<int32_t> row_begin_, slot_;
  Mirrored<float> states_;           // of all sets: fast weights, then the convolution's tail
  std::vector<float> first_states_;  // of the first, on the host
};

}  // namespace

void DeviceBench::Mixers() {
  const bool tiny = timer_.tiny();
  constexpr int32_t kVerified = 8;
  for (const MixerKind& kind : tiny ? std::span<const MixerKind>(kTinyKinds) : std::span<const MixerKind>(kKinds)) {
    for (const int32_t batch : tiny ? std::vector{1, 3} : std::vector{1, 8, 64, 256, 512}) {
      for (const bool fused : {true, false}) {
        const char* const form = fused ? "fused" : "op_by_op";
        const std::string name = std::string("mixer/") + kind.name + "/" + form + "/batch/" + std::to_string(batch);
        if (!Wants(name)) continue;
        Expect(name, MixerStep(device(), kind, std::min(batch, kVerified), 1, true).Verify(timer_, fused, pool_));
        const double set_bytes = 8.0 * static_cast<double>(MixerStep::slot_floats(kind.shape)) * batch;
        MixerStep step(device(), kind, batch, timer_.Sets(set_bytes), false);
        Add(name,
            {{"group", "mixer"},
             {"model", kind.name},
             {"form", form},
             {"batch", batch},
             {"kernels", step.launches(fused)}},
            {step.bytes(), 7.0 * static_cast<double>(kind.shape.state_floats()) * batch},
            timer_.Time([&](int i) { return step.Run(i, fused, timer_.target()); }));
      }
    }
  }
}

}  // namespace palimpsest
