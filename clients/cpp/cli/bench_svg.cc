// The plot of a bench report: three cumulative distributions side by side.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "clients/cpp/cli/bench_report.h"

namespace palimpsest::cli {
namespace {

constexpr double kWidth = 1140;
constexpr double kHeight = 452;
constexpr double kTop = 150;     // of the plots
constexpr double kBottom = 388;  // likewise
constexpr double kPanelWidth = 310;
constexpr double kPanelStep = 370;
constexpr double kLeft = 56;

std::string Escape(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

// The step of about `count` round ticks up to `most`.
double TickStep(double most, int count) {
  const double rough = most / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 2.5, 5.0}) {
    if (rough <= factor * power) return factor * power;
  }
  return 10 * power;
}

struct Panel {
  const char* title;
  const char* color;
  const Quantiles& values;
  std::optional<double> limit;
};

std::string DrawPanel(const Panel& panel, double left) {
  const double right = left + kPanelWidth;
  std::string svg;
  absl::StrAppendFormat(&svg, "<text x='%.0f' y='%.0f' class='title'>%s</text>\n", left, kTop - 28, panel.title);
  const auto y_of = [](double share) { return kBottom - share * (kBottom - kTop); };
  for (const int percent : {0, 25, 50, 75, 100}) {
    const double y = y_of(percent / 100.0);
    absl::StrAppendFormat(&svg, "<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' class='%s'/>\n", left, y, right, y,
                          percent == 0 ? "axis" : "grid");
    absl::StrAppendFormat(&svg, "<text x='%.1f' y='%.1f' class='tick' text-anchor='end'>%d%%</text>\n", left - 7, y + 4,
                          percent);
  }
  const std::vector<double>& sorted = panel.values.sorted();
  if (sorted.empty()) {
    absl::StrAppendFormat(&svg, "<text x='%.1f' y='%.1f' class='note' text-anchor='middle'>no data</text>\n",
                          (left + right) / 2, (kTop + kBottom) / 2);
    return svg;
  }
  // A few slow requests must not squeeze the rest: the axis ends a little after the 99th percentile.
  double most = std::max({panel.values.At(0.99) * 1.12, panel.limit.value_or(0) * 1.08, sorted.front() * 1.2, 1e-9});
  const double unit = most < 1e-3 ? 1e-6 : most < 1 ? 1e-3 : 1;
  const char* unit_name = unit == 1e-6 ? "us" : unit == 1e-3 ? "ms" : "s";
  const double step = TickStep(most / unit, 5) * unit;
  most = std::ceil(most / step - 1e-9) * step;
  const auto x_of = [&](double value) { return left + std::min(1.0, value / most) * kPanelWidth; };
  for (int i = 0; i * step <= most * (1 + 1e-9); ++i) {
    absl::StrAppendFormat(&svg, "<text x='%.1f' y='%.1f' class='tick' text-anchor='middle'>%g</text>\n", x_of(i * step),
                          kBottom + 18, std::round(i * step / unit * 1e6) / 1e6);
    if (i > 0) {
      absl::StrAppendFormat(&svg, "<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' class='grid'/>\n", x_of(i * step),
                            kTop, x_of(i * step), kBottom);
    }
  }
  absl::StrAppendFormat(&svg, "<text x='%.1f' y='%.1f' class='tick' text-anchor='end'>%s</text>\n", right, kBottom + 34,
                        unit_name);

  if (panel.limit) {
    const double x = x_of(*panel.limit);
    absl::StrAppendFormat(&svg, "<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' class='limit'/>\n", x, kTop, x, kBottom);
    absl::StrAppendFormat(&svg, "<text x='%.1f' y='%.1f' class='limit-text' text-anchor='end'>limit</text>\n", x - 4,
                          kBottom - 6);
  }

  // The distribution as a staircase of at most 400 steps.
  const size_t count = sorted.size();
  const size_t stride = std::max<size_t>(1, count / 400);
  std::string path = absl::StrFormat("M%.1f %.1f", x_of(sorted[0]), y_of(0));
  for (size_t i = 0; i < count; i = i + 1 == count ? count : std::min(i + stride, count - 1)) {
    absl::StrAppendFormat(&path, "H%.1fV%.1f", x_of(sorted[i]), y_of(static_cast<double>(i + 1) / count));
  }
  absl::StrAppendFormat(&svg, "<path d='%sH%.1fV%.1fZ' fill='%s' opacity='0.10'/>\n", path, right, y_of(0),
                        panel.color);
  absl::StrAppendFormat(&svg, "<path d='%s' fill='none' stroke='%s' stroke-width='2'/>\n", path, panel.color);

  for (const auto& [name, q] : {std::pair("p50", 0.5), std::pair("p90", 0.9), std::pair("p99", 0.99)}) {
    const double value = panel.values.At(q);
    const double x = x_of(value);
    // Labels stand where the curve is not: to the right below it, to the left where they would leave the plot.
    const bool flip = x > right - 92;
    absl::StrAppendFormat(&svg, "<circle cx='%.1f' cy='%.1f' r='3.5' fill='white' stroke='%s' stroke-width='2'/>\n", x,
                          y_of(q), panel.color);
    absl::StrAppendFormat(&svg, "<text x='%.1f' y='%.1f' class='mark' text-anchor='%s'>%s %s</text>\n",
                          flip ? x - 9 : x + 9, y_of(q) + (flip ? -5 : 14), flip ? "end" : "start", name,
                          FormatSeconds(value));
  }
  return svg;
}

}  // namespace

std::string ReportSvg(const BenchReport& report) {
  const BenchSetup& setup = report.setup;
  std::string svg = absl::StrFormat(
      "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %.0f %.0f' width='%.0f' height='%.0f'>\n"
      "<style>\n"
      "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#1f2933}\n"
      ".head{font-size:19px;font-weight:600}.sub{font-size:13px;fill:#52606d}.title{font-size:14px;font-weight:600}\n"
      ".tick{font-size:11px;fill:#7b8794}.mark{font-size:12px;paint-order:stroke;stroke:#fff;stroke-width:3px}\n"
      ".note{font-size:13px;fill:#9aa5b1}.grid{stroke:#e4e7eb}.axis{stroke:#9aa5b1}\n"
      ".limit{stroke:#d64545;stroke-dasharray:4 3}.limit-text{font-size:11px;fill:#d64545}\n"
      "</style>\n<rect width='100%%' height='100%%' fill='white'/>\n",
      kWidth, kHeight, kWidth, kHeight);
  absl::StrAppendFormat(&svg, "<text x='%.0f' y='36' class='head'>%s: %s generated tokens/s</text>\n", kLeft - 32,
                        Escape(setup.model),
                        report.seconds > 0 ? FormatSignificant(report.generated_tokens / report.seconds, 4) : "-");
  std::string outcome = absl::StrCat(FormatCount(report.completed), " of ", FormatCount(report.requests),
                                     " requests completed in ", FormatSeconds(report.seconds));
  if (HasSlo(report)) {
    absl::StrAppendFormat(&outcome, "; %.1f%% within limits",
                          report.requests > 0 ? 100.0 * report.within_slo / report.requests : 0.0);
  }
  const std::string load =
      absl::StrCat(setup.load, "; prompts ", setup.prompt_lengths, ", outputs ", setup.output_lengths, " tokens");
  double y = 58;
  for (const std::string& line : {absl::StrCat(outcome, "; ", setup.backend), load}) {
    absl::StrAppendFormat(&svg, "<text x='%.0f' y='%.0f' class='sub'>%s</text>\n", kLeft - 32, y, Escape(line));
    y += 19;
  }
  const Panel panels[] = {{"Time to first token", "#2a6fbb", report.first_token, setup.slo_first_token},
                          {"Time per output token", "#2f9e6e", report.per_token, setup.slo_per_token},
                          {"End to end", "#8a5cb8", report.end_to_end, std::nullopt}};
  double left = kLeft;
  for (const Panel& panel : panels) {
    absl::StrAppend(&svg, DrawPanel(panel, left));
    left += kPanelStep;
  }
  absl::StrAppendFormat(&svg,
                        "<text x='%.0f' y='%.0f' class='tick'>Share of completed requests at or below the time on the "
                        "axis; each axis ends after the 99th percentile.</text>\n",
                        kLeft - 32, kHeight - 14);
  return absl::StrCat(svg, "</svg>\n");
}

}  // namespace palimpsest::cli
