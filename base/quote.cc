#include "base/quote.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace palimpsest {
namespace {

constexpr size_t kMost = 64;
constexpr size_t kMostOfName = 80;

// Abseil's string_view need not be the standard one, so strings are handed over.
std::string Front(std::string_view text, size_t most) { return std::string(text.substr(0, most)); }

}  // namespace

std::string Quoted(std::string_view text) {
  return absl::StrCat("'", absl::CHexEscape(Front(text, kMostOfName)), text.size() > kMostOfName ? "..." : "", "'");
}

std::string DoubleQuoted(std::string_view text) {
  return absl::StrCat("\"", absl::CHexEscape(Front(text, kMost)), text.size() > kMost ? "..." : "", "\"");
}

std::string DoubleQuotedUtf8(std::string_view text) {
  return absl::StrCat("\"", absl::Utf8SafeCEscape(Front(text, kMost)), text.size() > kMost ? "..." : "", "\"");
}

}  // namespace palimpsest
