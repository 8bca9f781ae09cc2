// device_bench: projections, each op of a layer, sampling, and what a graph saves.
#include <chrono>
#include <memory>

#include "bench/device_bench.h"
#include "kernels/activation/activation.h"
#include "kernels/cuda/ops.h"
#include "kernels/embedding/embedding.h"
#include "kernels/fast_weight/fast_weight.h"
#include "kernels/feature_map/feature_map.h"
#include "kernels/gate/gate.h"
#include "kernels/norm/norm.h"
#include "kernels/sampling/sampling.h"
#include "kernels/short_conv/short_conv.h"

namespace palimpsest {
namespace {

// A model of 1.3 billion parameters, and one for a test.
struct ModelShape {
  int64_t hidden;
  int64_t inner;
  int64_t vocabulary;
  int32_t heads;
  int32_t dim;  // of a head's keys and values
};
constexpr ModelShape kModel = {2048, 5632, 32000, 16, 128};
constexpr ModelShape kTinyModel = {128, 160, 96, 2, 64};
constexpr int32_t kConvWidth = 4;

constexpr double kExact = 1e-5, kBF16 = 5e-3;

// Copies of one matrix, more than caches hold.
struct Matrices {
  std::vector<float> values;  // what the device has, in float32
  std::vector<PackedLinear> copies;

  Matrices(DeviceTimer& timer, DType dtype, int64_t out, int64_t in)
      : values(SomeNormal(out * in, 7, 1.0f / std::sqrt(static_cast<float>(in)))) {
    std::vector<BF16> bits(values.size());
    std::transform(values.begin(), values.end(), bits.begin(), BF16FromFloat);
    if (dtype == DType::kBF16) std::transform(bits.begin(), bits.end(), values.begin(), FloatFromBF16);
    const void* const data = dtype == DType::kBF16 ? static_cast<const void*>(bits.data()) : values.data();
    const int sets = timer.Sets(static_cast<double>(out * in) * (dtype == DType::kBF16 ? 2 : 4));
    for (int i = 0; i < sets; ++i) {
      copies.push_back(PackedLinear::Pack(dtype, data, out, in, &timer.device()));
      PALIMPSEST_CHECK(copies.back().data() != nullptr);
    }
    timer.Synchronize();
  }
};

// What a product does beside itself: nothing, where there is no weight.
struct Fold {
  std::span<const float> norm_weight;
  float eps = 1e-6f;
  bool swiglu = false;
};

// Some of y's elements, spread over it, in double precision.
Difference CompareProduct(const Matrices& matrices, std::span<const float> x, std::span<const float> y, int32_t rows,
                          double tolerance, const Fold& fold) {
  const int64_t out = matrices.copies[0].out(), in = matrices.copies[0].in();
  const int64_t columns = fold.swiglu ? out / 2 : out;
  std::vector<float> got, expected;
  for (int64_t i = 0; i < 512; ++i) {
    const int64_t row = i * 31 % rows, o = i * 7919 % columns;
    const auto of_row = x.subspan(row * in, in);
    double squares = 0.0;
    for (const float value : of_row) squares += double{value} * value;
    const bool normed = !fold.norm_weight.empty();
    const double factor = normed ? 1.0 / std::sqrt(squares / static_cast<double>(in) + double{fold.eps}) : 1.0;
    const auto sum = [&](int64_t o) {
      double sum = 0.0;
      for (int64_t c = 0; c < in; ++c) {
        sum += factor * of_row[c] * (normed ? double{fold.norm_weight[c]} : 1.0) * matrices.values[o * in + c];
      }
      return sum;
    };
    const double gate = sum(o);
    got.push_back(y[row * out + o]);
    expected.push_back(static_cast<float>(fold.swiglu ? gate / (1.0 + std::exp(-gate)) * sum(o + columns) : gate));
  }
  return Compare("Linear", got, expected, tolerance);
}

}  // namespace

void DeviceBench::Projections() {
  struct Kind {
    const char* name;
    DType dtype;
    LinearMath math;
    double tolerance;
    bool folds = false;  // with the norm before and the gate behind it, where a layer has them
  };
  constexpr Kind kKinds[] = {{"bf16", DType::kBF16, LinearMath::kBF16, kBF16},
                             {"bf16_folded", DType::kBF16, LinearMath::kBF16, 2 * kBF16, true},
                             {"bf16_f32math", DType::kBF16, LinearMath::kF32, kExact},
                             {"f32", DType::kF32, LinearMath::kF32, kExact}};
  const bool tiny = timer_.tiny();
  const ModelShape& m = tiny ? kTinyModel : kModel;
  struct Projection {
    const char* name;
    int64_t out, in;
    bool normed, gated;
  };
  const Projection projections[] = {{"qkv", 3 * m.hidden, m.hidden, true, false},
                                    {"out", m.hidden, m.hidden, false, false},
                                    {"gate_up", 2 * m.inner, m.hidden, true, true},
                                    {"down", m.hidden, m.inner, false, false},
                                    {"logits", m.vocabulary, m.hidden, true, false}};
  const std::vector<int32_t> chunk_rows = tiny ? std::vector{9} : std::vector{256, 2048, 8192};
  for (const Kind& kind : kKinds) {
    for (const Projection& projection : projections) {
      if (kind.folds && !projection.normed) continue;
      const std::string prefix = std::string("linear/") + projection.name + "/" + kind.name;
      std::unique_ptr<Matrices> matrices;
      // What people run, at every size; the rest where it shows what the kernel is.
      const std::vector<int32_t> step_rows = tiny ? std::vector{1, 9}
                                             : kind.math == LinearMath::kBF16
                                                 ? std::vector{1, 2, 8, 16, 32, 64, 128, 256}
                                                 : std::vector{1, 64};
      // Rows as steps, and as parts of chunks, which the vendor's library multiplies.
      for (const bool steps : {true, false}) {
        for (const int32_t rows : steps ? step_rows : chunk_rows) {
          const std::string name = prefix + (steps ? "/steps/" : "/chunk_rows/") + std::to_string(rows);
          // Logits are of steps; the library's other arithmetics need no proof at every size.
          if (!steps && rows > 256 && (projection.out == m.vocabulary || kind.math != LinearMath::kBF16)) continue;
          if (!Wants(name)) continue;
          if (matrices == nullptr) {
            matrices = std::make_unique<Matrices>(timer_, kind.dtype, projection.out, projection.in);
          }
          Mirrored<float> x = Put(SomeNormal(int64_t{rows} * projection.in, 8));
          Mirrored<float> y = Put(std::vector<float>(int64_t{rows} * projection.out, NAN));
          Mirrored<float> norm = Put(SomeNormal(projection.in, 9));
          const Fold fold = kind.folds ? Fold{.norm_weight = {norm.host(), static_cast<size_t>(projection.in)},
                                              .swiglu = projection.gated}
                                       : Fold{};
          const auto launch = [&](int i) {
            const LinearParams params{.weights = &matrices->copies[i % matrices->copies.size()],
                                      .math = kind.math,
                                      .x = x.device(),
                                      .ldx = projection.in,
                                      .y = y.device(),
                                      .ldy = projection.out,
                                      .rows = rows,
                                      .step_rows = steps ? rows : 0,
                                      .norm_weight = kind.folds ? norm.device() : nullptr,
                                      .norm_eps = fold.eps,
                                      .swiglu = fold.swiglu};
            return cuda::Run(params, linear_resources(), timer_.target());
          };
          CheckCuda(launch(0), "Linear");
          timer_.Synchronize();
          const Difference difference =
              CompareProduct(*matrices, std::span(x.host(), x.size()), y.Read(), rows, kind.tolerance, fold);
          Expect(name, {&difference, 1});
          const double elements = static_cast<double>(projection.out) * static_cast<double>(projection.in);
          Add(name,
              {{"group", steps ? "linear_steps" : "linear_chunk"},
               {"projection", projection.name},
               {"kind", kind.name},
               {"rows", rows}},
              {static_cast<double>(matrices->copies[0].bytes()) + 4.0 * static_cast<double>(x.size() + y.size()),
               2.0 * elements * rows, kind.math == LinearMath::kBF16},
              timer_.Time(launch));
        }
      }
    }
  }
}

void DeviceBench::Layer() {
  const bool tiny = timer_.tiny();
  const ModelShape& m = tiny ? kTinyModel : kModel;
  const auto hidden = static_cast<int32_t>(m.hidden), inner = static_cast<int32_t>(m.inner);
  const int64_t width = int64_t{m.heads} * m.dim, channels = 3 * width;
  for (const int32_t batch : tiny ? std::vector{3} : std::vector{1, 64, 256, 4096}) {
    // Buffers are those of one layer, which a step finds in the cache: the layer before has just written them.
    Mirrored<float> x = Put(SomeNormal(batch * m.hidden, 1)), qkv = Put(SomeNormal(batch * channels, 2));
    Mirrored<float> gate_up = Put(SomeNormal(2 * batch * m.inner, 3)), weight = Put(SomeNormal(m.hidden, 4));
    Mirrored<float> taps = Put(SomeNormal(kConvWidth * channels, 5)), gates = Put(SomeNormal(batch * m.heads, 6));
    Mirrored<float> wide = Put(std::vector<float>(batch * std::max(channels, m.inner), NAN));
    Mirrored<float> beta = Put(std::vector<float>(batch * m.heads, NAN)),
                    decay = Put(std::vector<float>(batch * m.heads, NAN));
    Mirrored<float> tails = Put(SomeNormal(batch * (kConvWidth - 1) * channels, 7));
    Mirrored<BF16> table = Put(std::vector<BF16>(m.vocabulary * m.hidden, BF16FromFloat(0.5f)));
    std::vector<int32_t> counts(batch + 1);
    for (int32_t i = 0; i <= batch; ++i) counts[i] = i;
    Mirrored<int32_t> begin = Put(counts), ids = Put(counts);
    const double floats = 4.0 * batch;

    // run(on_device) calls the op with that side's pointers; `result` is compared.
    const auto measure = [&](const char* op, double bytes, Mirrored<float>& result, int64_t size, const auto& run) {
      const std::string name = std::string("layer/") + op + "/batch/" + std::to_string(batch);
      if (!Wants(name)) return;
      CheckCuda(run(true), op);
      timer_.Synchronize();
      run(false);
      const std::vector<float> got = result.Read();
      const Difference difference = Compare(op, std::span(got).first(size), std::span(result.host(), size), kExact);
      Expect(name, {&difference, 1});
      Add(name, {{"group", "layer"}, {"op", op}, {"batch", batch}}, {bytes, 0.0},
          timer_.Time([&](int) { return run(true); }));
    };
    const auto home = [&](const auto& params, bool on_device, auto on_processor) {
      if (on_device) return cuda::Run(params, timer_.target());
      on_processor(ExecContext{.pool = &pool_}, params);
      return cudaSuccess;
    };
    const auto side = [](auto& array, bool on_device) { return on_device ? array.device() : array.host(); };

    measure("embedding", floats * static_cast<double>(m.hidden) * 1.5, wide, batch * m.hidden, [&](bool d) {
      return home(EmbeddingParams{.rows = batch,
                                  .dim = hidden,
                                  .tokens = side(ids, d),
                                  .dtype = DType::kBF16,
                                  .table = side(table, d),
                                  .y = side(wide, d)},
                  d, [](const ExecContext& ctx, const EmbeddingParams& p) { Embedding(ctx, p); });
    });
    measure("rms_norm", floats * static_cast<double>(m.hidden) * 2, wide, batch * m.hidden, [&](bool d) {
      return home(RmsNormParams{.rows = batch,
                                .dim = hidden,
                                .x = side(x, d),
                                .ldx = m.hidden,
                                .weight = side(weight, d),
                                .y = side(wide, d),
                                .ldy = m.hidden},
                  d, [](const ExecContext& ctx, const RmsNormParams& p) { RmsNorm(ctx, p); });
    });
    measure("short_conv", floats * static_cast<double>(channels) * (2 + 2 * (kConvWidth - 1)), wide, batch * channels,
            [&](bool d) {
              const ShortConvParams p{
                  .rows = {batch, side(begin, d), side(ids, d), batch},
                  .channels = static_cast<int32_t>(channels),
                  .width = kConvWidth,
                  .weight = side(taps, d),
                  .tail = {reinterpret_cast<std::byte*>(side(tails, d)), (kConvWidth - 1) * channels * 4},
                  .x = side(qkv, d),
                  .ldx = channels,
                  .y = side(wide, d),
                  .ldy = channels};
              return home(p, d, [](const ExecContext& ctx, const ShortConvParams& p) { ShortConv(ctx, p); });
            });
    measure("feature_map", floats * static_cast<double>(width) * 2, wide, batch * width, [&](bool d) {
      return home(FeatureMapParams{.rows = batch,
                                   .heads = m.heads,
                                   .dim = m.dim,
                                   .map = FeatureMapKind::kSilu,
                                   .norm = KeyNorm::kL2,
                                   .x = side(qkv, d),
                                   .ldx = channels,
                                   .y = side(wide, d),
                                   .ldy = width},
                  d, [](const ExecContext& ctx, const FeatureMapParams& p) { FeatureMap(ctx, p); });
    });
    measure("gate", floats * m.heads * 4, decay, batch * m.heads, [&](bool d) {
      return home(GateParams{.rows = batch,
                             .heads = m.heads,
                             .b = side(gates, d),
                             .ldb = m.heads,
                             .beta = side(beta, d),
                             .a = side(gates, d),
                             .lda = m.heads,
                             .a_log = side(weight, d),
                             .dt_bias = side(weight, d),
                             .log_decay = side(decay, d)},
                  d, [](const ExecContext& ctx, const GateParams& p) { Gate(ctx, p); });
    });
    measure("head_norm", floats * static_cast<double>(width) * 3, wide, batch * width, [&](bool d) {
      return home(RmsNormParams{.rows = batch,
                                .groups = m.heads,
                                .dim = m.dim,
                                .x = side(qkv, d),
                                .ldx = channels,
                                .weight = side(weight, d),
                                .gate_activation = GateActivation::kSilu,
                                .gate = side(qkv, d) + width,
                                .ldgate = channels,
                                .y = side(wide, d),
                                .ldy = width},
                  d, [](const ExecContext& ctx, const RmsNormParams& p) { RmsNorm(ctx, p); });
    });
    measure("swiglu", floats * static_cast<double>(m.inner) * 3, wide, batch * m.inner, [&](bool d) {
      return home(SwigluParams{.rows = batch,
                               .dim = inner,
                               .gate = side(gate_up, d),
                               .ldgate = 2 * m.inner,
                               .up = side(gate_up, d) + m.inner,
                               .ldup = 2 * m.inner,
                               .y = side(wide, d),
                               .ldy = m.inner},
                  d, [](const ExecContext& ctx, const SwigluParams& p) { Swiglu(ctx, p); });
    });
  }
}

namespace {

// The median of some calls by the host's clock.
template <typename Work>
Timing ByHostClock(int runs, const Work& work) {
  std::vector<double> seconds;
  for (int i = 0; i < runs + 1; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    if (i > 0) seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  return {median, (seconds[seconds.size() * 9 / 10] - seconds[seconds.size() / 10]) / median, 1};
}

}  // namespace

// Whole prompts, as a prefill has them.
void DeviceBench::Convolutions() {
  const bool tiny = timer_.tiny();
  const ModelShape& m = tiny ? kTinyModel : kModel;
  const int64_t channels = 3 * int64_t{m.heads} * m.dim;
  struct Length {
    int32_t sequences, tokens;
  };
  for (const auto [sequences, tokens] :
       tiny ? std::vector<Length>{{2, 70}} : std::vector<Length>{{1, 8192}, {8, 1024}}) {
    const std::string name =
        "layer/short_conv/tokens/" + std::to_string(tokens) + "/sequences/" + std::to_string(sequences);
    if (!Wants(name)) continue;
    const int64_t rows = int64_t{sequences} * tokens;
    Mirrored<float> x = Put(SomeNormal(rows * channels, 2)), y = Put(std::vector<float>(rows * channels, NAN));
    Mirrored<float> taps = Put(SomeNormal(kConvWidth * channels, 5));
    Mirrored<float> tails = Put(SomeNormal(sequences * (kConvWidth - 1) * channels, 7));
    std::vector<int32_t> begin, slot;
    for (int32_t s = 0; s <= sequences; ++s) begin.push_back(s * tokens);
    for (int32_t s = 0; s < sequences; ++s) slot.push_back(s);
    Mirrored<int32_t> row_begin = Put(begin), slots = Put(slot);
    const auto params = [&](bool d) {
      const auto side = [&](auto& array) { return d ? array.device() : array.host(); };
      return ShortConvParams{.rows = {sequences, side(row_begin), side(slots), 0},
                             .channels = static_cast<int32_t>(channels),
                             .width = kConvWidth,
                             .weight = side(taps),
                             .tail = {reinterpret_cast<std::byte*>(side(tails)), (kConvWidth - 1) * channels * 4},
                             .x = side(x),
                             .ldx = channels,
                             .y = side(y),
                             .ldy = channels};
    };
    CheckCuda(cuda::Run(params(true), timer_.target()), "ShortConv");
    timer_.Synchronize();
    ShortConv({.pool = &pool_}, params(false));
    const Difference differences[] = {Compare("ShortConv", y.Read(), std::span(y.host(), y.size()), kExact),
                                      Compare("its tail", tails.Read(), std::span(tails.host(), tails.size()), kExact)};
    Expect(name, differences);
    const double floats = static_cast<double>(2 * x.size() + 2 * tails.size() + taps.size());
    Add(name, {{"group", "layer"}, {"op", "short_conv"}, {"tokens", tokens}, {"sequences", sequences}},
        {4.0 * floats, 0.0}, timer_.Time([&](int) { return cuda::Run(params(true), timer_.target()); }));
  }
}

// By the host's clock: with the requests packed and sent, and the answers back.
void DeviceBench::Sampling() {
  const bool tiny = timer_.tiny();
  struct Kind {
    const char* name;
    SamplingSettings settings;
  };
  const Kind kKinds[] = {{"greedy", {.temperature = 0.0f}},
                         {"temperature", {.temperature = 0.8f}},
                         {"top_k_50", {.temperature = 0.8f, .top_k = 50}},
                         {"top_p_0.9", {.temperature = 0.8f, .top_p = 0.9f}}};
  for (const int32_t vocabulary : tiny ? std::vector{300} : std::vector{32000, 65536, 248320}) {
    for (const int32_t rows : tiny ? std::vector{3} : std::vector{1, 64}) {
      Mirrored<float> logits = Put(SomeNormal(int64_t{rows} * vocabulary, 1, 3.0f));
      for (const Kind& kind : kKinds) {
        const std::string name = std::string("sample/") + kind.name + "/vocabulary/" + std::to_string(vocabulary) +
                                 "/rows/" + std::to_string(rows);
        if (!Wants(name)) continue;
        std::vector<SampleRow> requests(rows);
        for (int32_t r = 0; r < rows; ++r) {
          requests[r].logits = logits.device() + int64_t{r} * vocabulary;
          requests[r].settings = &kind.settings;
          requests[r].position = r;
        }
        Sample({.device = &device()}, requests, vocabulary);
        for (int32_t r = 0; r < std::min(rows, 8); ++r) {
          const std::span<const float> row(logits.host() + int64_t{r} * vocabulary, static_cast<size_t>(vocabulary));
          const int32_t token = requests[r].token;
          const bool possible = requests[r].finite && token >= 0 && token < vocabulary &&
                                SamplingDistributionReference(row, kind.settings, {})[token] > 0.0;
          const Difference difference = {"a token that cannot be drawn", possible ? 0.0 : 1.0, 0.0};
          Expect(name, {&difference, 1});
        }
        Add(name, {{"group", "sample"}, {"kind", kind.name}, {"rows", rows}, {"vocabulary", vocabulary}},
            {4.0 * rows * vocabulary, 0.0}, ByHostClock(tiny ? 2 : 100, [&] {
              Sample({.device = &device()}, requests, vocabulary);
              timer_.Synchronize();
            }));
      }
    }
  }
}

// What putting many small kernels on the stream costs one by one, and as a graph: by the host's clock, with the wait.
void DeviceBench::Graphs() {
  constexpr int kLaunches = 200;
  Mirrored<float> x = Put(SomeNormal(1024, 1));
  const auto launch_all = [&] {
    for (int i = 0; i < kLaunches; ++i) {
      device().Run(ReluParams{.rows = 1, .dim = 1024, .x = x.device(), .ldx = 1024, .y = x.device(), .ldy = 1024});
    }
  };
  const std::unique_ptr<Device::Graph> graph = device().Record(launch_all);
  PALIMPSEST_CHECK(graph != nullptr);
  device().Run(*graph);
  timer_.Synchronize();
  std::vector<float> expected(x.host(), x.host() + x.size());
  for (float& value : expected) value = std::max(value, 0.0f);
  PALIMPSEST_CHECK(x.Read() == expected);
  const int runs = timer_.tiny() ? 2 : 50;
  const Work work{8.0 * 1024 * kLaunches, 0.0};
  if (Wants("launch/one_by_one")) {
    Add("launch/one_by_one", {{"group", "launch"}, {"kernels", kLaunches}}, work, ByHostClock(runs, [&] {
          launch_all();
          timer_.Synchronize();
        }));
  }
  if (Wants("launch/graph")) {
    Add("launch/graph", {{"group", "launch"}, {"kernels", kLaunches}}, work, ByHostClock(runs, [&] {
          device().Run(*graph);
          timer_.Synchronize();
        }));
  }
}

}  // namespace palimpsest
