#include "clients/cpp/cli/scoring.h"

#include <algorithm>
#include <numbers>

namespace palimpsest::cli {

void ScoreTotals::Add(const v1::ScoreResponse& response) {
  logprob += response.total_logprob();
  scored_tokens += response.scored_tokens();
  scored_characters += response.scored_characters();
  scored_bytes += response.scored_bytes();
  ++requests;
}

double ScoreTotals::Bits() const { return -logprob / std::numbers::ln2; }

int64_t ScoreWindows::count() const {
  if (last_ < 1) return 0;
  return 1 + std::max<int64_t>(0, last_ - length_ + step_ - 1) / step_;
}

ScoreWindow ScoreWindows::at(int64_t index) const {
  const int64_t last = LastScored(index);
  const int64_t last_before = index == 0 ? 0 : LastScored(index - 1);
  const int64_t begin = full_ ? std::max<int64_t>(0, last - length_) : last_before;
  return {.begin = begin, .end = last + 1, .scored = last - last_before};
}

int64_t ScoreWindows::LastScored(int64_t index) const { return std::min(last_, length_ + index * step_); }

}  // namespace palimpsest::cli
