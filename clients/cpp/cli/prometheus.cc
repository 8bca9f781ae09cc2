#include "clients/cpp/cli/prometheus.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace palimpsest::cli {
namespace {

bool ParseValue(absl::string_view text, double* value) {
  if (text == "+Inf") text = "inf";
  if (text == "-Inf") text = "-inf";
  return absl::SimpleAtod(text, value);  // knows nan
}

// Takes `{name="value",...}` off the front of `text`. In values, \\ \" and \n are escapes.
bool ConsumeLabels(absl::string_view* text, std::map<std::string, std::string>* labels) {
  size_t at = 1;
  while (at < text->size() && (*text)[at] != '}') {
    const size_t equals = text->find("=\"", at);
    if (equals == absl::string_view::npos) return false;
    const std::string name(absl::StripAsciiWhitespace(text->substr(at, equals - at)));
    std::string value;
    for (at = equals + 2; at < text->size() && (*text)[at] != '"'; ++at) {
      char c = (*text)[at];
      if (c == '\\' && at + 1 < text->size()) {
        c = (*text)[++at];
        if (c == 'n') c = '\n';
      }
      value.push_back(c);
    }
    if (at++ >= text->size()) return false;
    (*labels)[name] = value;
    while (at < text->size() && ((*text)[at] == ',' || (*text)[at] == ' ')) ++at;
  }
  if (at >= text->size()) return false;
  text->remove_prefix(at + 1);
  return true;
}

bool Matches(const MetricSample& sample, const std::map<std::string, std::string>& labels) {
  for (const auto& [name, value] : labels) {
    const auto it = sample.labels.find(name);
    if (it == sample.labels.end() || it->second != value) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<MetricsPage> MetricsPage::Parse(absl::string_view text) {
  MetricsPage page;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#') continue;
    const absl::Status wrong = absl::InvalidArgumentError(
        absl::StrCat("line ", number, " of the metrics page is no sample: ", line.substr(0, 80)));
    size_t end = 0;
    while (end < line.size() && (absl::ascii_isalnum(line[end]) || line[end] == '_' || line[end] == ':')) ++end;
    const std::string name(line.substr(0, end));
    line.remove_prefix(end);
    MetricSample sample;
    if (name.empty() || (absl::StartsWith(line, "{") && !ConsumeLabels(&line, &sample.labels))) return wrong;
    // The value; a time stamp may follow.
    const std::vector<absl::string_view> words = absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (words.empty() || words.size() > 2 || !ParseValue(words[0], &sample.value)) return wrong;
    page.samples_[name].push_back(std::move(sample));
  }
  return page;
}

const std::vector<MetricSample>& MetricsPage::Samples(const std::string& name) const {
  static const std::vector<MetricSample>& none = *new std::vector<MetricSample>;
  const auto it = samples_.find(name);
  return it == samples_.end() ? none : it->second;
}

double MetricsPage::Sum(const std::string& name, const std::map<std::string, std::string>& labels) const {
  double sum = 0;
  for (const MetricSample& sample : Samples(name)) {
    if (Matches(sample, labels)) sum += sample.value;
  }
  return sum;
}

Histogram Histogram::FromPage(const MetricsPage& page, const std::string& name,
                              const std::map<std::string, std::string>& labels) {
  Histogram histogram;
  for (const MetricSample& sample : page.Samples(absl::StrCat(name, "_bucket"))) {
    double edge;
    const auto le = sample.labels.find("le");
    if (le == sample.labels.end() || !ParseValue(le->second, &edge) || !Matches(sample, labels)) continue;
    histogram.buckets_[edge] += sample.value;
  }
  return histogram;
}

Histogram Histogram::Since(const Histogram& earlier) const {
  if (earlier.count() > count()) return *this;
  Histogram since = *this;
  for (auto& [edge, value] : since.buckets_) {
    const auto it = earlier.buckets_.find(edge);
    if (it != earlier.buckets_.end()) value = std::max(0.0, value - it->second);
  }
  return since;
}

double Histogram::Quantile(double q) const {
  const double total = count();
  if (!(total > 0)) return std::numeric_limits<double>::quiet_NaN();
  const double rank = q * total;
  double edge_below = 0;
  double count_below = 0;
  for (const auto& [edge, count] : buckets_) {
    if (count >= rank && count > count_below) {
      if (std::isinf(edge)) return edge_below;
      return edge_below + (edge - edge_below) * (rank - count_below) / (count - count_below);
    }
    edge_below = edge;
    count_below = count;
  }
  return edge_below;
}

}  // namespace palimpsest::cli
