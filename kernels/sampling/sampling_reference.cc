#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <span>
#include <vector>

#include "kernels/sampling/sampling.h"

namespace palimpsest {

std::vector<double> SamplingDistributionReference(std::span<const float> logits, const SamplingSettings& settings,
                                                  std::span<const int32_t> recent) {
  const int64_t n = logits.size();
  std::vector<double> x(logits.begin(), logits.end());
  for (const auto& [id, bias] : settings.logit_bias) x[id] += bias;
  std::map<int32_t, int> times_seen;
  for (const int32_t id : recent) {
    if (id >= 0 && id < n) ++times_seen[id];
  }
  for (const auto& [id, times] : times_seen) {
    x[id] = x[id] > 0.0 ? x[id] / settings.repetition_penalty : x[id] * settings.repetition_penalty;
    x[id] -= double{settings.presence_penalty} + double{settings.frequency_penalty} * times;
  }

  std::vector<int32_t> ranked(n);
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(), [&](int32_t a, int32_t b) { return x[a] > x[b]; });

  std::vector<double> probability(n, 0.0);
  if (settings.temperature == 0.0f) {
    probability[ranked[0]] = 1.0;
    return probability;
  }
  const auto weight = [&](int32_t id) { return std::exp((x[id] - x[ranked[0]]) / settings.temperature); };
  const auto sum = [&] {
    double total = 0.0;
    for (const int32_t id : ranked) total += weight(id);
    return total;
  };

  if (settings.top_k > 0 && settings.top_k < n) ranked.resize(settings.top_k);
  if (settings.top_p < 1.0f) {
    const double goal = settings.top_p * sum();
    double reached = 0.0;
    size_t kept = 0;
    while (kept < ranked.size() && reached < goal) reached += weight(ranked[kept++]);
    ranked.resize(std::max<size_t>(kept, 1));
  }
  std::erase_if(ranked, [&](int32_t id) { return weight(id) < settings.min_p; });

  const double total = sum();
  for (const int32_t id : ranked) probability[id] = weight(id) / total;
  return probability;
}

}  // namespace palimpsest
