// Reads a metrics page in the Prometheus text format, and percentiles out of its histograms.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace palimpsest::cli {

struct MetricSample {
  std::map<std::string, std::string> labels;
  double value;
};

// The samples of a page by name (for a histogram `x`: `x_bucket`, `x_sum`, `x_count`), in the page's order.
class MetricsPage {
 public:
  // INVALID_ARGUMENT: a line that is neither a comment nor a sample; its number is named.
  static absl::StatusOr<MetricsPage> Parse(absl::string_view text);

  const std::vector<MetricSample>& Samples(const std::string& name) const;
  // The sum over the samples of `name` that have all of `labels`. 0 if there are none.
  double Sum(const std::string& name, const std::map<std::string, std::string>& labels = {}) const;

 private:
  std::map<std::string, std::vector<MetricSample>> samples_;
};

// A histogram's counts by upper edge, cumulative as on the page; those of all label sets added together.
class Histogram {
 public:
  static Histogram FromPage(const MetricsPage& page, const std::string& name,
                            const std::map<std::string, std::string>& labels = {});

  // What came since `earlier`. A counter that went back (the server was started anew) counts from zero.
  Histogram Since(const Histogram& earlier) const;

  double count() const { return buckets_.empty() ? 0 : buckets_.rbegin()->second; }
  // The value below which the share `q` of the observations lies, linear within a bucket; NaN if there are none. The
  // last finite edge stands for all that lies beyond it.
  double Quantile(double q) const;

 private:
  std::map<double, double> buckets_;  // upper edge -> observations at or below it
};

}  // namespace palimpsest::cli
