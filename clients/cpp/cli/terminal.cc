#include "clients/cpp/cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"

namespace palimpsest::cli {
namespace {

bool WindowSize(winsize* size) {
  for (const int fd : {STDERR_FILENO, STDOUT_FILENO}) {
    if (ioctl(fd, TIOCGWINSZ, size) == 0 && size->ws_col > 0) return true;
  }
  return false;
}

}  // namespace

Terminal::Terminal(absl::string_view color)
    : out_is_terminal_(isatty(STDOUT_FILENO) == 1), err_is_terminal_(isatty(STDERR_FILENO) == 1) {
  const char* no_color = std::getenv("NO_COLOR");
  const bool wanted = color != "never" && (no_color == nullptr || *no_color == '\0');
  out_color_ = color == "always" || (wanted && out_is_terminal_);
  err_color_ = color == "always" || (wanted && err_is_terminal_);
}

int Terminal::width() const {
  winsize size;
  return WindowSize(&size) ? size.ws_col : 100;
}

int Terminal::height() const {
  winsize size;
  return WindowSize(&size) ? size.ws_row : 0;
}

std::string Terminal::Paint(bool color, Style style, absl::string_view text) {
  if (!color || text.empty()) return std::string(text);
  static constexpr const char* kCodes[] = {"1", "2", "31", "32", "33", "36"};
  return absl::StrCat("\x1b[", kCodes[static_cast<int>(style)], "m", text, "\x1b[0m");
}

bool ProgressLine::Due() const { return terminal_.err_is_terminal() && absl::Now() - last_ >= absl::Milliseconds(100); }

void ProgressLine::Show(absl::string_view text) {
  if (!Due()) return;
  last_ = absl::Now();
  std::fprintf(stderr, "\r%.*s\x1b[K", static_cast<int>(text.size()), text.data());
  std::fflush(stderr);
  shown_ = true;
}

void ProgressLine::Clear() {
  if (shown_) std::fputs("\r\x1b[K", stderr);
  shown_ = false;
  last_ = absl::InfinitePast();
}

std::string Bar(double share, int width) {
  static constexpr const char* kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int eighths = static_cast<int>(std::lround(std::clamp(share, 0.0, 1.0) * width * 8));
  std::string bar;
  for (int i = 0; i < eighths / 8; ++i) absl::StrAppend(&bar, "█");
  absl::StrAppend(&bar, kEighths[eighths % 8]);
  return absl::StrCat(bar, std::string(width - (eighths + 7) / 8, ' '));
}

std::string FormatCount(int64_t count) {
  std::string digits = absl::StrCat(count);
  const int first = count < 0 ? 1 : 0;
  for (int at = static_cast<int>(digits.size()) - 3; at > first; at -= 3) digits.insert(at, 1, ',');
  return digits;
}

std::string FormatSignificant(double value, int digits) {
  if (!std::isfinite(value)) return "-";
  const double magnitude = value == 0 ? 0 : std::floor(std::log10(std::fabs(value)));
  const int decimals = std::clamp(digits - 1 - static_cast<int>(magnitude), 0, 12);
  return absl::StrFormat("%.*f", decimals, value);
}

std::string FormatBytes(int64_t bytes) {
  if (bytes < 1000) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes);
  const char* unit = "";
  for (const char* next : {"kB", "MB", "GB", "TB"}) {
    if (value < 999.5) break;
    value /= 1000;
    unit = next;
  }
  return absl::StrCat(FormatSignificant(value, 3), " ", unit);
}

std::string FormatSeconds(double seconds) {
  if (!std::isfinite(seconds)) return "-";
  if (seconds == 0) return "0 s";
  if (seconds < 0.9995e-3) return absl::StrCat(FormatSignificant(seconds * 1e6, 3), " us");
  if (seconds < 0.9995) return absl::StrCat(FormatSignificant(seconds * 1e3, 3), " ms");
  if (seconds < 59.95) return absl::StrCat(FormatSignificant(seconds, 3), " s");
  const int64_t whole = std::llround(seconds);
  if (whole < 3600) return absl::StrFormat("%dm %02ds", whole / 60, whole % 60);
  return absl::StrFormat("%dh %02dm", whole / 3600, whole / 60 % 60);
}

Table::Table(std::vector<std::string> names) : names_(std::move(names)) {
  for (std::string& name : names_) {
    right_.push_back(name.substr(0, 1) == ">");
    if (right_.back()) name.erase(0, 1);
  }
}

void Table::Add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }

std::string Table::Render(const Terminal& terminal) const {
  std::vector<int> widths;
  for (size_t column = 0; column < names_.size(); ++column) {
    int width = DisplayWidth(names_[column]);
    for (const auto& row : rows_) width = std::max(width, DisplayWidth(row[column]));
    widths.push_back(width);
  }
  std::string text;
  const auto append = [&](const std::vector<std::string>& cells, bool heading) {
    for (size_t column = 0; column < cells.size(); ++column) {
      const std::string pad(widths[column] - DisplayWidth(cells[column]), ' ');
      const std::string cell = heading ? terminal.Out(Style::kDim, cells[column]) : cells[column];
      const bool last = column + 1 == cells.size();
      absl::StrAppend(&text, right_[column] ? pad : "", cell, right_[column] || last ? "" : pad, last ? "\n" : "  ");
    }
  };
  append(names_, true);
  for (const auto& row : rows_) append(row, false);
  return text;
}

int DisplayWidth(absl::string_view text) {
  int width = 0;
  bool escape = false;
  for (const char c : text) {
    if (c == '\x1b') escape = true;
    if (!escape && (c & 0xc0) != 0x80) ++width;
    if (escape && c == 'm') escape = false;
  }
  return width;
}

}  // namespace palimpsest::cli
