// `palimpsest top`: a live view of the server's metrics page.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <deque>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "clients/cpp/cli/command.h"
#include "clients/cpp/cli/http.h"
#include "clients/cpp/cli/prometheus.h"

namespace palimpsest::cli {
namespace {

// A metrics page and when it was read.
struct Reading {
  absl::Time time;
  MetricsPage page;
};

// `values`, scaled to the largest, as a line of bars.
std::string Sparkline(const std::deque<double>& values, size_t width) {
  static constexpr const char* kBars[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  double most = 0;
  for (const double value : values) most = std::max(most, value);
  std::string line;
  for (size_t i = values.size() > width ? values.size() - width : 0; i < values.size(); ++i) {
    absl::StrAppend(&line, kBars[most > 0 ? static_cast<int>(std::lround(7 * values[i] / most)) : 0]);
  }
  return line;
}

// Text of the view. Rates and percentiles are of the time between `before` and `now`; without `before`, totals and
// percentiles since the server started.
class View {
 public:
  View(const Terminal& terminal, const Reading& now, const Reading* before)
      : terminal_(terminal), now_(now.page), before_(before == nullptr ? nullptr : &before->page) {
    if (before != nullptr) seconds_ = std::max(1e-3, absl::ToDoubleSeconds(now.time - before->time));
  }

  // Per second, or in all.
  double Rate(const std::string& name, const std::map<std::string, std::string>& labels = {}) const {
    const double total = now_.Sum(name, labels);
    if (before_ == nullptr) return total;
    const double earlier = before_->Sum(name, labels);
    return (total >= earlier ? total - earlier : total) / seconds_;
  }

  std::string Render(int width, const std::deque<double>& history) const {
    std::string text;
    const auto line = [&](absl::string_view name, const std::string& body) {
      const std::string padded = absl::StrFormat("%-10s", name);
      absl::StrAppend(&text, terminal_.Out(Style::kDim, padded), body, "\n");
    };
    for (const MetricSample& model : now_.Samples("palimpsest_model_info")) {
      const auto label = [&](const char* key) {
        const auto it = model.labels.find(key);
        return it == model.labels.end() ? "" : it->second;
      };
      line("model", absl::StrCat(terminal_.Out(Style::kBold, label("model")), "  ", label("architecture"), "  ",
                                 label("dtype"), "  ", label("backend")));
    }
    const double running = now_.Sum("palimpsest_requests_running");
    const double waiting = now_.Sum("palimpsest_requests_waiting");
    const double ok = Rate("palimpsest_requests_total", {{"code", "OK"}});
    const double failed = Rate("palimpsest_requests_total") - ok;
    line("requests",
         absl::StrCat(terminal_.Out(running > 0 ? Style::kGreen : Style::kDim, absl::StrCat(running)), " running  ",
                      terminal_.Out(waiting > 0 ? Style::kYellow : Style::kDim, absl::StrCat(waiting)), " waiting  ",
                      Number(ok), " ok  ", terminal_.Out(failed > 0 ? Style::kRed : Style::kDim, Number(failed)),
                      " not ok", Failures()));
    const double used = now_.Sum("palimpsest_slots", {{"condition", "used"}});
    const double slots = used + now_.Sum("palimpsest_slots", {{"condition", "free"}});
    line("slots", absl::StrCat("[", terminal_.Out(Style::kCyan, Bar(slots > 0 ? used / slots : 0, 30)), "] ", used,
                               " of ", slots, " used"));
    line("tokens", absl::StrCat(Number(Rate("palimpsest_generated_tokens_total")), " generated  ",
                                Number(Rate("palimpsest_prompt_tokens_total")), " of prompts  ",
                                Number(Rate("palimpsest_cached_tokens_total")), " brought along by states"));
    line("sessions", absl::StrCat(now_.Sum("palimpsest_sessions", {{"condition", "idle"}}), " idle  ",
                                  now_.Sum("palimpsest_sessions", {{"condition", "active"}}), " active  ",
                                  now_.Sum("palimpsest_sessions", {{"condition", "quarantined"}}), " quarantined  ",
                                  now_.Sum("palimpsest_snapshots"), " snapshots  ",
                                  FormatBytes(std::llround(now_.Sum("palimpsest_state_bytes"))), " of states"));
    const double iterations = Since("palimpsest_batch_rows").count();
    line("batch",
         absl::StrCat(Mean("palimpsest_batch_sequences"), " sequences  ", Mean("palimpsest_batch_rows"), " rows  ",
                      Number(before_ == nullptr ? iterations : iterations / seconds_), " iterations"));
    const double cpu = Rate("process_cpu_seconds_total");
    line("process", absl::StrCat(before_ == nullptr ? absl::StrCat(FormatSeconds(cpu), " of processor")
                                                    : absl::StrFormat("%.0f%% processor", 100 * cpu),
                                 "  ", FormatBytes(std::llround(now_.Sum("process_resident_memory_bytes"))),
                                 " resident  ", now_.Sum("process_threads"), " threads"));
    if (!history.empty()) {
      line("", "");
      line("tokens/s", terminal_.Out(Style::kGreen, Sparkline(history, std::max(10, width - 12))));
    }
    absl::StrAppend(&text, "\n", Latencies());
    return text;
  }

 private:
  std::string Number(double value) const {
    const std::string text =
        value >= 100 || value == std::floor(value) ? FormatCount(std::llround(value)) : absl::StrFormat("%.1f", value);
    return before_ == nullptr ? text : absl::StrCat(text, "/s");
  }

  // The codes of the calls that were not ok.
  std::string Failures() const {
    std::map<std::string, double> rates;
    for (const MetricSample& sample : now_.Samples("palimpsest_requests_total")) {
      const auto code = sample.labels.find("code");
      if (code == sample.labels.end() || code->second == "OK") continue;
      rates[code->second] = Rate("palimpsest_requests_total", {{"code", code->second}});
    }
    std::string text;
    for (const auto& [code, rate] : rates) {
      if (rate > 0) absl::StrAppend(&text, text.empty() ? " (" : ", ", code, " ", Number(rate));
    }
    return text.empty() ? "" : absl::StrCat(text, ")");
  }

  Histogram Since(const std::string& name) const {
    const Histogram now = Histogram::FromPage(now_, name);
    return before_ == nullptr ? now : now.Since(Histogram::FromPage(*before_, name));
  }

  std::string Mean(const std::string& name) const {
    const double count = Rate(absl::StrCat(name, "_count"));
    return count > 0 ? absl::StrFormat("%.1f", Rate(absl::StrCat(name, "_sum")) / count) : "-";
  }

  std::string Latencies() const {
    Table table({"LATENCY", ">p50", ">p90", ">p95", ">p99", ">COUNT"});
    const std::pair<const char*, const char*> rows[] = {
        {"time to first token", "palimpsest_time_to_first_token_seconds"},
        {"time per output token", "palimpsest_time_per_output_token_seconds"},
        {"queue", "palimpsest_queue_time_seconds"},
        {"request", "palimpsest_request_duration_seconds"},
        {"iteration of the engine", "palimpsest_iteration_seconds"}};
    for (const auto& [title, name] : rows) {
      const Histogram histogram = Since(name);
      table.Add({title, FormatSeconds(histogram.Quantile(0.5)), FormatSeconds(histogram.Quantile(0.9)),
                 FormatSeconds(histogram.Quantile(0.95)), FormatSeconds(histogram.Quantile(0.99)),
                 FormatCount(std::llround(histogram.count()))});
    }
    return table.Render(terminal_);
  }

  const Terminal& terminal_;
  const MetricsPage& now_;
  const MetricsPage* const before_;
  double seconds_ = 1;
};

class Top : public Command {
 public:
  Top()
      : Command({.name = "top",
                 .summary = "live view of the server's metrics",
                 .description = "Shows what the server does: requests, slots, tokens per second, sessions, and "
                                "percentiles of latencies over --window. Reads the server's metrics page. Ctrl-C ends "
                                "it. --once prints totals and percentiles since the server started.",
                 .uses_server = false,
                 .reads_metrics = true}) {}

  void AddFlags(FlagSet& flags) override {
    flags.Add("metrics", &url_, "URL", "the server's metrics page");
    flags.Add("interval", &interval_, "TIME", "time between two readings");
    flags.Add("window", &window_, "TIME", "rates and percentiles are over this long");
    flags.Add("once", &once_, "", "print once, as plain text");
  }

  absl::Status Run(Context& context) override {
    if (interval_ < absl::Milliseconds(100)) return UsageError("--interval is at least 100ms");
    credentials_ = {.ca_file = context.server.ca_file,
                    .certificate_file = context.server.certificate_file,
                    .key_file = context.server.key_file,
                    .allow_insecure_token = context.server.allow_insecure_token};
    ASSIGN_OR_RETURN(credentials_.token, context.server.Token());
    if (once_) {
      ASSIGN_OR_RETURN(const Reading reading, Read());
      std::fputs(View(context.terminal, reading, nullptr).Render(context.terminal.width(), {}).c_str(), stdout);
      return absl::OkStatus();
    }
    const bool full_screen = context.terminal.out_is_terminal();
    if (full_screen) std::fputs("\x1b[?1049h\x1b[?25l", stdout);
    Interrupt::Scope scope(context.interrupt);
    do {
      const std::string frame = Frame(context.terminal);
      if (full_screen) std::fputs("\x1b[H", stdout);
      for (const absl::string_view line : absl::StrSplit(frame, '\n')) {
        std::fwrite(line.data(), 1, line.size(), stdout);
        std::fputs(full_screen ? "\x1b[K\n" : "\n", stdout);
      }
      if (full_screen) std::fputs("\x1b[J", stdout);
      std::fflush(stdout);
    } while (scope.SleepFor(interval_));
    if (full_screen) std::fputs("\x1b[?25h\x1b[?1049l", stdout);
    context.interrupt.Forgive();  // Ctrl-C is how this ends
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<Reading> Read() const {
    ASSIGN_OR_RETURN(const std::string text, HttpGet(url_, absl::Seconds(5), credentials_));
    ASSIGN_OR_RETURN(MetricsPage page, MetricsPage::Parse(text));
    return Reading{absl::Now(), std::move(page)};
  }

  std::string Frame(const Terminal& terminal) {
    const std::string head = absl::StrCat(terminal.Out(Style::kBold, "palimpsest top"), "  ", url_, "  ",
                                          absl::FormatTime("%H:%M:%S", absl::Now(), absl::LocalTimeZone()), "  (last ",
                                          absl::FormatDuration(absl::Trunc(window_, absl::Milliseconds(1))), ")\n\n");
    absl::StatusOr<Reading> reading = Read();
    if (!reading.ok()) {
      readings_.clear();
      return absl::StrCat(head, terminal.Out(Style::kRed, reading.status().message()), "\n");
    }
    readings_.push_back(*std::move(reading));
    while (readings_.size() > 2 && readings_[1].time + window_ <= readings_.back().time) readings_.pop_front();
    const bool first = readings_.size() == 1;
    if (!first) {
      const View last_interval(terminal, readings_.back(), &readings_[readings_.size() - 2]);
      history_.push_back(last_interval.Rate("palimpsest_generated_tokens_total"));
      if (history_.size() > 500) history_.pop_front();
    }
    const View view(terminal, readings_.back(), first ? nullptr : &readings_.front());
    return absl::StrCat(head, view.Render(terminal.width(), history_));
  }

  std::string url_ = "http://127.0.0.1:9464/metrics";
  HttpCredentials credentials_;
  absl::Duration interval_ = absl::Seconds(1);
  absl::Duration window_ = absl::Seconds(10);
  bool once_ = false;
  std::deque<Reading> readings_;  // of the window, oldest first
  std::deque<double> history_;    // generated tokens per second, one for each interval
};

}  // namespace

void AddTop(Commands& commands) { commands.push_back(std::make_unique<Top>()); }

}  // namespace palimpsest::cli
