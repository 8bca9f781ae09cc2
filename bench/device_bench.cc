// The ops on a CUDA device against the bounds of that device. On standard output a line of JSON for each measurement,
// as soon as it is there: what ends the process takes nothing that was measured before.
//
//   device_bench [--tiny] [--only=REGEX] [--seconds=N] [--device=N] [--ceilings_file=FILE]
//
// What is measured is verified as well, at batches of 8 at most: against the op's reference in double precision, or its
// home on the processor. A wrong result is a line {"failed": NAME, "what", "error", "allowed"}, and makes the exit
// status 1 when all is done. Figures are medians of runs of many launches (device_timer.h) that take their states and
// weights in turn, so that nothing comes from a cache that a model would not find there. `bound_share` is the time that
// the measured bounds leave no way below, by the time taken: bytes (each read once, each written once) at the rate of a
// copy on the device, or floating-point operations at the rate of a large product, whichever takes longer.
//
// --seconds: no measurement begins later than that; a line {"out_of_time": true} then tells so.
// --ceilings_file: the measured bounds of a run before, or where this run puts its own.
// --tiny: small shapes, few launches; for a test that all this works. Its times mean nothing, nor do those of the
// emulated device, and are null.
#include "bench/device_bench.h"

#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <thread>

#include "kernels/cuda/cuda_device.h"

namespace palimpsest {

namespace {

// A large copy on the device: bytes read and written per second.
double MeasureCopy(DeviceTimer& timer) {
  const int64_t bytes = timer.tiny() ? 1 << 16 : int64_t{1} << 30;
  AlignedBytes from(bytes, &timer.device()), to(bytes, &timer.device());
  PALIMPSEST_CHECK(from.data() != nullptr && to.data() != nullptr);
  const std::vector<float> values = SomeNormal(bytes / 4, 1);
  timer.device().CopyToDevice(from.data(), values.data(), bytes);
  timer.Synchronize();
  const Timing timing = timer.Time([&](int) {
    return cudaMemcpyAsync(to.data(), from.data(), static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                           timer.target().stream);
  });
  std::vector<float> copied(values.size());
  timer.device().CopyToHost(copied.data(), to.data(), bytes);
  timer.Synchronize();
  PALIMPSEST_CHECK(copied == values);
  return 2.0 * static_cast<double>(bytes) / timing.seconds;
}

// A large product by the vendor's library, of random bf16 or of random float32 rounded to tf32: operations per second.
double MeasureProduct(DeviceTimer& timer, cuda::PeakProduct kind) {
  const int64_t n = timer.tiny() ? 64 : 8192, value_bytes = kind == cuda::PeakProduct::kBF16 ? 2 : 4;
  AlignedBytes a(n * n * value_bytes, &timer.device()), b(n * n * value_bytes, &timer.device());
  AlignedArray<float> y(n * n, &timer.device());
  PALIMPSEST_CHECK(a.data() != nullptr && b.data() != nullptr && y.data() != nullptr);
  std::vector<float> values = SomeNormal(n * n, 1);
  const auto put = [&](std::byte* to) {
    std::vector<BF16> bits(values.size());
    std::transform(values.begin(), values.end(), bits.begin(), BF16FromFloat);
    const void* const from = value_bytes == 2 ? static_cast<const void*>(bits.data()) : values.data();
    timer.device().CopyToDevice(to, from, n * n * value_bytes);
    timer.Synchronize();
  };
  put(a.data());
  std::reverse(values.begin(), values.end());
  put(b.data());
  const auto product = cuda::MakePeakProduct(kind, n, a.data(), b.data(), y.data());
  if (product == nullptr) return 0.0;  // the emulator has none
  const Timing timing = timer.Time([&](int) { return product->Multiply(timer.target().stream); });
  return 2.0 * static_cast<double>(n) * n * n / timing.seconds;
}

}  // namespace

DeviceBench::DeviceBench(DeviceTimer& timer, bool emulated, const std::string& only, int seconds,
                         const std::string& ceilings_file)
    : timer_(timer),
      emulated_(emulated),
      only_(only),
      end_(std::chrono::steady_clock::now() + std::chrono::seconds(seconds)),
      pool_(static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 16u))) {
  workspace_ = AlignedBytes(2 * kWorkspaceBytes, &timer.device());
  PALIMPSEST_CHECK(workspace_.data() != nullptr);
  blas_ = cuda::Blas::Create(workspace_.data(), kWorkspaceBytes);
  PALIMPSEST_CHECK(blas_ != nullptr);
  const DeviceInfo& info = timer.device().info();
  PrintRow({{"device",
             {{"name", info.name},
              {"compute_capability", info.compute_capability},
              {"multiprocessors", info.multiprocessors},
              {"memory_bytes", info.total_bytes}}},
            {"tiny", timer.tiny()},
            {"emulated", emulated}});
  nlohmann::json known;
  if (std::ifstream file(ceilings_file); file) known = nlohmann::json::parse(file, nullptr, false);
  if (known.is_object()) {
    ceilings_ = {.copy_bytes = known.at("copy_bytes_per_second"),
                 .bf16_flops = known.at("bf16_flops_per_second"),
                 .tf32_flops = known.at("tf32_flops_per_second")};
    return;
  }
  ceilings_ = {.copy_bytes = MeasureCopy(timer),
               .bf16_flops = MeasureProduct(timer, cuda::PeakProduct::kBF16),
               .tf32_flops = MeasureProduct(timer, cuda::PeakProduct::kTF32)};
  const nlohmann::json ceilings = {{"copy_bytes_per_second", Measured(ceilings_.copy_bytes)},
                                   {"bf16_flops_per_second", Measured(ceilings_.bf16_flops)},
                                   {"tf32_flops_per_second", Measured(ceilings_.tf32_flops)}};
  PrintRow({{"ceilings", ceilings}});
  if (!ceilings_file.empty() && !emulated_ && !timer.tiny()) std::ofstream(ceilings_file) << ceilings.dump();
}

nlohmann::json DeviceBench::Measured(double value) const {
  if (emulated_ || timer_.tiny()) return nullptr;
  return value;
}

bool DeviceBench::Wants(const std::string& name) {
  if (!std::regex_search(name, std::regex(only_.empty() ? "." : only_))) return false;
  if (std::chrono::steady_clock::now() < end_) {
    std::fprintf(stderr, "%s\n", name.c_str());  // what it was at, if it ends here
    return true;
  }
  if (!out_of_time_) PrintRow({{"out_of_time", true}});
  out_of_time_ = true;
  return false;
}

void DeviceBench::Expect(const std::string& name, std::span<const Difference> differences) {
  for (const Difference& d : differences) {
    if (d.near()) continue;
    ok_ = false;
    PrintRow({{"failed", name}, {"what", d.what}, {"error", d.error}, {"allowed", d.allowed}});
  }
}

void DeviceBench::Add(const std::string& name, nlohmann::json labels, const Work& work, const Timing& timing) {
  const double bytes_seconds = work.bytes / ceilings_.copy_bytes;
  const double rate = work.bf16 ? ceilings_.bf16_flops : ceilings_.tf32_flops;
  const double flops_seconds = rate > 0.0 ? work.flops / rate : 0.0;
  nlohmann::json row = {{"name", name},
                        {"seconds", Measured(timing.seconds)},
                        {"spread", Measured(timing.spread)},
                        {"launches", timing.launches},
                        {"bytes", work.bytes},
                        {"flops", work.flops},
                        {"bytes_per_second", Measured(work.bytes / timing.seconds)},
                        {"flops_per_second", Measured(work.flops / timing.seconds)},
                        {"bound", bytes_seconds >= flops_seconds ? "bytes" : "flops"},
                        {"bound_share", Measured(std::max(bytes_seconds, flops_seconds) / timing.seconds)}};
  row.update(labels);
  PrintRow(row);
}

}  // namespace palimpsest

int main(int argc, char** argv) {
  using namespace palimpsest;
  bool tiny = false;
  int seconds = 24 * 3600;
  std::string only, ceilings_file;
  DeviceOptions options;
  const auto text_of = [](const char* argument, const char* flag, std::string& value) {
    if (std::strncmp(argument, flag, std::strlen(flag)) != 0) return false;
    value = argument + std::strlen(flag);
    return true;
  };
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--tiny") == 0) {
      tiny = true;
    } else if (!text_of(argv[i], "--only=", only) && !text_of(argv[i], "--ceilings_file=", ceilings_file) &&
               std::sscanf(argv[i], "--seconds=%d", &seconds) != 1 &&
               std::sscanf(argv[i], "--device=%d", &options.index) != 1) {
      std::fprintf(stderr,
                   "usage: device_bench [--tiny] [--only=REGEX] [--seconds=N] [--device=N] [--ceilings_file=FILE]\n");
      return 2;
    }
  }
  if (kDeviceIsEmulated && !tiny) {
    std::fprintf(stderr, "device_bench: this build emulates the device: only --tiny makes sense\n");
    return 2;
  }
  absl::StatusOr<std::unique_ptr<Device>> device = OpenCudaDevice(options);
  if (!device.ok()) EndWith("the device", std::string(device.status().message()));
  DeviceTimer timer(**device, tiny);
  DeviceBench bench(timer, kDeviceIsEmulated, only, seconds, ceilings_file);
  bench.FastWeights();
  bench.Mixers();
  bench.Projections();
  bench.Layer();
  bench.Convolutions();
  bench.Sampling();
  bench.Graphs();
  return bench.ok() ? 0 : 1;
}
