#include "clients/cpp/cli/bench_report.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace palimpsest::cli {
namespace {

using nlohmann::ordered_json;

constexpr std::pair<const char*, double> kPercentiles[] = {{"p50", 0.5}, {"p90", 0.9}, {"p95", 0.95}, {"p99", 0.99}};

ordered_json Json(const Quantiles& quantiles) {
  if (quantiles.sorted().empty()) return nullptr;
  ordered_json json = {{"mean", quantiles.Mean()}};
  for (const auto& [name, q] : kPercentiles) json[name] = quantiles.At(q);
  json["max"] = quantiles.sorted().back();
  return json;
}

}  // namespace

bool HasSlo(const BenchReport& report) { return report.setup.slo_first_token || report.setup.slo_per_token; }

Quantiles::Quantiles(std::vector<double> values) : sorted_(std::move(values)) {
  std::sort(sorted_.begin(), sorted_.end());
}

double Quantiles::At(double q) const {
  if (sorted_.empty()) return std::numeric_limits<double>::quiet_NaN();
  const double rank = q * (sorted_.size() - 1);
  const size_t below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted_.size() - 1);
  return sorted_[below] + (sorted_[above] - sorted_[below]) * (rank - below);
}

double Quantiles::Mean() const { return std::accumulate(sorted_.begin(), sorted_.end(), 0.0) / sorted_.size(); }

BenchReport Summarize(const BenchSetup& setup, const std::vector<RequestRecord>& records) {
  BenchReport report;
  report.setup = setup;
  report.requests = records.size();
  std::vector<double> first, per_token, end_to_end, queue;
  double begin = std::numeric_limits<double>::infinity();
  double end = 0;
  for (const RequestRecord& record : records) {
    begin = std::min(begin, record.arrival);
    end = std::max(end, record.end);
    if (record.code != absl::StatusCode::kOk) {
      ++report.errors[absl::StatusCodeToString(record.code)];
      continue;
    }
    ++report.completed;
    report.prompt_tokens += record.prompt_tokens;
    report.generated_tokens += record.generated;
    end_to_end.push_back(record.end - record.arrival);
    queue.push_back(record.queue);
    bool good = true;
    if (record.generated > 0) {
      first.push_back(record.first - record.arrival);
      good = good && first.back() <= setup.slo_first_token.value_or(first.back());
    }
    if (record.generated > 1) {
      per_token.push_back((record.last - record.first) / (record.generated - 1));
      good = good && per_token.back() <= setup.slo_per_token.value_or(per_token.back());
    }
    report.within_slo += good;
  }
  report.seconds = records.empty() ? 0 : end - begin;
  report.first_token = Quantiles(std::move(first));
  report.per_token = Quantiles(std::move(per_token));
  report.end_to_end = Quantiles(std::move(end_to_end));
  report.queue = Quantiles(std::move(queue));
  return report;
}

std::string ReportTable(const BenchReport& report, const Terminal& terminal) {
  const BenchSetup& setup = report.setup;
  std::string text;
  const auto line = [&](const char* name, const std::string& value) {
    absl::StrAppend(&text, terminal.Out(Style::kDim, absl::StrFormat("%-12s", name)), value, "\n");
  };
  line("model", absl::StrCat(setup.model, " at ", setup.server, ", ", setup.backend));
  line("load", absl::StrCat(setup.load, "; prompts ", setup.prompt_lengths, ", outputs ", setup.output_lengths,
                            " tokens; seed ", setup.seed));
  line("requests", absl::StrCat(FormatCount(report.completed), " of ", FormatCount(report.requests), " completed in ",
                                FormatSeconds(report.seconds)));
  for (const auto& [code, count] : report.errors) {
    line("", absl::StrCat(terminal.Out(Style::kRed, code), " ", FormatCount(count)));
  }
  const auto rate = [&](double count) { return FormatSignificant(count / report.seconds, 4); };
  line("throughput",
       absl::StrCat(terminal.Out(Style::kBold, rate(report.generated_tokens)), " generated tokens/s, ",
                    rate(report.prompt_tokens), " prompt tokens/s, ", rate(report.completed), " requests/s"));
  if (HasSlo(report)) {
    line("goodput",
         absl::StrFormat(
             "%s requests/s within %s%s%s (%.1f%% of all)", rate(report.within_slo),
             setup.slo_first_token ? absl::StrCat("first token ", FormatSeconds(*setup.slo_first_token)) : "",
             setup.slo_first_token && setup.slo_per_token ? ", " : "",
             setup.slo_per_token ? absl::StrCat("token ", FormatSeconds(*setup.slo_per_token)) : "",
             report.requests > 0 ? 100.0 * report.within_slo / report.requests : 0.0));
  }
  absl::StrAppend(&text, "\n");
  Table table({"LATENCY", ">mean", ">p50", ">p90", ">p95", ">p99", ">max"});
  const std::pair<const char*, const Quantiles*> rows[] = {{"time to first token", &report.first_token},
                                                           {"time per output token", &report.per_token},
                                                           {"end to end", &report.end_to_end},
                                                           {"queue in the server", &report.queue}};
  for (const auto& [name, quantiles] : rows) {
    std::vector<std::string> cells = {name, FormatSeconds(quantiles->Mean())};
    for (const auto& [unused, q] : kPercentiles) cells.push_back(FormatSeconds(quantiles->At(q)));
    cells.push_back(FormatSeconds(quantiles->At(1)));
    table.Add(std::move(cells));
  }
  return absl::StrCat(text, table.Render(terminal));
}

std::string ReportJson(const BenchReport& report) {
  const BenchSetup& setup = report.setup;
  const auto optional = [](const std::optional<double>& value) { return value ? ordered_json(*value) : nullptr; };
  const auto rate = [&](double count) { return report.seconds > 0 ? ordered_json(count / report.seconds) : nullptr; };
  ordered_json json = {{"setup",
                        {{"server", setup.server},
                         {"model", setup.model},
                         {"backend", setup.backend},
                         {"load", setup.load},
                         {"prompt_tokens", setup.prompt_lengths},
                         {"output_tokens", setup.output_lengths},
                         {"seed", setup.seed},
                         {"slo_ttft_seconds", optional(setup.slo_first_token)},
                         {"slo_tpot_seconds", optional(setup.slo_per_token)}}},
                       {"seconds", report.seconds},
                       {"requests", report.requests},
                       {"completed", report.completed},
                       {"errors", report.errors},
                       {"prompt_tokens", report.prompt_tokens},
                       {"generated_tokens", report.generated_tokens},
                       {"generated_tokens_per_second", rate(report.generated_tokens)},
                       {"prompt_tokens_per_second", rate(report.prompt_tokens)},
                       {"requests_per_second", rate(report.completed)},
                       {"goodput_requests_per_second", HasSlo(report) ? rate(report.within_slo) : nullptr},
                       {"time_to_first_token_seconds", Json(report.first_token)},
                       {"time_per_output_token_seconds", Json(report.per_token)},
                       {"end_to_end_seconds", Json(report.end_to_end)},
                       {"queue_seconds", Json(report.queue)}};
  return absl::StrCat(json.dump(2, ' ', false, ordered_json::error_handler_t::replace), "\n");
}

}  // namespace palimpsest::cli
