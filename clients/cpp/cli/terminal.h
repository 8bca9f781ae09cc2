// How output looks: colour and progress on a terminal, plain text in a pipe; and numbers as people read them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace palimpsest::cli {

enum class Style { kBold, kDim, kRed, kGreen, kYellow, kCyan };

// What stdout and stderr are.
class Terminal {
 public:
  // `color` is "auto" (on a terminal, unless NO_COLOR is set), "always" or "never".
  explicit Terminal(absl::string_view color = "auto");

  bool out_is_terminal() const { return out_is_terminal_; }
  bool err_is_terminal() const { return err_is_terminal_; }
  // Columns of the terminal on stderr or stdout; 100 if neither is one. Asked anew each time.
  int width() const;
  // Rows, likewise; 0 if neither is a terminal.
  int height() const;

  // `text` in a style, for stdout and for stderr.
  std::string Out(Style style, absl::string_view text) const { return Paint(out_color_, style, text); }
  std::string Err(Style style, absl::string_view text) const { return Paint(err_color_, style, text); }

 private:
  static std::string Paint(bool color, Style style, absl::string_view text);

  bool out_is_terminal_;
  bool err_is_terminal_;
  bool out_color_;
  bool err_color_;
};

// A line on stderr that is drawn over again while work goes on. Nothing is shown where stderr is no terminal.
class ProgressLine {
 public:
  explicit ProgressLine(const Terminal& terminal) : terminal_(terminal) {}
  ~ProgressLine() { Clear(); }

  // At most ten times a second; calls in between are dropped. True if it is time to call Show: lets a caller skip
  // the work of making the text.
  bool Due() const;
  void Show(absl::string_view text);
  void Clear();

 private:
  const Terminal& terminal_;
  absl::Time last_ = absl::InfinitePast();
  bool shown_ = false;
};

// A bar of `width` columns, `share` of it filled, in eighths of a column.
std::string Bar(double share, int width);

std::string FormatCount(int64_t count);                   // 1,234,567
std::string FormatBytes(int64_t bytes);                   // 2.36 MB
std::string FormatSeconds(double seconds);                // 850 us, 12.3 ms, 4.20 s, 3m 05s
std::string FormatSignificant(double value, int digits);  // without exponent up to 1e15

// Rows of cells in columns, two spaces apart. Cells may hold colour codes and UTF-8.
class Table {
 public:
  // A name that begins with '>' makes a column aligned to the right.
  explicit Table(std::vector<std::string> names);
  void Add(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  std::string Render(const Terminal& terminal) const;

 private:
  std::vector<std::string> names_;
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

// Number of columns that `text` takes: colour codes take none, a UTF-8 sequence one.
int DisplayWidth(absl::string_view text);

}  // namespace palimpsest::cli
