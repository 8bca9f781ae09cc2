// What a run of the load generator found: the numbers, as a table, as JSON and as a plot.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "clients/cpp/cli/terminal.h"

namespace palimpsest::cli {

// One request, in seconds since the run began.
struct RequestRecord {
  double arrival = 0;  // when it was due: in an open loop before it could be sent, if the client was late
  double first = 0;    // its first token, if `generated` > 0
  double last = 0;     // its last token
  double end = 0;
  double queue = 0;  // in the server, as the server says
  int64_t prompt_tokens = 0;
  int64_t generated = 0;
  absl::StatusCode code = absl::StatusCode::kOk;
};

// A sample of values.
class Quantiles {
 public:
  explicit Quantiles(std::vector<double> values = {});
  // Linear between the two nearest of the sorted values; NaN without any.
  double At(double q) const;
  double Mean() const;
  const std::vector<double>& sorted() const { return sorted_; }

 private:
  std::vector<double> sorted_;
};

// What was asked for.
struct BenchSetup {
  std::string server;
  std::string model;
  std::string backend;
  std::string load;  // "closed loop, 8 at once" or "Poisson, 2.5 requests/s"
  std::string prompt_lengths;
  std::string output_lengths;
  uint64_t seed = 0;
  std::optional<double> slo_first_token;  // seconds
  std::optional<double> slo_per_token;
};

struct BenchReport {
  BenchSetup setup;
  double seconds = 0;  // from the first arrival to the last end
  int64_t requests = 0;
  int64_t completed = 0;
  int64_t prompt_tokens = 0;              // of completed requests
  int64_t generated_tokens = 0;           // likewise
  int64_t within_slo = 0;                 // completed requests that kept all limits; all of them if there are no limits
  std::map<std::string, int64_t> errors;  // by code
  Quantiles first_token;                  // of completed requests, like the rest: from arrival to the first token
  Quantiles per_token;                    // between two tokens, a request's mean; requests of one token have none
  Quantiles end_to_end;
  Quantiles queue;
};

// True if the setup has limits to keep.
bool HasSlo(const BenchReport& report);

BenchReport Summarize(const BenchSetup& setup, const std::vector<RequestRecord>& records);

std::string ReportTable(const BenchReport& report, const Terminal& terminal);
std::string ReportJson(const BenchReport& report);
// Cumulative distributions of the three latencies, with their percentiles marked, as an SVG document.
std::string ReportSvg(const BenchReport& report);

}  // namespace palimpsest::cli
