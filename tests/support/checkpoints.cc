#include "tests/support/checkpoints.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "base/check.h"
#include "tests/support/server_process.h"

namespace palimpsest::testing {

std::string MakeCheckpoint(const RandomCheckpointSpec& spec) {
  const std::string folder = MakeFolder("checkpoint");
  WriteRandomCheckpoint(folder, spec);
  return folder;
}

std::string MakeSlowCheckpoint() {
  // About 6 million parameters, or 25 MB: not in a core's own cache.
  RandomCheckpointSpec spec;
  spec.hidden = 256;
  spec.layers = 8;
  spec.mlp_inner = 704;
  spec.heads = spec.value_heads = 4;
  spec.key_dim = spec.value_dim = 64;
  return MakeCheckpoint(spec);
}

std::string BundledCheckpoint() {
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(PALIMPSEST_SOURCE_DIR "/checkpoints")) {
    if (std::filesystem::exists(entry.path() / "config.json")) found.push_back(entry.path().string());
  }
  PALIMPSEST_CHECK(!found.empty());
  return *std::min_element(found.begin(), found.end());
}

std::string MakePrompt(uint64_t seed, size_t length) {
  static constexpr const char* kWords[] = {"the",  "sea",   "was",  "calm", "and",  "old",   "Anna",  "looked",
                                           "back", "where", "hill", "rose", "from", "river", "never", "again."};
  std::string prompt;
  for (uint64_t x = seed * 2654435761u + 1; prompt.size() < length;
       x = x * 6364136223846793005u + 1442695040888963407u) {
    prompt += kWords[x >> 60];
    prompt += ' ';
  }
  prompt.resize(length);
  return prompt;
}

}  // namespace palimpsest::testing
