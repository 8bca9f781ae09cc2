#include "server/model/checkpoint/json.h"

#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace palimpsest {
namespace {

// Depth of nesting, without building anything.
int32_t Depth(std::string_view text) {
  int32_t depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      deepest = std::max(deepest, ++depth);
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

std::string Quoted(std::string_view text) {
  constexpr size_t kLongest = 80;
  const bool cut = text.size() > kLongest;
  return absl::StrCat("'", absl::Utf8SafeCHexEscape(std::string(text.substr(0, kLongest))), cut ? "..." : "", "'");
}

absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, const std::string& where,
                                               const JsonLimits& limits) {
  using nlohmann::json;
  if (static_cast<int64_t>(text.size()) > limits.max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": has ", text.size(), " bytes, at most ", limits.max_bytes, " are read"));
  }
  if (const int32_t depth = Depth(text); depth > limits.max_depth) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": nested ", depth, " deep, at most ", limits.max_depth, " are read"));
  }
  // The parser keeps the last of equal keys without a word; two readers of one file must not see two models.
  std::vector<std::unordered_set<std::string>> keys;
  std::string repeated;
  const auto watch = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second && repeated.empty()) repeated = key.empty() ? "\"\"" : key;
    }
    return true;
  };
  try {
    json value = json::parse(text, watch);
    if (!repeated.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": names the key ", Quoted(repeated), " twice"));
    }
    if (!value.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": expected an object, got ", value.type_name()));
    }
    return value;
  } catch (const json::exception& error) {
    // The library puts its own tag first and quotes the text around the place, which may be long and is not ours.
    const std::string_view what = error.what();
    const size_t tag = what.find("] ");
    const std::string_view reason = tag == std::string_view::npos ? what : what.substr(tag + 2);
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": not valid JSON: ", absl::Utf8SafeCHexEscape(std::string(reason.substr(0, 160)))));
  }
}

}  // namespace palimpsest
