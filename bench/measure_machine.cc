// Measures what this machine can do at best and prints it as recording rules for Prometheus, which the dashboards hold
// step time against: docs/operations.md#step-time-and-its-bound
#include <algorithm>
#include <cstdio>
#include <thread>

#include "bench/machine_bounds.h"

int main(int argc, char**) {
  if (argc > 1) {
    std::fputs("usage: measure_machine > deploy/prometheus/rules/machine.yml\n", stderr);
    return 2;
  }
  const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  palimpsest::ThreadPool pool(threads);
  const palimpsest::MachineBounds bounds = palimpsest::MeasureMachineBounds(pool);
  std::printf(
      "# Measured by measure_machine with %d threads: bytes read from memory, and float32 operations of which a\n"
      "# multiply-add is two, in a second.\n"
      "groups:\n"
      "  - name: palimpsest_machine\n"
      "    rules:\n"
      "      - record: palimpsest:machine_bytes_per_second\n"
      "        expr: vector(%.3e)\n"
      "      - record: palimpsest:machine_flops_per_second\n"
      "        expr: vector(%.3e)\n",
      threads, bounds.read_bytes_per_second, bounds.f32_flops_per_second);
  return 0;
}
