#include "server/net/rate_by_name.h"

#include <algorithm>

namespace palimpsest {

double RateByName::LevelOf(const Bucket& bucket, absl::Time now) const {
  return std::min(burst_, bucket.level + absl::ToDoubleSeconds(now - bucket.time) * per_second_);
}

double RateByName::Level(absl::string_view name, absl::Time now) const {
  const auto it = buckets_.find(name);
  return it == buckets_.end() ? burst_ : LevelOf(it->second, now);
}

void RateByName::Set(absl::string_view name, double level, absl::Time now) {
  buckets_[std::string(name)] = {level, now};
  if (buckets_.size() < clean_at_) return;
  absl::erase_if(buckets_, [&](const auto& entry) { return LevelOf(entry.second, now) >= burst_; });
  clean_at_ = std::max<size_t>(1024, 2 * buckets_.size());
}

bool RateByName::Take(absl::string_view name, absl::Time now) {
  if (per_second_ <= 0) return true;
  const double level = Level(name, now);
  if (level < 1) return false;
  Set(name, level - 1, now);
  return true;
}

bool RateByName::Spend(absl::string_view name, double count, absl::Time now) {
  if (per_second_ <= 0 || count <= 0) return true;
  const double level = Level(name, now) - count;
  Set(name, level, now);
  return level >= 0;
}

bool RateByName::InDebt(absl::string_view name, absl::Time now) const {
  return per_second_ > 0 && Level(name, now) < 0;
}

absl::Duration RateByName::UntilNext(absl::string_view name, absl::Time now) const {
  if (per_second_ <= 0) return absl::ZeroDuration();
  return absl::Seconds(std::max(0.0, 1 - Level(name, now)) / per_second_);
}

}  // namespace palimpsest
