// The ops against the bound of this machine, measured in the same run.
//
//   kernels_bench [--threads=N] [Google Benchmark's flags]
//
// Weights and states are laid out for a whole model, so that one iteration, a pass over all its layers, finds nothing
// in the caches that a real token would not. Every op is verified against its reference before it is timed.
//
// Counters: bytes of weights read (or of state, read and written) per second, with their share of what reading (or
// updating) memory reaches at best, and flops per second, with their share of the float32 bound. Of the two shares the
// larger one says what the op is bound by. A share of memory's bound above one means that the data came from a cache.
// Seconds, of the bounds too, are of the wall clock; with one thread they are of its processor time, so that a busy
// machine takes bandwidth from the figures but not time.

#include "bench/kernels_bench.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/fast_weight/fast_weight.h"
#include "kernels/linear/linear.h"

namespace palimpsest {
namespace {

// ---------------------------------------------------------------------------------------------------- linear

struct ModelShape {
  const char* name;
  int64_t hidden;
  int64_t inner;
  int64_t vocabulary;
  int layers;
};
constexpr ModelShape kModels[] = {{"125M", 768, 2048, 32000, 12}, {"350M", 1024, 2816, 32000, 24}};

struct Weights {
  std::vector<PackedLinear> matrices;
  int64_t elements = 0;
  int64_t bytes = 0;
  int64_t max_in = 0;
  int64_t max_out = 0;
};

// All projections of a model; the values repeat, since speed does not depend on them and drawing them takes long.
Weights MakeWeights(const ModelShape& model, DType dtype) {
  std::vector<std::pair<int64_t, int64_t>> shapes;
  for (int layer = 0; layer < model.layers; ++layer) {
    shapes.insert(shapes.end(), {{3 * model.hidden, model.hidden},
                                 {model.hidden, model.hidden},
                                 {2 * model.inner, model.hidden},
                                 {model.hidden, model.inner}});
  }
  shapes.emplace_back(model.vocabulary, model.hidden);
  Weights weights;
  for (const auto& [out, in] : shapes) {
    const std::vector<float> some = Normal(in * 64, static_cast<uint32_t>(weights.matrices.size()), 0.02f);
    std::vector<float> values(out * in);
    for (int64_t i = 0; i < out * in; ++i) values[i] = some[i % some.size()];
    std::vector<BF16> bits(values.size());
    if (dtype == DType::kBF16) std::transform(values.begin(), values.end(), bits.begin(), BF16FromFloat);
    const void* data = dtype == DType::kBF16 ? static_cast<const void*>(bits.data()) : values.data();
    weights.matrices.push_back(PackedLinear::Pack(dtype, data, out, in));
    weights.elements += out * in;
    weights.bytes += weights.matrices.back().bytes();
    weights.max_in = std::max(weights.max_in, in);
    weights.max_out = std::max(weights.max_out, out);
  }
  return weights;
}

// A small matrix of the same dtype in as many rows, against double precision.
void VerifyLinear(ThreadPool& pool, DType dtype, LinearMath math, int32_t rows) {
  const int64_t out = 96, in = 768;
  std::vector<float> values = Normal(out * in, 1, 0.02f);
  std::vector<BF16> bits(values.size());
  std::transform(values.begin(), values.end(), bits.begin(), BF16FromFloat);
  if (dtype == DType::kBF16) std::transform(bits.begin(), bits.end(), values.begin(), FloatFromBF16);
  std::vector<float> x = Normal(rows * in, 2);
  for (float& value : x) value = FloatFromBF16(BF16FromFloat(value));
  const PackedLinear packed =
      PackedLinear::Pack(dtype, dtype == DType::kBF16 ? static_cast<const void*>(bits.data()) : values.data(), out, in);
  std::vector<float> y(rows * out, NAN);
  Linear({&pool}, {&packed, math, x.data(), in, y.data(), out, rows});
  std::vector<double> expected(rows * out);
  LinearReference(values.data(), out, in, x.data(), in, rows, expected.data());
  for (int64_t i = 0; i < rows * out; ++i) PALIMPSEST_CHECK(std::abs(y[i] - expected[i]) < 1e-4);
}

void BenchLinear(benchmark::State& state, Machine& machine, const ModelShape& model, DType dtype, LinearMath math) {
  const int32_t rows = static_cast<int32_t>(state.range(0));
  VerifyLinear(machine.pool, dtype, math, rows);
  const Weights weights = MakeWeights(model, dtype);
  const std::vector<float> x = Normal(rows * weights.max_in, 3);
  AlignedArray<float> y(rows * weights.max_out);
  for (auto _ : state) {
    for (const PackedLinear& matrix : weights.matrices) {
      Linear({&machine.pool}, {&matrix, math, x.data(), weights.max_in, y.data(), weights.max_out, rows});
    }
  }
  Count(state, machine.bounds, static_cast<double>(weights.bytes), machine.bounds.read_bytes_per_second,
        2.0 * weights.elements * rows);
  state.counters["tokens_per_second"] = benchmark::Counter(rows, benchmark::Counter::kIsIterationInvariantRate);
}

// ------------------------------------------------------------------------------------------------- fast weight

// `layers` layers of fast weights for `sequences` sequences of `length` rows.
class FastWeightModel {
 public:
  FastWeightModel(FastWeightShape shape, UpdateRule rule, DType dtype, int layers, int32_t sequences, int32_t length)
      : layers_(layers), slot_bytes_(shape.state_floats() * SizeOf(dtype)) {
    const int64_t rows = int64_t{sequences} * length;
    const float unit = 1.0f / std::sqrt(static_cast<float>(shape.key_dim));  // keys of length about one
    q_ = Normal(rows * shape.heads * shape.key_dim, 1, unit);
    k_ = Normal(rows * shape.heads * shape.key_dim, 2, unit);
    v_ = Normal(rows * shape.value_heads * shape.value_dim, 3);
    beta_.assign(rows * shape.value_heads, 0.5f);
    const int64_t channels = rows * shape.value_heads * shape.key_dim;
    log_decay_.assign(DecaysChannels(rule) ? channels : rows * shape.value_heads, -0.05f);
    if (rule == UpdateRule::kLowRank) {
      remove_ = Normal(channels, 4, -unit);
      insert_.resize(remove_.size());
      std::ranges::transform(remove_, insert_.begin(), [](float x) { return -0.5f * x; });
    }
    out_ = AlignedArray<float>(rows * shape.value_heads * shape.value_dim);
    states_ = AlignedBytes(layers * sequences * slot_bytes_);
    for (int32_t s = 0; s < sequences; ++s) slot_.push_back(s);
    for (int32_t s = 0; s <= sequences; ++s) row_begin_.push_back(s * length);
    params_ = {.shape = shape,
               .rule = rule,
               .rows = {sequences, row_begin_.data(), slot_.data()},
               .state = {.dtype = dtype},  // the rest is a layer's
               .q = q_.data(),
               .ldq = shape.heads * shape.key_dim,
               .k = k_.data(),
               .ldk = shape.heads * shape.key_dim,
               .v = v_.data(),
               .ldv = shape.value_heads * shape.value_dim,
               .beta = Corrects(rule) ? beta_.data() : nullptr,
               .log_decay = Decays(rule) ? log_decay_.data() : nullptr,
               .remove = remove_.empty() ? nullptr : remove_.data(),
               .insert = insert_.empty() ? nullptr : insert_.data(),
               .out = out_.data(),
               .ldout = shape.value_heads * shape.value_dim};
  }

  FastWeightParams Layer(int layer) {
    FastWeightParams params = params_;
    params.state.base = states_.data() + layer * params.rows.num_sequences * slot_bytes_;
    params.state.slot_stride = slot_bytes_;
    return params;
  }

  void Verify(ThreadPool& pool) {
    const FastWeightParams params = Layer(0);
    std::memset(params.state.base, 0, params.rows.num_sequences * slot_bytes_);
    for (int pass = 0; pass < 2; ++pass) FastWeight({&pool}, params);  // the second from a state that is not zero
    const std::vector<float> out(out_.data(), out_.data() + out_.size());
    std::memset(params.state.base, 0, params.rows.num_sequences * slot_bytes_);
    for (int pass = 0; pass < 2; ++pass) FastWeightReference(params);
    const float tolerance = params.state.dtype == DType::kBF16 ? 0.1f : 1e-4f;
    for (size_t i = 0; i < out.size(); ++i) PALIMPSEST_CHECK(std::abs(out[i] - out_[i]) < tolerance);
  }

  void Pass(ThreadPool& pool) {
    for (int layer = 0; layer < layers_; ++layer) FastWeight({&pool}, Layer(layer));
  }

  double state_bytes() const { return static_cast<double>(states_.size()); }
  int64_t rows() const { return params_.rows.num_rows(); }

 private:
  int layers_;
  int64_t slot_bytes_;
  std::vector<float> q_, k_, v_, beta_, log_decay_, remove_, insert_;
  AlignedArray<float> out_;
  AlignedBytes states_;
  std::vector<int32_t> slot_, row_begin_;
  FastWeightParams params_;
};

// Multiply-adds for writing and reading out, and for reading where the rule corrects; the decay; and two multiply-adds
// more where what is removed goes elsewhere. Chunks go row by row, as steps do.
double FlopsOfRow(const FastWeightShape& shape, UpdateRule rule) {
  const double read = Corrects(rule) ? 2.0 : 0.0, move = rule == UpdateRule::kLowRank ? 4.0 : 0.0;
  return (4.0 + read + move + (Decays(rule) ? 1.0 : 0.0)) * static_cast<double>(shape.state_floats());
}

void BenchStep(benchmark::State& state, Machine& machine, FastWeightShape shape, UpdateRule rule, DType dtype,
               int layers) {
  FastWeightModel model(shape, rule, dtype, layers, static_cast<int32_t>(state.range(0)), 1);
  model.Verify(machine.pool);
  model.Pass(machine.pool);  // the first touch of the states, which the system answers with zeroed pages
  for (auto _ : state) model.Pass(machine.pool);
  const double flops = FlopsOfRow(shape, rule) * layers * static_cast<double>(model.rows());
  Count(state, machine.bounds, 2.0 * model.state_bytes(), machine.bounds.update_bytes_per_second, flops);
}

void BenchChunk(benchmark::State& state, Machine& machine, FastWeightShape shape, UpdateRule rule, int layers) {
  FastWeightModel model(shape, rule, DType::kF32, layers, 1, static_cast<int32_t>(state.range(0)));
  model.Verify(machine.pool);
  model.Pass(machine.pool);  // the first touch of the states, which the system answers with zeroed pages
  for (auto _ : state) model.Pass(machine.pool);
  const double flops = FlopsOfRow(shape, rule) * layers * static_cast<double>(model.rows());
  Count(state, machine.bounds, 2.0 * model.state_bytes(), machine.bounds.update_bytes_per_second, flops);
  state.counters["tokens_per_second"] =
      benchmark::Counter(static_cast<double>(model.rows()), benchmark::Counter::kIsIterationInvariantRate);
}

void Register(Machine& machine) {
  const auto milliseconds = [&machine](benchmark::internal::Benchmark* b) {
    b->Unit(benchmark::kMillisecond);
    return machine.pool.size() > 1 ? b->UseRealTime() : b;
  };
  struct Kind {
    const char* name;
    DType dtype;
    LinearMath math;
  };
  for (const ModelShape& model : kModels) {
    for (const Kind& kind :
         {Kind{"bf16_bf16math", DType::kBF16, LinearMath::kBF16}, Kind{"bf16_f32math", DType::kBF16, LinearMath::kF32},
          Kind{"f32_f32math", DType::kF32, LinearMath::kF32}}) {
      const std::string name = std::string("linear/") + model.name + "/" + kind.name + "/rows";
      benchmark::internal::Benchmark* const b =
          benchmark::RegisterBenchmark(name.c_str(), [&machine, &model, kind](benchmark::State& state) {
            BenchLinear(state, machine, model, kind.dtype, kind.math);
          });
      for (const int rows : {1, 8, 32, 64, 256}) milliseconds(b)->Arg(rows);
    }
  }
  struct Step {
    const char* name;
    UpdateRule rule;
    DType dtype;
  };
  static constexpr Step kSteps[] = {{"", UpdateRule::kGatedDelta, DType::kF32},
                                    {"/bf16", UpdateRule::kGatedDelta, DType::kBF16},
                                    {"/channel_gated", UpdateRule::kChannelGatedDelta, DType::kF32},
                                    {"/low_rank", UpdateRule::kLowRank, DType::kF32},
                                    {"/channel_gated_sum", UpdateRule::kChannelGatedSum, DType::kF32}};
  static constexpr std::pair<const char*, UpdateRule> kChunks[] = {
      {"sum", UpdateRule::kSum},          {"delta", UpdateRule::kDelta},
      {"gated", UpdateRule::kGatedDelta}, {"channel_gated", UpdateRule::kChannelGatedDelta},
      {"low_rank", UpdateRule::kLowRank}, {"channel_gated_sum", UpdateRule::kChannelGatedSum}};
  for (const FastWeightShape& shape : {FastWeightShape{12, 12, 64, 64}, FastWeightShape{8, 8, 128, 128}}) {
    const std::string size = std::to_string(shape.key_dim);
    for (const Step& kind : kSteps) {
      benchmark::internal::Benchmark* const step =
          benchmark::RegisterBenchmark(("fast_weight_step/" + size + kind.name + "/batch").c_str(),
                                       [&machine, shape, &kind](benchmark::State& state) {
                                         BenchStep(state, machine, shape, kind.rule, kind.dtype, 12);
                                       });
      for (const int batch : {1, 8, 32, 64}) milliseconds(step)->Arg(batch);
    }
    for (const auto& [rule_name, rule] : kChunks) {
      benchmark::internal::Benchmark* const chunk = benchmark::RegisterBenchmark(
          ("fast_weight_chunk/" + size + "/" + rule_name + "/length").c_str(),
          [&machine, shape, rule = rule](benchmark::State& state) { BenchChunk(state, machine, shape, rule, 12); });
      milliseconds(chunk)->Arg(512);
    }
  }
  RegisterMixers(machine);
}

}  // namespace
}  // namespace palimpsest

int main(int argc, char** argv) {
  int threads = 2;
  for (int i = 1; i < argc; ++i) {
    if (std::sscanf(argv[i], "--threads=%d", &threads) != 1) continue;
    std::copy(argv + i + 1, argv + argc, argv + i);
    --argc;
    break;
  }
  if (threads < 1) {
    std::fprintf(stderr, "--threads must be at least 1\n");
    return 2;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  palimpsest::Machine machine(threads);
  char text[64];
  benchmark::AddCustomContext("simd", palimpsest::SimdTargetName());
  benchmark::AddCustomContext("threads", std::to_string(threads));
  std::snprintf(text, sizeof(text), "%.1f GB/s", machine.bounds.read_bytes_per_second / 1e9);
  benchmark::AddCustomContext("read_bound", text);
  std::snprintf(text, sizeof(text), "%.1f GB/s", machine.bounds.update_bytes_per_second / 1e9);
  benchmark::AddCustomContext("update_bound", text);
  std::snprintf(text, sizeof(text), "%.1f GFLOP/s", machine.bounds.f32_flops_per_second / 1e9);
  benchmark::AddCustomContext("f32_bound", text);
  palimpsest::Register(machine);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
