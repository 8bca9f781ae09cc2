// What `palimpsest score` counts, and the windows of the protocols that cut a text.
#pragma once

#include <cstdint>

#include "palimpsest/v1/generation.pb.h"

namespace palimpsest::cli {

// What has been scored so far.
struct ScoreTotals {
  double logprob = 0;  // natural logarithm
  int64_t bytes = 0;   // of the text that was sent
  int64_t tokens = 0;  // of that text
  int64_t unknown_tokens = 0;
  int64_t scored_tokens = 0;
  int64_t scored_characters = 0;
  int64_t scored_bytes = 0;
  int64_t requests = 0;

  // Adds what the response says of scored tokens.
  void Add(const v1::ScoreResponse& response);

  double NatsPerToken() const { return -logprob / static_cast<double>(scored_tokens); }
  double BitsPerToken() const { return Bits() / static_cast<double>(scored_tokens); }
  double BitsPerCharacter() const { return Bits() / static_cast<double>(scored_characters); }
  double BitsPerByte() const { return Bits() / static_cast<double>(scored_bytes); }

 private:
  double Bits() const;
};

// Tokens [begin, end) of a text, to be scored by themselves: the last `scored` of them.
struct ScoreWindow {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t scored = 0;
};

// A text cut into windows of `length` tokens that the model takes in, so of up to `length` + 1 tokens: the last one is
// predicted only. Together they score each token of the text but the first, once.
class ScoreWindows {
 public:
  // One after the other, all positions scored; the last may be shorter.
  static ScoreWindows Segments(int64_t tokens, int64_t length) { return ScoreWindows(tokens, length, length, false); }
  // Each `stride` tokens after the one before, which has scored all but the last `stride`; the last window may have
  // moved less. 1 <= stride <= length.
  static ScoreWindows Sliding(int64_t tokens, int64_t length, int64_t stride) {
    return ScoreWindows(tokens, length, stride, true);
  }

  int64_t count() const;
  ScoreWindow at(int64_t index) const;

 private:
  ScoreWindows(int64_t tokens, int64_t length, int64_t step, bool full)
      : last_(tokens - 1), length_(length), step_(step), full_(full) {}
  // The last token that the windows up to `index` score.
  int64_t LastScored(int64_t index) const;

  int64_t last_;  // the text's last token
  int64_t length_;
  int64_t step_;
  bool full_;  // windows but the first reach back over scored tokens to have their length
};

}  // namespace palimpsest::cli
