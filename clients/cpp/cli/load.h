// What the load generator draws: lengths, times and prompts. The same seed gives the same load on every machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace palimpsest::cli {

// Random numbers whose every bit is defined here; the standard library's distributions differ between libraries.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next();           // SplitMix64
  double Uniform();          // in (0, 1)
  int64_t Below(int64_t n);  // in [0, n)
  double Exponential(double mean);
  double Normal();  // mean 0, deviation 1

 private:
  uint64_t state_;
};

// A distribution of lengths in tokens.
class Lengths {
 public:
  // `fixed:N`, or N alone; `uniform:A:B`, both ends included; `lognormal:MEAN:SIGMA`, where MEAN is that of the lengths
  // and SIGMA the deviation of their logarithm. INVALID_ARGUMENT: anything else.
  static absl::StatusOr<Lengths> Parse(absl::string_view text);

  // At least 1.
  int64_t Draw(Random& random) const;

  const std::string& text() const { return text_; }

 private:
  enum class Kind { kFixed, kUniform, kLogNormal };
  std::string text_;
  Kind kind_ = Kind::kFixed;
  double a_ = 1;
  double b_ = 0;
};

// Makes prompts of a wanted length: stretches of a text from a random place, or ids at random.
class Prompts {
 public:
  // `text` may be empty: ids are then drawn from [0, vocabulary).
  Prompts(std::vector<int32_t> text, int32_t vocabulary) : text_(std::move(text)), vocabulary_(vocabulary) {}
  // A text that is too short is read round and round.
  std::vector<int32_t> Draw(int64_t length, Random& random) const;

 private:
  const std::vector<int32_t> text_;
  const int32_t vocabulary_;
};

}  // namespace palimpsest::cli
