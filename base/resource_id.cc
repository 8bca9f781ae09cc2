#include "base/resource_id.h"

#include <algorithm>

#include "absl/strings/ascii.h"

namespace palimpsest {

bool IsResourceId(std::string_view text, bool dots) {
  const auto fits = [dots](unsigned char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-' || (dots && c == '.');
  };
  return !text.empty() && text.size() <= 63 && absl::ascii_islower(static_cast<unsigned char>(text.front())) &&
         std::ranges::all_of(text, fits);
}

}  // namespace palimpsest
