// The golden models of tests/golden_paper, for the tests of this room and end to end.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace palimpsest::testing {

struct PaperGolden {
  std::string name;
  std::string folder;
  std::vector<int32_t> tokens;
  std::vector<float> next_logprob;  // of tokens[t + 1]
  int32_t segment = 0;              // 0: state carried; n: a fresh state every n tokens
};

// All of them, by name. Aborts when one cannot be read.
std::vector<PaperGolden> PaperGoldens(const std::string& source_folder);

}  // namespace palimpsest::testing
