// Rates that may be exceeded for a moment, and not for long.
#pragma once

#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace palimpsest {

// A token bucket for each of many names. It holds `burst` at first and at most, and fills by `per_second`. Names whose
// bucket is full are forgotten. Not thread-safe; the caller's clock must not go back.
class RateByName {
 public:
  // `per_second` 0: nothing is bounded.
  RateByName(double per_second, double burst) : per_second_(per_second), burst_(burst) {}

  // Takes one if there is one.
  bool Take(absl::string_view name, absl::Time now);
  // Takes `count` whether they are there or not: a debt has to be paid by time. False: there is a debt now.
  bool Spend(absl::string_view name, double count, absl::Time now);
  // Whether `name` has a debt.
  bool InDebt(absl::string_view name, absl::Time now) const;
  // How long until one can be taken.
  absl::Duration UntilNext(absl::string_view name, absl::Time now) const;
  size_t names() const { return buckets_.size(); }

 private:
  struct Bucket {
    double level = 0;  // at `time`
    absl::Time time;
  };
  double LevelOf(const Bucket& bucket, absl::Time now) const;
  double Level(absl::string_view name, absl::Time now) const;
  void Set(absl::string_view name, double level, absl::Time now);

  const double per_second_;
  const double burst_;
  absl::flat_hash_map<std::string, Bucket> buckets_;
  size_t clean_at_ = 1024;  // names
};

}  // namespace palimpsest
