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
    {"channel_gated_sum", UpdateRule::kChannelGatedSum, DType::kF32, kStepsAlone},
};

constexpr double kExact = 1e-5, kRounded = 5e-3;  // float32; factors rounded to tf32
constexpr double kHalfUnit = 0x1p-8;              // of bfloat16, relative: the most that one rounding does

// Values as states hold them, and back.
std::vector<std::byte> Stored(std::span<const float> values, DType dtype) {
  std::vector<std::byte> states(values.size() * SizeOf(dtype));
  if (dtype == DType::kF32) {
    std::memcpy(states.data(), values.data(), values.size_bytes());
  } else {
    std::ranges::transform(values, reinterpret_cast<BF16*>(states.data()), BF16FromFloat);
  }
  return states;
}
std::vector<float> Load(std::span<const std::byte> states, DType dtype) {
  std::vector<float> values(states.size() / SizeOf(dtype));
  if (dtype == DType::kF32) {
    std::memcpy(values.data(), states.data(), states.size());
  } else {
    const auto* const bits = reinterpret_cast<const BF16*>(states.data());
    std::transform(bits, bits + values.size(), values.begin(), FloatFromBF16);
  }
  return values;
}

// `sequences` sequences of `length` rows each, and states for `sets` times as many, written at every `interval`-th
// step. The host has what it needs to verify one set, or nothing.
class Memory {
 public:
  struct Options {
    int32_t sequences = 1;
    int32_t length = 1;
    int sets = 1;
    int32_t interval = 1;
    bool on_host = false;
  };

  Memory(Device& device, FastWeightShape shape, const Variant& variant, const Options& options)
      : device_(device), shape_(shape), rule_(variant.rule), dtype_(variant.states), options_(options) {
    const int64_t rows = int64_t{options.sequences} * options.length;
    const auto normal = [&](int64_t n, uint32_t seed, float deviation = 1.0f) {
      return NormalOnDevice(device, n, seed, deviation, options.on_host);
    };
    // Keys of length about one.
    const float unit = 1.0f / std::sqrt(static_cast<float>(shape.key_dim));
    q_ = normal(rows * shape.heads * shape.key_dim, 1, unit);
    k_ = normal(rows * shape.heads * shape.key_dim, 2, unit);
    v_ = normal(rows * shape.value_heads * shape.value_dim, 3);
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
    out_ = normal(rows * shape.value_heads * shape.value_dim, 7);
    std::vector<int32_t> row_begin, slot;
    for (int32_t s = 0; s <= options.sequences; ++s) row_begin.push_back(s * options.length);
    for (int32_t s = 0; s < options.sets * options.sequences; ++s) slot.push_back(s);
    row_begin_ = {device, std::move(row_begin)};
    slot_ = {device, std::move(slot)};
    const int64_t drawn = options.on_host ? shape.state_floats() * options.sequences : shape.state_floats();
    std::vector<std::byte> first = Stored(SomeNormal(drawn, 4), dtype_);
    if (options.on_host) first_states_ = first;
    states_ = {device, std::move(first), set_bytes() * options.sets};
    if (options.interval > 1) {
      kept_ = AlignedBytes(kept_bytes() * options.sets * options.sequences, &device);
      PALIMPSEST_CHECK(kept_.data() != nullptr);
      device.FillWithZeros(kept_.data(), kept_.size());
    }
    PALIMPSEST_CHECK(device.Synchronize().ok());
  }

  FastWeightParams OnDevice(int set) {
    FastWeightParams p = Params(true, set % options_.sets);
    if (options_.interval > 1) {
      p.replay = {.interval = options_.interval,
                  .written = {kept_.data() + kPendingBytes, kept_bytes()},
                  .pending = {kept_.data(), kept_bytes()}};
    }
    return p;
  }

  // A step as a model takes it: what is kept is counted after it.
  cudaError_t Step(int set, const cuda::Target& target) {
    const FastWeightParams p = OnDevice(set);
    const cudaError_t error = cuda::Run(p, target);
    if (error != cudaSuccess || options_.interval == 1) return error;
    return cuda::Run(AdvanceReplayParams{.rows = p.rows, .interval = options_.interval, .pending = p.replay.pending},
                     target);
  }

  // The first set, once, against the reference.
  std::vector<Difference> Verify(DeviceTimer& timer, bool round_products, double tolerance) {
    FastWeightParams p = OnDevice(0);
    p.round_products = round_products;
    CheckCuda(cuda::Run(p, timer.target()), "FastWeight");
    if (options_.interval > 1) {
      AdvanceReplayParams advance{.rows = p.rows, .interval = options_.interval, .pending = p.replay.pending};
      CheckCuda(cuda::Run(advance, timer.target()), "AdvanceReplay");
      const FlushReplayParams flush{
          .shape = shape_, .rule = rule_, .rows = p.rows, .state = p.state, .replay = p.replay};
      CheckCuda(cuda::Run(flush, timer.target()), "FlushReplay");
      advance.rows.num_steps = 0;
      CheckCuda(cuda::Run(advance, timer.target()), "AdvanceReplay");
    }
    timer.Synchronize();
    std::vector<std::byte> states(set_bytes());
    device_.CopyToHost(states.data(), states_.device(), set_bytes());
    timer.Synchronize();

    FastWeightReference(Params(false, 0));
    return {Compare("FastWeight's output", out_.Read(), std::span(out_.host(), out_.size()), tolerance),
            Compare("FastWeight's state", Load(states, dtype_), Load(first_states_, dtype_),
                    dtype_ == DType::kF32 ? tolerance : std::max(tolerance, kHalfUnit))};
  }

  // Of one set: state read and written, rows read, outputs written. What is kept instead of the state is not counted.
  double bytes() const {
    const int64_t row_floats = q_.size() + k_.size() + v_.size() + beta_.size() + log_decay_.size() + remove_.size() +
                               insert_.size() + out_.size();
    return (1.0 + 1.0 / options_.interval) * static_cast<double>(set_bytes()) + 4.0 * static_cast<double>(row_floats);
  }

 private:
  static constexpr int64_t kPendingBytes = 64;

  int64_t slot_bytes() const { return shape_.state_floats() * SizeOf(dtype_); }
  int64_t set_bytes() const { return slot_bytes() * options_.sequences; }
  // Of one sequence.
  int64_t kept_bytes() const {
    const int64_t floats = shape_.value_heads * (options_.interval - 1) * FastWeightReplay::entry_floats(shape_);
    return kPendingBytes + (floats * 4 + 63) / 64 * 64;
  }

  FastWeightParams Params(bool on_device, int set) {
    const auto side = [&](auto& array) { return on_device ? array.device() : array.host(); };
    const auto side_if_any = [&](Mirrored<float>& array) { return array.size() == 0 ? nullptr : side(array); };
    const int64_t keys = int64_t{shape_.heads} * shape_.key_dim,
                  values = int64_t{shape_.value_heads} * shape_.value_dim;
    const int32_t sequences = options_.sequences;
    FastWeightParams p;
    p.shape = shape_;
    p.rule = rule_;
    p.rows = {sequences, side(row_begin_), side(slot_) + set * sequences, options_.length == 1 ? sequences : 0};
    p.state = {on_device ? states_.device() : first_states_.data(), slot_bytes(), dtype_};
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
  const Options options_;
  Mirrored<float> q_, k_, v_, out_;
  Mirrored<float> beta_, log_decay_, remove_, insert_;  // empty: the rule has none
  Mirrored<int32_t> row_begin_, slot_;
  Mirrored<std::byte> states_;  // of all sets
  AlignedBytes kept_;           // beside them, likewise
  std::vector<std::byte> first_states_;
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
  const auto sets_of = [&](const FastWeightShape& shape, const Variant& variant, int32_t sequences) {
    return timer_.Sets(2.0 * static_cast<double>(shape.state_floats() * SizeOf(variant.states)) * sequences);
  };
  constexpr int32_t kVerified = 8;
  const std::vector<int32_t> batches = tiny ? std::vector{1, 3} : std::vector{1, 8, 64, 256, 512};
  for (const Variant& variant : kVariants) {
    for (const int32_t interval : variant.intervals) {
      for (const int32_t batch : batches) {
        const std::string form = interval == 1 ? "step/" : "replay/" + std::to_string(interval) + "/";
        const std::string states = variant.states == DType::kF32 ? "" : "/bf16_states";
        const std::string name = form + variant.rule_name + states + "/batch/" + std::to_string(batch);
        if (!Wants(name)) continue;
        Expect(name, Memory(device(), shape, variant,
                            {.sequences = std::min(batch, kVerified), .interval = interval, .on_host = true})
                         .Verify(timer_, false, kExact));
        const int sets = sets_of(shape, variant, batch);
        Memory memory(device(), shape, variant, {.sequences = batch, .sets = sets, .interval = interval});
        // Every set comes to the step that writes it as often as any other.
        const Timing timing =
            timer_.Time([&](int i) { return memory.Step(i, timer_.target()); }, interval == 1 ? 1 : sets * interval);
        nlohmann::json labels = {{"group", interval == 1 ? "step" : "replay"},
                                 {"rule", variant.rule_name},
                                 {"states", NameOf(variant.states)},
                                 {"batch", batch}};
        if (interval > 1) labels["interval"] = interval;
        Add(name, std::move(labels), {memory.bytes(), RowFlops(shape, variant.rule) * batch}, timing);
      }
    }
  }

  struct Length {
    int32_t sequences, tokens;
  };
  const auto chunks = [&](const FastWeightShape& shape, const Variant& variant, std::span<const Length> lengths) {
    // Row by row, no factors are rounded.
    for (const bool round : DecaysChannels(variant.rule) ? std::vector{false} : std::vector{false, true}) {
      const double tolerance = round ? kRounded : kExact;
      std::string prefix = std::string("chunks/") + variant.rule_name + (round ? "/tf32" : "/f32");
      prefix += "/heads/" + std::to_string(shape.heads) + "x" + std::to_string(shape.value_heads);
      bool verified = false;  // by lengths that the reference can do in a moment
      for (const auto [sequences, tokens] : lengths) {
        const std::string name =
            prefix + "/tokens/" + std::to_string(tokens) + "/sequences/" + std::to_string(sequences);
        if (!Wants(name)) continue;
        for (const int32_t rows : {64, 130}) {
          if (verified) continue;
          Expect(name, Memory(device(), shape, variant, {.sequences = 2, .length = rows, .on_host = true})
                           .Verify(timer_, round, tolerance));
        }
        verified = true;
        Memory memory(device(), shape, variant,
                      {.sequences = sequences, .length = tokens, .sets = sets_of(shape, variant, sequences)});
        const Timing timing = timer_.Time([&](int i) {
          FastWeightParams p = memory.OnDevice(i);
          p.round_products = round;
          return cuda::Run(p, timer_.target());
        });
        Add(name,
            {{"group", "chunks"},
             {"rule", variant.rule_name},
             {"products", round ? "tf32" : "f32"},
             {"heads", shape.heads},
             {"value_heads", shape.value_heads},
             {"tokens", tokens},
             {"sequences", sequences}},
            {memory.bytes(), ChunkFlops(shape, variant.rule) * tokens * sequences}, timing);
      }
    }
  };
  const std::vector<Length> published = {{1, 8192}, {8, 1024}};
  for (const Variant& variant : kVariants) {
    if (variant.states != DType::kF32) continue;
    if (!tiny && variant.rule == UpdateRule::kGatedDelta) chunks({16, 64, 128, 128}, variant, published);
    if (tiny) {
      chunks(shape, variant, std::vector<Length>{{2, 64}, {2, 66}});
    } else if (DecaysChannels(variant.rule)) {  // its time goes with the length
      chunks(shape, variant, std::vector<Length>{{1, 64}, {8, 64}, {1, 1024}, {8, 1024}});
    } else {
      chunks(shape, variant, std::vector<Length>{{1, 64}, {32, 64}, {1, 1024}, {8, 1024}, {32, 1024}, {1, 8192}});
    }
  }
}

}  // namespace palimpsest
