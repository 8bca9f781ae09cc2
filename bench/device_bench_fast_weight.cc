// device_bench: the fast-weight memory, step and chunks.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <span>

#include "bench/device_bench.h"
#include "kernels/cuda/ops.h"
#include "kernels/fast_weight/fast_weight.h"

namespace palimpsest {
namespace {

// A rule, how its states are kept, and how many steps it takes to write one: 1, or an interval of the replay form.
struct Variant {
  const char* rule_name;
  UpdateRule rule;
  DType states;
  std::span<const int32_t> intervals;
};
constexpr int32_t kStepsAlone[] = {1}, kOneReplay[] = {1, 8}, kReplays[] = {1, 4, 8, 16};
constexpr Variant kVariants[] = {
    {"sum", UpdateRule::kSum, DType::kF32, kReplays},
    {"delta", UpdateRule::kDelta, DType::kF32, kReplays},
    {"gated_delta", UpdateRule::kGatedDelta, DType::kF32, kReplays},
    {"gated_delta", UpdateRule::kGatedDelta, DType::kBF16, kOneReplay},
    {"channel_gated_delta", UpdateRule::kChannelGatedDelta, DType::kF32, kStepsAlone},
    {"low_rank", UpdateRule::kLowRank, DType::kF32, kStepsAlone},
};

constexpr double kExact = 1e-5, kRounded = 5e-3;  // float32; factors rounded to tf32
constexpr double kHalfUnit = 0x1p-8;              // of bfloat16, relative: the most that one rounding does

// Values as states hold them, and back.
void Store(std::span<const float> values, DType dtype, std::byte* states) {
  if (dtype == DType::kF32) {
    std::memcpy(states, values.data(), values.size_bytes());
  } else {
    std::ranges::transform(values, reinterpret_cast<BF16*>(states), BF16FromFloat);
  }
}
std::vector<float> Load(const AlignedBytes& states, DType dtype) {
  std::vector<float> values(states.size() / SizeOf(dtype));
  if (dtype == DType::kF32) {
    std::memcpy(values.data(), states.data(), states.size());
  } else {
    std::transform(reinterpret_cast<const BF16*>(states.data()),
                   reinterpret_cast<const BF16*>(states.data() + states.size()), values.begin(), FloatFromBF16);
  }
  return values;
}

// `sequences` sequences of `length` rows each, and states for `sets` times as many, written at every `interval`-th
// step.
class Memory {
 public:
  Memory(Device& device, FastWeightShape shape, const Variant& variant, int32_t sequences, int32_t length, int sets,
         int32_t interval = 1)
      : device_(device),
        shape_(shape),
        rule_(variant.rule),
        dtype_(variant.states),
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
    if (Corrects(rule_)) beta_ = {device, std::vector<float>(rows * shape.value_heads, 0.5f)};
    const int64_t gates = rows * shape.value_heads * (DecaysChannels(rule_) ? shape.key_dim : 1);
    if (Decays(rule_)) {
      std::vector<float> log_decay = SomeNormal(gates, 5, 0.05f);
      for (float& value : log_decay) value = -std::abs(value);
      log_decay_ = {device, std::move(log_decay)};
    }
    if (rule_ == UpdateRule::kLowRank) {
      // Half of what lies along a direction is removed, so that states stay bounded.
      std::vector<float> remove = SomeNormal(gates, 6, unit), insert = remove;
      for (float& value : insert) value *= -0.5f;
      remove_ = {device, std::move(remove)};
      insert_ = {device, std::move(insert)};
    }
    out_ = {device, std::vector<float>(rows * shape.value_heads * shape.value_dim, NAN)};
    std::vector<int32_t> row_begin, slot;
    for (int32_t s = 0; s <= sequences; ++s) row_begin.push_back(s * length);
    for (int32_t s = 0; s < sets * sequences; ++s) slot.push_back(s);
    row_begin_ = {device, std::move(row_begin)};
    slot_ = {device, std::move(slot)};
    first_states_ = AlignedBytes(set_bytes());
    Store(SomeNormal(shape.state_floats() * sequences, 4), dtype_, first_states_.data());
    states_ = AlignedBytes(set_bytes() * sets, &device);
    PALIMPSEST_CHECK(states_.data() != nullptr);
    for (int set = 0; set < sets; ++set) {
      device.CopyToDevice(states_.data() + set * set_bytes(), first_states_.data(), set_bytes());
    }
    if (interval > 1) {
      kept_ = AlignedBytes(kept_bytes() * sets * sequences, &device);
      PALIMPSEST_CHECK(kept_.data() != nullptr);
      device.FillWithZeros(kept_.data(), kept_.size());
    }
    PALIMPSEST_CHECK(device.Synchronize().ok());
  }

  FastWeightParams OnDevice(int set) {
    FastWeightParams p = Params(true, set % sets_);
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
    AlignedBytes states(set_bytes());
    device_.CopyToHost(states.data(), states_.data(), set_bytes());
    timer.Synchronize();

    FastWeightReference(Params(false, 0));
    CheckNear("FastWeight's output", out_.Read(), std::span(out_.host(), out_.size()), tolerance);
    CheckNear("FastWeight's state", Load(states, dtype_), Load(first_states_, dtype_),
              dtype_ == DType::kF32 ? tolerance : std::max(tolerance, kHalfUnit));
  }

  // Of one set: state read and written, rows read, outputs written. What is kept instead of the state is not counted.
  double bytes() const {
    const int64_t row_floats = q_.size() + k_.size() + v_.size() + beta_.size() + log_decay_.size() + remove_.size() +
                               insert_.size() + out_.size();
    return (1.0 + 1.0 / interval_) * static_cast<double>(set_bytes()) + 4.0 * static_cast<double>(row_floats);
  }

 private:
  static constexpr int64_t kPendingBytes = 64;

  int64_t slot_bytes() const { return shape_.state_floats() * SizeOf(dtype_); }
  int64_t set_bytes() const { return slot_bytes() * sequences_; }
  // Of one sequence.
  int64_t kept_bytes() const {
    const int64_t floats = shape_.value_heads * (interval_ - 1) * FastWeightReplay::entry_floats(shape_);
    return kPendingBytes + (floats * 4 + 63) / 64 * 64;
  }

  FastWeightParams Params(bool on_device, int set) {
    const auto side = [&](auto& array) { return on_device ? array.device() : array.host(); };
    const auto side_if_any = [&](Mirrored<float>& array) { return array.size() == 0 ? nullptr : side(array); };
    const int64_t keys = int64_t{shape_.heads} * shape_.key_dim,
                  values = int64_t{shape_.value_heads} * shape_.value_dim;
    FastWeightParams p;
    p.shape = shape_;
    p.rule = rule_;
    p.rows = {sequences_, side(row_begin_), side(slot_) + set * sequences_, length_ == 1 ? sequences_ : 0};
    p.state = {on_device ? states_.data() : first_states_.data(), slot_bytes(), dtype_};
    p.q = side(q_);
    p.ldq = keys;
    p.k = side(k_);
    p.ldk = keys;
    p.v = side(v_);
    p.ldv = values;
    p.beta = side_if_any(beta_);
    p.log_decay = side_if_any(log_decay_);
    p.remove = side_if_any(remove_);
    p.insert = side_if_any(insert_);
    p.out = side(out_);
    p.ldout = values;
    return p;
  }

  Device& device_;
  const FastWeightShape shape_;
  const UpdateRule rule_;
  const DType dtype_;  // of the states
  const int32_t sequences_, length_;
  const int sets_;
  const int32_t interval_;
  Mirrored<float> q_, k_, v_, out_;
  Mirrored<float> beta_, log_decay_, remove_, insert_;  // empty: the rule has none
  Mirrored<int32_t> row_begin_, slot_;
  AlignedBytes states_;  // of all sets, on the device
  AlignedBytes kept_;    // beside them, likewise
  AlignedBytes first_states_;
};

// Of a row taken by itself: what is written and read, and what the rule does beside.
double RowFlops(const FastWeightShape& shape, UpdateRule rule) {
  const double decay = Decays(rule) ? 1.0 : 0.0, correct = Corrects(rule) ? 2.0 : 0.0;
  const double move = rule == UpdateRule::kLowRank ? 4.0 : 0.0;
  return (4.0 + decay + correct + move) * static_cast<double>(shape.state_floats());
}

// Per row, without the halves that are zero: reads, update, scores, substitution and output.
double ChunkFlops(const FastWeightShape& shape, UpdateRule rule) {
  if (DecaysChannels(rule)) return RowFlops(shape, rule);
  const double K = shape.key_dim, V = shape.value_dim, C = FastWeightParams::kChunk;
  const double solve = rule == UpdateRule::kSum ? 0.0 : 2.0 * K * V + C * (K + V);
  return (4.0 * K * V + C * (K + V) + solve) * shape.value_heads;
}

}  // namespace

void DeviceBench::FastWeights() {
  const bool tiny = timer_.tiny();
  const FastWeightShape shape = tiny ? FastWeightShape{2, 2, 64, 64} : FastWeightShape{16, 16, 128, 128};
  const auto sets_of = [&](const Variant& variant, int32_t sequences) {
    return timer_.Sets(2.0 * static_cast<double>(shape.state_floats() * SizeOf(variant.states)) * sequences);
  };
  const std::vector<int32_t> batches = tiny ? std::vector{1, 3} : std::vector{1, 8, 64, 128, 256, 512};
  for (const Variant& variant : kVariants) {
    for (const int32_t interval : variant.intervals) {
      for (const int32_t batch : batches) {
        const std::string form = interval == 1 ? "step/" : "replay/" + std::to_string(interval) + "/";
        const std::string states = variant.states == DType::kF32 ? "" : "/bf16_states";
        const std::string name = form + variant.rule_name + states + "/batch/" + std::to_string(batch);
        if (!Wants(name)) continue;
        Memory memory(device(), shape, variant, batch, 1, sets_of(variant, batch), interval);
        memory.Verify(timer_, false, kExact);
        const Timing timing = timer_.Time([&](int i) { return memory.Step(i, timer_.target()); });
        nlohmann::json labels = {{"group", interval == 1 ? "step" : "replay"},
                                 {"rule", variant.rule_name},
                                 {"states", NameOf(variant.states)},
                                 {"batch", batch}};
        if (interval > 1) labels["interval"] = interval;
        Add(name, std::move(labels), {memory.bytes(), RowFlops(shape, variant.rule) * batch}, timing);
      }
    }
  }

  const std::vector<int32_t> sequences = tiny ? std::vector{2} : std::vector{1, 8, 32};
  for (const Variant& variant : kVariants) {
    if (variant.states != DType::kF32) continue;
    // Row by row, time goes with the length, and no factors are rounded.
    const bool by_rows = DecaysChannels(variant.rule);
    const std::vector<int32_t> lengths = tiny      ? std::vector{64, 66}
                                         : by_rows ? std::vector{64, 1024}
                                                   : std::vector{64, 256, 1024, 4096};
    for (const bool round : by_rows ? std::vector{false} : std::vector{false, true}) {
      const double tolerance = round ? kRounded : kExact;
      const std::string prefix = std::string("chunks/") + variant.rule_name + (round ? "/tf32" : "/f32");
      bool verified = false;  // by lengths that the reference can do in a moment
      for (const int32_t length : lengths) {
        for (const int32_t count : sequences) {
          const std::string name = prefix + "/tokens/" + std::to_string(length) + "/sequences/" + std::to_string(count);
          if (!Wants(name)) continue;
          for (const int32_t rows : {64, 130}) {
            if (!verified) Memory(device(), shape, variant, 2, rows, 1).Verify(timer_, round, tolerance);
          }
          verified = true;
          Memory memory(device(), shape, variant, count, length, sets_of(variant, count));
          const Timing timing = timer_.Time([&](int i) {
            FastWeightParams p = memory.OnDevice(i);
            p.round_products = round;
            return cuda::Run(p, timer_.target());
          });
          Add(name,
              {{"group", "chunks"},
               {"rule", variant.rule_name},
               {"products", round ? "tf32" : "f32"},
               {"tokens", length},
               {"sequences", count}},
              {memory.bytes(), ChunkFlops(shape, variant.rule) * length * count}, timing);
        }
      }
    }
  }
}

}  // namespace palimpsest
