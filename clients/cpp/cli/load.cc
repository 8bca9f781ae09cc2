#include "clients/cpp/cli/load.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace palimpsest::cli {

uint64_t Random::Next() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

double Random::Uniform() { return (static_cast<double>(Next() >> 12) + 0.5) * 0x1p-52; }

int64_t Random::Below(int64_t n) { return static_cast<int64_t>(Next() % static_cast<uint64_t>(n)); }

double Random::Exponential(double mean) { return -mean * std::log(Uniform()); }

double Random::Normal() {
  const double radius = std::sqrt(-2 * std::log(Uniform()));
  return radius * std::cos(2 * std::numbers::pi * Uniform());
}

absl::StatusOr<Lengths> Lengths::Parse(absl::string_view text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  const auto number = [&](size_t i, double* value) {
    return i < parts.size() && absl::SimpleAtod(parts[i], value) && std::isfinite(*value);
  };
  constexpr double kMost = 1e7;
  Lengths lengths;
  lengths.text_ = std::string(text);
  double& a = lengths.a_;
  double& b = lengths.b_;
  if (parts.size() == 1 && number(0, &a)) {
    if (a >= 1 && a <= kMost && a == std::floor(a)) return lengths;
  } else if (parts.size() == 2 && parts[0] == "fixed" && number(1, &a)) {
    if (a >= 1 && a <= kMost && a == std::floor(a)) return lengths;
  } else if (parts.size() == 3 && parts[0] == "uniform" && number(1, &a) && number(2, &b)) {
    lengths.kind_ = Kind::kUniform;
    if (a >= 1 && a <= b && b <= kMost && a == std::floor(a) && b == std::floor(b)) return lengths;
  } else if (parts.size() == 3 && parts[0] == "lognormal" && number(1, &a) && number(2, &b)) {
    lengths.kind_ = Kind::kLogNormal;
    if (a >= 1 && a <= kMost && b >= 0 && b <= 5) return lengths;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", text,
                   "\" is no distribution of lengths: fixed:N, uniform:A:B with A <= B, or "
                   "lognormal:MEAN:SIGMA with SIGMA in [0, 5]; lengths are whole numbers from 1 to 10 million"));
}

int64_t Lengths::Draw(Random& random) const {
  switch (kind_) {
    case Kind::kFixed:
      break;
    case Kind::kUniform:
      return static_cast<int64_t>(a_) + random.Below(static_cast<int64_t>(b_ - a_) + 1);
    case Kind::kLogNormal:
      // The mean of exp(mu + sigma z) is exp(mu + sigma^2 / 2).
      return std::max<int64_t>(1, std::llround(a_ * std::exp(b_ * random.Normal() - b_ * b_ / 2)));
  }
  return static_cast<int64_t>(a_);
}

std::vector<int32_t> Prompts::Draw(int64_t length, Random& random) const {
  std::vector<int32_t> prompt(length);
  if (text_.empty()) {
    for (int32_t& id : prompt) id = static_cast<int32_t>(random.Below(vocabulary_));
    return prompt;
  }
  size_t at = random.Below(static_cast<int64_t>(text_.size()));
  for (int32_t& id : prompt) {
    id = text_[at];
    at = at + 1 == text_.size() ? 0 : at + 1;
  }
  return prompt;
}

}  // namespace palimpsest::cli
