// device_bench: the fast-weight memory, step and chunks.
#include <memory>

#include "bench/device_bench.h"
#include "kernels/cuda/ops.h"
#include "kernels/fast_weight/fast_weight.h"

namespace palimpsest {
namespace {

struct Rule {
  const char* name;
  UpdateRule rule;
};
constexpr Rule kRules[] = {
    {"sum", UpdateRule::kSum}, {"delta", UpdateRule::kDelta}, {"gated_delta", UpdateRule::kGatedDelta}};

// `sequences` sequences of `length` rows each, and states for `sets` times as many, written at every `interval`-th
// step.
class Memory {
 public:
  Memory(Device& device, FastWeightShape shape, UpdateRule rule, int32_t sequences, int32_t length, int sets,
         int32_t interval = 1)
      : device_(device),
        shape_(shape),
        rule_(rule),
        sequences_(sequences),
        length_(length),
        sets_(sets),
        interval_(interval) {
    const int64_t rows = int64_t{sequences} * length;
    // Keys of length about one.
    const float unit = 1.0f / std::sqrt(static_cast<float>(shape.key_dim));
    q_ = {device, SomeNormal(rows * shape.heads * shape.key_dim, 1, unit)};
    k_ = {device, SomeNormal(rows * shape.heads * shape.key_dim, 2, unit)};
    v_ = {device, SomeNormal(rows * shape.value_heads * shape.value_dim, 3)};
    beta_ = {device, std::vector<float>(rows * shape.value_heads, 0.5f)};
    log_decay_ = {device, std::vector<float>(rows * shape.value_heads, -0.05f)};
    out_ = {device, std::vector<float>(rows * shape.value_heads * shape.value_dim, NAN)};
    std::vector<int32_t> row_begin, slot;
    for (int32_t s = 0; s <= sequences; ++s) row_begin.push_back(s * length);
    for (int32_t s = 0; s < sets * sequences; ++s) slot.push_back(s);
    row_begin_ = {device, std::move(row_begin)};
    slot_ = {device, std::move(slot)};
    states_ = AlignedArray<float>(set_floats() * sets, &device);
    PALIMPSEST_CHECK(states_.data() != nullptr);
    if (interval > 1) {
      kept_ = AlignedBytes(kept_bytes() * sets * sequences, &device);
      PALIMPSEST_CHECK(kept_.data() != nullptr);
      device.FillWithZeros(kept_.data(), kept_.size());
    }
    first_states_ = SomeNormal(set_floats(), 4);
    for (int set = 0; set < sets; ++set) {
      device.CopyToDevice(states_.data() + set * set_floats(), first_states_.data(), set_floats() * 4);
    }
    PALIMPSEST_CHECK(device.Synchronize().ok());
  }

  FastWeightParams OnDevice(int set) {
    FastWeightParams p = Params(q_.device(), k_.device(), v_.device(), beta_.device(), log_decay_.device());
    p.rows = {sequences_, row_begin_.device(), slot_.device() + set % sets_ * sequences_,
              length_ == 1 ? sequences_ : 0};
    p.state = {reinterpret_cast<std::byte*>(states_.data()), shape_.state_floats() * 4};
    p.out = out_.device();
    if (interval_ > 1) {
      p.replay = {.interval = interval_,
                  .written = {kept_.data() + kPendingBytes, kept_bytes()},
                  .pending = {kept_.data(), kept_bytes()}};
    }
    return p;
  }

  // A step as a model takes it: what is kept is counted after it.
  cudaError_t Step(int set, const cuda::Target& target) {
    const FastWeightParams p = OnDevice(set);
    const cudaError_t error = cuda::Run(p, target);
    if (error != cudaSuccess || interval_ == 1) return error;
    return cuda::Run(AdvanceReplayParams{.rows = p.rows, .interval = interval_, .pending = p.replay.pending}, target);
  }

  // The first set, once, against the reference.
  void Verify(DeviceTimer& timer, bool round_products, double tolerance) {
    FastWeightParams p = OnDevice(0);
    p.round_products = round_products;
    CheckCuda(cuda::Run(p, timer.target()), "FastWeight");
    if (interval_ > 1) {
      AdvanceReplayParams advance{.rows = p.rows, .interval = interval_, .pending = p.replay.pending};
      CheckCuda(cuda::Run(advance, timer.target()), "AdvanceReplay");
      const FlushReplayParams flush{
          .shape = shape_, .rule = rule_, .rows = p.rows, .state = p.state, .replay = p.replay};
      CheckCuda(cuda::Run(flush, timer.target()), "FlushReplay");
      advance.rows.num_steps = 0;
      CheckCuda(cuda::Run(advance, timer.target()), "AdvanceReplay");
    }
    timer.Synchronize();
    std::vector<float> states(first_states_.size());
    device_.CopyToHost(states.data(), states_.data(), static_cast<int64_t>(states.size()) * 4);
    timer.Synchronize();

    FastWeightParams truth = Params(q_.host(), k_.host(), v_.host(), beta_.host(), log_decay_.host());
    truth.rows = {sequences_, row_begin_.host(), slot_.host(), length_ == 1 ? sequences_ : 0};
    truth.state = {reinterpret_cast<std::byte*>(first_states_.data()), shape_.state_floats() * 4};
    truth.out = out_.host();
    FastWeightReference(truth);
    CheckNear("FastWeight's output", out_.Read(), std::span(out_.host(), out_.size()), tolerance);
    CheckNear("FastWeight's state", states, first_states_, tolerance);
  }

  // Of one set: state read and written, rows read, outputs written. What is kept instead of the state is not counted.
  double bytes() const {
    return 4.0 * ((1.0 + 1.0 / interval_) * static_cast<double>(set_floats()) +
                  static_cast<double>(q_.size() + k_.size() + v_.size()) + static_cast<double>(out_.size()));
  }

 private:
  static constexpr int64_t kPendingBytes = 64;

  int64_t set_floats() const { return shape_.state_floats() * sequences_; }
  // Of one sequence.
  int64_t kept_bytes() const {
    const int64_t floats = shape_.value_heads * (interval_ - 1) * FastWeightReplay::entry_floats(shape_);
    return kPendingBytes + (floats * 4 + 63) / 64 * 64;
  }

  FastWeightParams Params(const float* q, const float* k, const float* v, const float* beta,
                          const float* log_decay) const {
    const int64_t keys = int64_t{shape_.heads} * shape_.key_dim,
                  values = int64_t{shape_.value_heads} * shape_.value_dim;
    FastWeightParams p;
    p.shape = shape_;
    p.rule = rule_;
    p.q = q;
    p.ldq = keys;
    p.k = k;
    p.ldk = keys;
    p.v = v;
    p.ldv = values;
    p.beta = rule_ == UpdateRule::kSum ? nullptr : beta;
    p.log_decay = rule_ == UpdateRule::kGatedDelta ? log_decay : nullptr;
    p.ldout = values;
    return p;
  }

  Device& device_;
  const FastWeightShape shape_;
  const UpdateRule rule_;
  const int32_t sequences_, length_;
  const int sets_;
  const int32_t interval_;
  Mirrored<float> q_, k_, v_, beta_, log_decay_, out_;
  Mirrored<int32_t> row_begin_, slot_;
  AlignedArray<float> states_;  // of all sets, on the device
  AlignedBytes kept_;           // beside them, likewise
  std::vector<float> first_states_;
};

// Per row, without the halves that are zero: reads, update, scores, substitution and output.
double ChunkFlops(const FastWeightShape& shape, UpdateRule rule) {
  const double K = shape.key_dim, V = shape.value_dim, C = FastWeightParams::kChunk;
  const double solve = rule == UpdateRule::kSum ? 0.0 : 2.0 * K * V + C * (K + V);
  return (4.0 * K * V + C * (K + V) + solve) * shape.value_heads;
}

constexpr double kExact = 1e-5, kRounded = 5e-3;  // float32; factors rounded to tf32

}  // namespace

void DeviceBench::FastWeights() {
  const bool tiny = timer_.tiny();
  const FastWeightShape shape = tiny ? FastWeightShape{2, 2, 64, 64} : FastWeightShape{16, 16, 128, 128};
  const std::vector<int32_t> batches = tiny ? std::vector{1, 3} : std::vector{1, 8, 64, 128, 256, 512};
  for (const int32_t interval : {1, 4, 8, 16}) {
    for (const Rule& rule : kRules) {
      for (const int32_t batch : batches) {
        const std::string form = interval == 1 ? "step/" : "replay/" + std::to_string(interval) + "/";
        const std::string name = form + rule.name + "/batch/" + std::to_string(batch);
        if (!Wants(name)) continue;
        const int sets = timer_.Sets(8.0 * shape.state_floats() * batch);
        Memory memory(device(), shape, rule.rule, batch, 1, sets, interval);
        memory.Verify(timer_, false, kExact);
        const Timing timing = timer_.Time([&](int i) { return memory.Step(i, timer_.target()); });
        const double flops = 7.0 * static_cast<double>(shape.state_floats()) * batch;
        nlohmann::json labels = {{"group", interval == 1 ? "step" : "replay"}, {"rule", rule.name}, {"batch", batch}};
        if (interval > 1) labels["interval"] = interval;
        Add(name, std::move(labels), {memory.bytes(), flops}, timing);
      }
    }
  }

  const std::vector<int32_t> lengths = tiny ? std::vector{64, 66} : std::vector{64, 256, 1024, 4096};
  const std::vector<int32_t> sequences = tiny ? std::vector{2} : std::vector{1, 8, 32};
  for (const Rule& rule : kRules) {
    for (const bool round : {false, true}) {
      const double tolerance = round ? kRounded : kExact;
      const std::string prefix = std::string("chunks/") + rule.name + (round ? "/tf32" : "/f32");
      bool verified = false;  // by lengths that the reference can do in a moment
      for (const int32_t length : lengths) {
        for (const int32_t count : sequences) {
          const std::string name = prefix + "/tokens/" + std::to_string(length) + "/sequences/" + std::to_string(count);
          if (!Wants(name)) continue;
          for (const int32_t rows : {64, 130}) {
            if (!verified) Memory(device(), shape, rule.rule, 2, rows, 1).Verify(timer_, round, tolerance);
          }
          verified = true;
          Memory memory(device(), shape, rule.rule, count, length, timer_.Sets(8.0 * shape.state_floats() * count));
          const Timing timing = timer_.Time([&](int i) {
            FastWeightParams p = memory.OnDevice(i);
            p.round_products = round;
            return cuda::Run(p, timer_.target());
          });
          Add(name,
              {{"group", "chunks"},
               {"rule", rule.name},
               {"products", round ? "tf32" : "f32"},
               {"tokens", length},
               {"sequences", count}},
              {memory.bytes(), ChunkFlops(shape, rule.rule) * length * count}, timing);
        }
      }
    }
  }
}

}  // namespace palimpsest
