// Measures a model on this machine against the machine's own bounds, all in one run. After each measurement it prints a
// line of JSON with all that it knows by then; the last has everything.
//
//   decode   one step for each of B sequences; bound: the larger of (bytes of weights + 2 x bytes of the states) over
//            the read bandwidth, and multiply-adds over the float32 peak
//   prefill  chunks of one sequence; bound: multiply-adds over the float32 peak
//   position the step at position 100 and at position 100,000
//   engine   B requests through the engine, sampling included, against the bare forward pass at the same batch
//
// On a CUDA device (--backend=cuda) the bandwidth is that of a copy, as device_bench measured it (--ceilings_file), or
// else of copying rows of random values by our own op; shares of arithmetic are left out.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "bench/machine_bounds.h"
#include "kernels/common/device.h"
#include "kernels/common/simd.h"
#include "kernels/copy_rows/copy_rows.h"
#include "nlohmann/json.hpp"
#include "server/engine/engine.h"
#include "server/model/model.h"
#include "server/model/padded_steps.h"
#include "server/session/slot_pool.h"

#ifdef PALIMPSEST_CUDA
#include "kernels/cuda/cuda_device.h"
#endif

ABSL_FLAG(std::string, checkpoint, "", "Folder of the checkpoint to measure.");
ABSL_FLAG(std::string, math, "auto", "Arithmetic of the projections: auto, f32 or bf16.");
ABSL_FLAG(std::string, backend, "cpu", "Where: cpu, or cuda if this build has it.");
ABSL_FLAG(int32_t, threads, 0, "Threads; 0: one per processor.");
ABSL_FLAG(double, seconds, 2.0, "Time for each measurement.");
ABSL_FLAG(std::vector<std::string>, batches, std::vector<std::string>({"1", "8", "32", "64"}), "Decode batch sizes.");
ABSL_FLAG(std::vector<std::string>, prefill, std::vector<std::string>({"64", "512"}), "Lengths of prompts.");
ABSL_FLAG(std::string, ceilings_file, "", "What device_bench measured of this device.");
ABSL_FLAG(int64_t, far_position, 100000, "Position at which the step is measured again; 0: leave it out.");
ABSL_FLAG(int32_t, engine_streams, 64, "Requests at once through the engine; 0: leave it out.");

namespace palimpsest {
namespace {

using Json = nlohmann::json;

// Sequences with states of their own, and the buffers to step them.
class Sequences {
 public:
  Sequences(const Model& model, ThreadPool& pool, int32_t count)
      : model_(model),
        ctx_{.pool = &pool, .device = model.device()},
        slots_(count, model.layout().bytes(), model.device()),
        taken_(count),
        logits_(PaddedSteps(count) * int64_t{model.config().vocabulary}, model.device()) {
    for (int32_t i = 0; i < count; ++i) slot_index_.push_back(slots_.Acquire(nullptr).index);
  }

  // One step for each sequence, with logits.
  void Step() {
    const auto count = static_cast<int32_t>(slot_index_.size());
    std::vector<int32_t> tokens(count), row_begin(count + 1), rows(count);
    for (int32_t i = 0; i < count; ++i) {
      tokens[i] = NextToken();
      row_begin[i + 1] = rows[i] + 1;
      if (i + 1 < count) rows[i + 1] = i + 1;
    }
    Run(tokens, row_begin, rows);
  }

  // `count` tokens of the first sequence, without logits.
  void Prefill(int32_t count) {
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = NextToken();
    Run(tokens, {0, count}, {});
  }

 private:
  int32_t NextToken() {
    random_ = random_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<int32_t>((random_ >> 33) % model_.config().vocabulary);
  }

  void Run(const std::vector<int32_t>& tokens, const std::vector<int32_t>& row_begin,
           const std::vector<int32_t>& rows) {
    ForwardBatch batch;
    batch.tokens = tokens;
    const auto sequences = static_cast<int32_t>(row_begin.size()) - 1;
    batch.rows = {.num_sequences = sequences,
                  .row_begin = row_begin.data(),
                  .slot = slot_index_.data(),
                  .num_steps = row_begin.back() == sequences ? sequences : 0};
    batch.states = slots_.base();
    batch.state_stride = slots_.stride();
    batch.first_position = std::span(taken_).first(row_begin.size() - 1);
    batch.logit_rows = rows;
    model_.Forward(ctx_, batch, workspace_, logits_.data());
    if (ctx_.device != nullptr) PALIMPSEST_CHECK(ctx_.device->Synchronize().ok());
    for (size_t s = 0; s + 1 < row_begin.size(); ++s) taken_[s] += row_begin[s + 1] - row_begin[s];
  }

  const Model& model_;
  ExecContext ctx_;
  SlotPool slots_;
  Workspace workspace_;
  std::vector<int32_t> slot_index_;
  std::vector<int64_t> taken_;
  AlignedArray<float> logits_;
  uint64_t random_ = 1;
};

// Median seconds of one call, over as many calls as fit the time.
template <typename Body>
double MedianSeconds(Body body) {
  body();
  std::vector<double> times;
  const absl::Time end = absl::Now() + absl::Seconds(absl::GetFlag(FLAGS_seconds));
  do {
    const absl::Time start = absl::Now();
    body();
    times.push_back(absl::ToDoubleSeconds(absl::Now() - start));
  } while (absl::Now() < end || times.size() < 5);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

// Parameters that every token is multiplied with: all but an untied embedding table; the head only where logits are
// wanted.
struct Work {
  double body_flops = 0;  // a token, without the head
  double head_flops = 0;
};

Work WorkOf(const Model& model) {
  const auto without_logits = static_cast<double>(model.Work(1, 1, 0).flops);
  return {without_logits, static_cast<double>(model.Work(1, 1, 1).flops) - without_logits};
}

// Null where the peak was not measured.
Json FlopsShare(double flops, const MachineBounds& machine, double seconds) {
  return machine.f32_flops_per_second > 0 ? Json(flops / machine.f32_flops_per_second / seconds) : Json();
}

// The device's bandwidth, read and written together.
MachineBounds MeasureDeviceBounds(Device& device, ThreadPool& pool) {
  if (std::ifstream file(absl::GetFlag(FLAGS_ceilings_file)); file) {
    const Json known = Json::parse(file, nullptr, /*allow_exceptions=*/false);
    if (known.is_object()) return {.read_bytes_per_second = known.value("copy_bytes_per_second", 0.0)};
  }
  constexpr int32_t kRows = 1 << 14;
  constexpr int64_t kDim = 1 << 13;
  AlignedArray<float> from(kRows * kDim, &device), to(kRows * kDim, &device);
  PALIMPSEST_CHECK(from.data() != nullptr && to.data() != nullptr);
  // Not zeros, which some devices move faster.
  std::vector<float> values(from.size());
  std::minstd_rand random;
  for (float& value : values) value = static_cast<float>(random());
  device.CopyToDevice(from.data(), values.data(), from.size() * int64_t{sizeof(float)});
  const double seconds = MedianSeconds([&] {
    CopyRows({.pool = &pool, .device = &device},
             {.rows = kRows, .dim = kDim, .x = from.data(), .ldx = kDim, .y = to.data(), .ldy = kDim});
    PALIMPSEST_CHECK(device.Synchronize().ok());
  });
  return {.read_bytes_per_second = 2.0 * static_cast<double>(from.size()) * sizeof(float) / seconds};
}

Json MeasureDecode(const Model& model, ThreadPool& pool, const MachineBounds& machine, int32_t batch) {
  Sequences sequences(model, pool, batch);
  const double seconds = MedianSeconds([&] { sequences.Step(); });
  const Work work = WorkOf(model);
  const double bytes = model.weight_bytes() + 2.0 * batch * model.layout().bytes();
  const double flops = batch * (work.body_flops + work.head_flops);
  const double by_bytes = bytes / machine.read_bytes_per_second;
  const bool by_arithmetic = machine.f32_flops_per_second > 0 && flops / machine.f32_flops_per_second > by_bytes;
  return {{"batch", batch},
          {"seconds", seconds},
          {"tokens_per_second", batch / seconds},
          {"bound", by_arithmetic ? "f32 flops" : "bytes"},
          {"bytes_share", by_bytes / seconds},
          {"flops_share", FlopsShare(flops, machine, seconds)}};
}

Json MeasurePrefill(const Model& model, ThreadPool& pool, const MachineBounds& machine, int32_t tokens) {
  Sequences sequences(model, pool, 1);
  const double seconds = MedianSeconds([&] { sequences.Prefill(tokens); });
  const double flops = tokens * WorkOf(model).body_flops;
  return {{"tokens", tokens},
          {"seconds", seconds},
          {"tokens_per_second", tokens / seconds},
          {"flops_share", FlopsShare(flops, machine, seconds)}};
}

// Near and far are measured in turns, so that what else the machine does falls on both alike.
Json MeasurePosition(const Model& model, ThreadPool& pool, int64_t far_position) {
  Sequences near(model, pool, 1);
  Sequences far(model, pool, 1);
  near.Prefill(100);
  for (int64_t position = 0; position < far_position; position += 512) far.Prefill(512);
  std::vector<double> ratios;
  double near_seconds = 0;
  for (int round = 0; round < 9; ++round) {
    auto time = [](Sequences& sequences) {
      const absl::Time start = absl::Now();
      for (int i = 0; i < 10; ++i) sequences.Step();
      return absl::ToDoubleSeconds(absl::Now() - start) / 10;
    };
    const double near_time = time(near);
    ratios.push_back(time(far) / near_time);
    near_seconds = near_time;
  }
  std::nth_element(ratios.begin(), ratios.begin() + ratios.size() / 2, ratios.end());
  return {{"far_position", far_position}, {"near_seconds", near_seconds}, {"far_over_near", ratios[ratios.size() / 2]}};
}

// Counts tokens and ends.
class CountingSink : public RequestSink {
 public:
  CountingSink(std::atomic<int64_t>* tokens, absl::BlockingCounter* done) : tokens_(tokens), done_(done) {}
  void OnDelta(Delta delta) override { *tokens_ += static_cast<int64_t>(delta.tokens.size()); }
  void OnFinish(Finish) override { done_->DecrementCount(); }
  int64_t undelivered_tokens() const override { return 0; }

 private:
  std::atomic<int64_t>* tokens_;
  absl::BlockingCounter* done_;
};

Json MeasureEngine(std::shared_ptr<const Model> model, const std::string& folder, ThreadPool& pool, int32_t streams,
                   int32_t threads) {
  double bare = 0;
  {
    Sequences sequences(*model, pool, streams);
    bare = streams / MedianSeconds([&] { sequences.Step(); });
  }
  auto tokenizer = Tokenizer::Load(folder, model->config().vocabulary);
  if (!tokenizer.ok()) return {{"error", tokenizer.status().ToString()}};
  EngineOptions options;
  options.threads = threads;
  options.slots = streams;
  auto engine = Engine::Start(model, std::move(*tokenizer), options);
  if (!engine.ok()) return {{"error", engine.status().ToString()}};
  const auto tokens_each =
      static_cast<int64_t>(std::clamp(bare * absl::GetFlag(FLAGS_seconds) / streams, 16.0, 2000.0));
  std::atomic<int64_t> tokens = 0;
  absl::BlockingCounter done(streams);
  const absl::Time start = absl::Now();
  for (int32_t i = 0; i < streams; ++i) {
    EngineRequest request;
    request.prompt = {static_cast<int32_t>(i % model->config().vocabulary)};
    request.max_tokens = tokens_each;
    request.ignore_end_of_text = true;
    request.sampling.seed = i;
    request.arrival = start;
    request.sink = std::make_shared<CountingSink>(&tokens, &done);
    if (auto id = (*engine)->Submit(request); !id.ok()) return {{"error", id.status().ToString()}};
  }
  done.Wait();
  const double rate = tokens / absl::ToDoubleSeconds(absl::Now() - start);
  return {{"streams", streams},
          {"tokens_each", tokens_each},
          {"tokens_per_second", rate},
          {"forward_tokens_per_second", bare},
          {"share_of_forward", rate / bare}};
}

int Main() {
  ModelOptions options;
  const std::string math = absl::GetFlag(FLAGS_math);
  if (math == "f32") options.math = ModelOptions::Math::kF32;
  if (math == "bf16") options.math = ModelOptions::Math::kBF16;
  if (absl::GetFlag(FLAGS_backend) == "cuda") {
#ifdef PALIMPSEST_CUDA
    absl::StatusOr<std::unique_ptr<Device>> device = OpenCudaDevice({});
    if (!device.ok()) {
      std::fprintf(stderr, "model_bench: %s\n", device.status().ToString().c_str());
      return 1;
    }
    options.device = *std::move(device);
#else
    std::fprintf(stderr, "model_bench: --backend=cuda needs a build with CUDA: cmake --preset cuda\n");
    return 1;
#endif
  }
  const std::string folder = absl::GetFlag(FLAGS_checkpoint);
  auto loaded = Model::Load(folder, options);
  if (!loaded.ok()) {
    std::fprintf(stderr, "model_bench: %s\n", loaded.status().ToString().c_str());
    return 1;
  }
  const std::shared_ptr<const Model> model = std::move(*loaded);
  if (model->config().max_context() > 0 || model->config().clusters() > 1) {
    std::fprintf(stderr, "model_bench: measures models without positions that end and with one cluster of ids only\n");
    return 1;
  }
  const int32_t flag_threads = absl::GetFlag(FLAGS_threads);
  const int32_t threads = flag_threads > 0 ? flag_threads : static_cast<int32_t>(std::thread::hardware_concurrency());
  ThreadPool pool(threads);
  Device* const device = model->device();
  const MachineBounds machine = device != nullptr ? MeasureDeviceBounds(*device, pool) : MeasureMachineBounds(pool);

  Json result = {{"checkpoint", folder},
                 {"parameters", model->parameter_count()},
                 {"weight_bytes", model->weight_bytes()},
                 {"weight_dtype", NameOf(model->weight_dtype())},
                 {"math", model->math() == LinearMath::kBF16 ? "bf16" : "f32"},
                 {"state_bytes", model->layout().bytes()},
                 {"backend", device != nullptr ? device->info().name : "cpu"},
                 {"simd", SimdTargetName()},
                 {"threads", threads},
                 {"machine",
                  {{"read_gb_per_second", machine.read_bytes_per_second / 1e9},
                   {"f32_gflop_per_second", machine.f32_flops_per_second / 1e9}}}};
  const auto print = [&result] {
    std::printf("%s\n", result.dump().c_str());
    std::fflush(stdout);
  };
  const auto count = [](const std::string& text) { return std::max(1, std::atoi(text.c_str())); };
  for (const std::string& batch : absl::GetFlag(FLAGS_batches)) {
    result["decode"].push_back(MeasureDecode(*model, pool, machine, count(batch)));
    print();
  }
  for (const std::string& tokens : absl::GetFlag(FLAGS_prefill)) {
    result["prefill"].push_back(MeasurePrefill(*model, pool, machine, count(tokens)));
    print();
  }
  if (const int64_t far = absl::GetFlag(FLAGS_far_position); far > 0) {
    result["position"] = MeasurePosition(*model, pool, far);
    print();
  }
  if (const int32_t streams = absl::GetFlag(FLAGS_engine_streams); streams > 0) {
    result["engine"] = MeasureEngine(model, folder, pool, streams, threads);
    print();
  }
  return 0;
}

}  // namespace
}  // namespace palimpsest

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "Measures a model against the machine's bounds and prints lines of JSON; the last has all.\n"
      "  model_bench --checkpoint=FOLDER [--math=f32] [--batches=1,8]");
  absl::ParseCommandLine(argc, argv);
  return palimpsest::Main();
}
